"""Causal computations over a sequence in tiles of positions: memory linear in the length, in both passes.

Up to `MOST` tiles are unrolled, each with exactly the positions up to its end. Longer sequences are processed by `LOOPS` loops,
each over the tiles of one part of the sequence and with the positions up to that part's end. Then neither the program nor the
data kept between tiles grows with their number; the cost is a quarter more pairs than the causal mask needs.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

MOST = 8
"""Largest number of tiles to unroll."""
LOOPS = 4
"""Loops for sequences of more tiles: twice as many would compute only an eighth more pairs than needed, but take twice as long
to compile."""


class Tile(NamedTuple):
    """`rows` positions starting at `first`, to which at most the first `stop` positions are visible. In a loop `first` is
    traced."""

    first: int | Array
    rows: int
    stop: int

    def own(self, x: Array, axis: int) -> Array:
        """The tile's slice of `x` along the position `axis`."""
        if isinstance(self.first, int):
            return lax.slice_in_dim(x, self.first, self.first + self.rows, axis=axis)
        return lax.dynamic_slice_in_dim(x, self.first, self.rows, axis)


Run = Callable[[Tile], tuple[Any, Any, Any]]
"""Maps a tile to a tree of results for its own positions; a tree of `[B, stop, …]`, its contributions to results for all
positions; and a tree of its contributions to sums over the sequence."""


def in_tiles(run: Run, length: int, tile: int | None, axis: int = 1) -> tuple[Any, Any, Any]:
    """`run` on all tiles of `length` positions; returns the concatenation of their own results along `axis`, and the sums of
    their contributions.

    Args:
        tile: positions in a tile; None for a single tile.
    """
    parts = [_loop(run, part, axis) for part in _parts(length, tile or length)]
    own, of_all, sums = zip(*parts, strict=True)
    own = jax.tree.map(lambda *x: jnp.concatenate(x, axis), *own)
    # The contributions of the last part cover all positions, those of the others the first ones only.
    of_all = jax.tree.map(lambda *x: reduce(_add_start, reversed(x)), *of_all)
    return own, of_all, jax.tree.map(lambda *x: reduce(jnp.add, x), *sums)


class _Part(NamedTuple):
    """`count` tiles of `rows` positions, starting at `begin`."""

    begin: int
    rows: int
    count: int


def _parts(length: int, tile: int) -> list[_Part]:
    whole, rest = divmod(length, tile)
    each = 1 if whole <= MOST else -(-whole // LOOPS)
    parts = [_Part(first * tile, tile, min(each, whole - first)) for first in range(0, whole, each)]
    return parts + [_Part(whole * tile, rest, 1)] * (rest > 0)


def _loop(run: Run, part: _Part, axis: int) -> tuple[Any, Any, Any]:
    begin, rows, count = part
    if count == 1:
        return run(Tile(begin, rows, begin + rows))
    of = partial(Tile, rows=rows, stop=begin + rows * count)

    def step(sums, first):
        own, *more = run(of(first))
        return jax.tree.map(jnp.add, sums, more), own

    firsts = begin + rows * jnp.arange(count)
    shapes = jax.eval_shape(lambda first: list(run(of(first))[1:]), firsts[0])
    (of_all, sums), own = lax.scan(step, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), firsts)
    return jax.tree.map(partial(_joined, axis=axis), own), of_all, sums


def _joined(x: Array, axis: int) -> Array:
    """`[tiles, …, rows, …]` as `[…, tiles × rows, …]`."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _add_start(whole: Array, start: Array) -> Array:
    """Add `start` `[B, T, …]` to the first `T` positions of `whole` `[B, L, …]`."""
    return whole.at[:, : start.shape[1]].add(start)
