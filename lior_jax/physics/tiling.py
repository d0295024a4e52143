"""Positions of a sequence taken a few at a time, each with those up to its own: memory linear in the length, forward and back.

Up to `MOST` tiles are compiled one by one, each against exactly the positions up to its end. More of them go through `LOOPS`
loops, each over the tiles of a part of the sequence and against the positions up to that part's end, so that neither the
program nor what it keeps grows with their number, and a quarter more pairs are looked at than there are.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

MOST = 8
"""Tiles of a sequence that are compiled one by one."""
LOOPS = 4
"""Loops that more of them go through: twice as many look at an eighth more pairs, but take twice as long to compile."""


class Tile(NamedTuple):
    """`rows` positions from number `first` on, which see at most the first `stop` positions. In a loop `first` is traced."""

    first: int | Array
    rows: int
    stop: int

    @property
    def last(self) -> bool:
        """Whether it is known to be the last that sees the same positions."""
        return isinstance(self.first, int)

    def own(self, x: Array, axis: int) -> Array:
        """The tile's part of `x`, whose `axis` is positions."""
        if isinstance(self.first, int):
            return lax.slice_in_dim(x, self.first, self.first + self.rows, axis=axis)
        return lax.dynamic_slice_in_dim(x, self.first, self.rows, axis)


Run = Callable[[Tile], tuple[Any, Any, Any]]
"""What a tile comes to: a tree of results of its own positions; a tree of `[B, stop, …]`, its part in results of all positions;
and a tree of its part in sums over the sequence."""


def in_tiles(run: Run, length: int, tile: int | None, axis: int = 1) -> tuple[Any, Any, Any]:
    """`run` for all tiles of `length` positions: what they return, put together along `axis`, and added up.

    Args:
        tile: positions in a tile; None for all.
    """
    parts = [_loop(run, part, axis) for part in _parts(length, tile or length)]
    own, of_all, sums = zip(*parts, strict=True)
    own = jax.tree.map(lambda *x: jnp.concatenate(x, axis), *own)
    # The last part reaches all positions; the others add to a part of what it gives.
    of_all = jax.tree.map(lambda *x: reduce(_add_start, reversed(x)), *of_all)
    return own, of_all, jax.tree.map(lambda *x: reduce(jnp.add, x), *sums)


class _Part(NamedTuple):
    """`count` tiles of `rows` positions from number `begin` on."""

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
    """Add to what `start` `[B, T, …]` covers of `whole` `[B, L, …]`."""
    return whole.at[:, : start.shape[1]].add(start)
