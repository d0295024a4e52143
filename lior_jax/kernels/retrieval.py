"""Retrieval and its adjoint by fused kernels: the results of `physics.retrieval` in one pass over pairs that are never stored.

Beside inputs and outputs, the kernels store two numbers per row, and per head the sums by lag of a few sequences; no
`[B, H, L, L]` is allocated. Lengths that are not a multiple of the tile are padded with zeros, which are masked and cost
nothing. Supported terms are at most one lag prior among the scores and at most one read-out of the field.

Shapes: `B` sequences, `L` positions, `H` heads, `m` whitened chart dimensions, `v` value dimensions, `T` positions along a
tile's side, `N` lags of a term by lag.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from lior_jax.kernels.adjoint import keys_kernel, lags_kernel, queries_kernel
from lior_jax.kernels.forward import retrieve_kernel, statistics_kernel
from lior_jax.kernels.tiles import LN2, Shape, level_of
from lior_jax.physics.field_state import ReadOut
from lior_jax.physics.precision import Precision
from lior_jax.physics.retrieval import Couplings
from lior_jax.physics.scores import LagPrior

TILE, SMALLEST = 64, 16
"""Positions along a tile's side; and the smallest padded size. Shorter sequences, and dimensions, are padded to a power of
two."""

PROGRAMS = 512
"""Target number of programs for the sums by lag, enough to occupy a GPU."""


LAUNCH = {
    "retrieve_kernel": (8, 1),
    "statistics_kernel": (8, 1),
    "queries_kernel": (8, 1),
    "keys_kernel": (8, 1),
    "lags_kernel": (8, 1),
}
"""Warps per program, and stages of its loops' pipeline."""


class Inputs(NamedTuple):
    """Inputs of every kernel, padded in length: points and values; `stiffness` `β R / ln 2` `[B, L, H]`; `prior`, in bits,
    and `field`, by lag, `[H, L]`."""

    queries: Array
    keys: Array
    values: Array
    stiffness: Array
    prior: Array
    field: Array


def retrieve(
    queries: Array,
    keys: Array,
    values: Array,
    resilience: Array,
    couplings: Couplings,
    precision: Precision = "float32",
    interpret: bool = False,
) -> Array:
    """`physics.retrieval.retrieve` for the supported terms.

    Args:
        queries, keys: whitened chart points, `[B, L, H, m]`.
        values: `[B, L, H, v]`.
        resilience: `R` of every query, `[B, L, H]`.
        couplings: parameters of the weights.
        interpret: run the kernels in Pallas' interpreter, which is slow but works on any backend.

    Returns:
        `[B, L, H, v]`.
    """
    inputs, shape = _prepare(queries, keys, values, resilience, couplings, precision, interpret)
    run = _Call(inputs, shape, interpret)
    (retrieved,) = run.by_tile(retrieve_kernel, inputs, [run.tile_of(values, last=True)], [_like(inputs.values)])
    return retrieved[:, : queries.shape[1]]


def retrieve_and_adjoint(
    queries: Array,
    keys: Array,
    values: Array,
    resilience: Array,
    couplings: Couplings,
    cotangent: Array,
    precision: Precision = "float32",
    interpret: bool = False,
) -> tuple[Array, tuple[Array, Array, Array, Array, Couplings]]:
    """`physics.retrieval.retrieve_and_adjoint` for the supported terms; arguments and results as there."""
    length = queries.shape[1]
    inputs, shape = _prepare(queries, keys, values, resilience, couplings, precision, interpret)
    cotangent = _filled(cotangent, shape.tile)
    run = _Call(inputs, shape, interpret)

    per_row = jax.ShapeDtypeStruct((queries.shape[0], queries.shape[2], inputs.queries.shape[1]), queries.dtype)
    specs = [run.tile_of(values, last=True), run.tile_of_rows(last=True), run.tile_of_rows(last=True)]
    results = [_like(inputs.values), per_row, per_row]
    retrieved, *statistics = run.by_tile(statistics_kernel, (*inputs, cotangent), specs, results)

    given = *inputs, cotangent, *statistics
    specs = [run.tile_of(queries, last=True), run.tile_of_rows(last=True)]
    c_queries, c_stiffness = run.by_tile(queries_kernel, given, specs, [_like(inputs.queries), per_row])
    specs = [run.tile_of(keys), run.tile_of(values)]
    c_keys, c_values = run.by_tile(keys_kernel, given, specs, [_like(inputs.keys), _like(inputs.values)])

    c_stiffness = c_stiffness.transpose(0, 2, 1)[:, :length]
    c_temperature = jnp.sum(c_stiffness * resilience, (0, 1))
    c_resilience = c_stiffness * couplings.inverse_temperature[None, None]
    c_couplings = Couplings(c_temperature)
    if shape.prior or shape.field:
        c_prior, c_field = run.by_lag(given)
        c_scores = tuple(LagPrior(_lags_like(c_prior, prior)) for prior in _priors(couplings))
        c_mixing = tuple(ReadOut(_lags_like(c_field, field)) for field in _fields(couplings))
        c_couplings = Couplings(c_temperature, c_scores, c_mixing)
    c_queries, c_keys, c_values = (c[:, :length] for c in (c_queries, c_keys, c_values))
    return retrieved[:, :length], (c_queries, c_keys, c_values, c_resilience, c_couplings)


def _priors(couplings: Couplings) -> list[Array]:
    """The addition to the scores by lag, `[H, L]`, from at most one term."""
    return [term.log_prior for term in couplings.scores if isinstance(term, LagPrior)]


def _fields(couplings: Couplings) -> list[Array]:
    """The mixing weights by lag, `[H, L]`."""
    return [term.by_lag for term in couplings.mixing if isinstance(term, ReadOut)]


def _prepare(
    queries: Array,
    keys: Array,
    values: Array,
    resilience: Array,
    couplings: Couplings,
    precision: Precision,
    interpret: bool,
) -> tuple[Inputs, Shape]:
    (length, heads, m), width = queries.shape[1:], values.shape[-1]
    tile = min(TILE, _padded(length))
    stiffness = resilience * couplings.inverse_temperature[None, None] / LN2
    queries, keys, values, stiffness = (_filled(x, tile) for x in (queries, keys, values, stiffness))
    whole = queries.shape[1]

    def lags(values: Array) -> Array:
        return jnp.pad(values[:, :length], ((0, 0), (0, whole - length)))

    absent = jnp.zeros((heads, whole), queries.dtype)
    priors, fields = _priors(couplings), _fields(couplings)
    prior = lags(priors[0] / LN2) if priors else absent
    field = lags(fields[0]) if fields else absent
    level = level_of(precision, interpret)
    shape = Shape(tile, m, width, precision, level, bool(priors), bool(fields))
    return Inputs(queries, keys, values, stiffness, prior, field), shape


class _Call(NamedTuple):
    """Launches kernels on given inputs."""

    inputs: Inputs
    shape: Shape
    interpret: bool

    @property
    def tiles(self) -> int:
        return self.inputs.queries.shape[1] // self.shape.tile

    def tile_of(self, x: Array, last: bool = False) -> pl.BlockSpec:
        """A program's tile of `[B, L, H, c]`, counted from the last one where they start there."""
        block = None, self.shape.tile, None, _padded(x.shape[-1])
        return pl.BlockSpec(block, lambda i, h, b: (b, self._own(i, last), h, 0))

    def tile_of_rows(self, last: bool = False) -> pl.BlockSpec:
        """A program's tile of `[B, H, L]`."""
        return pl.BlockSpec((None, None, self.shape.tile), lambda i, h, b: (b, h, self._own(i, last)))

    def _own(self, i, last: bool):
        return self.tiles - 1 - i if last else i

    def _whole(self, x: Array, sequences: int | None = None) -> pl.BlockSpec:
        """All positions of a program's head, for one sequence or several."""
        if x.ndim == 4:
            return pl.BlockSpec((sequences, x.shape[1], None, _padded(x.shape[-1])), lambda i, h, b: (b, 0, h, 0))
        return pl.BlockSpec((sequences, None, x.shape[2]), lambda i, h, b: (b, h, 0))

    def _specs(self, given: tuple, sequences: int | None = None) -> tuple[list[pl.BlockSpec], list[Array]]:
        queries, keys, values, stiffness, prior, field, *others = given
        points = [queries, keys, values, stiffness.transpose(0, 2, 1)]
        by_lag = pl.BlockSpec((None, prior.shape[1]), lambda i, h, b: (h, 0))
        specs = [self._whole(x, sequences) for x in points] + [by_lag] * 2 + [self._whole(x, sequences) for x in others]
        return specs, [*points, prior, field, *others]

    def by_tile(self, kernel: Any, given: tuple, out_specs: list, out_shape: list) -> list[Array]:
        """One program per tile, head and sequence."""
        batch, _, heads, _ = self.inputs.queries.shape
        return self._run(kernel, (self.tiles, heads, batch), self._specs(given), out_specs, out_shape)

    def by_lag(self, given: tuple) -> tuple[Array, Array]:
        """Cotangents of prior and field by lag, `[H, L]`."""
        batch, _, heads, _ = self.inputs.queries.shape
        side = self.shape.tile
        groups = next(n for n in range(1, batch + 1) if batch % n == 0 and (n == batch or n * heads * self.tiles >= PROGRAMS))
        grid = self.tiles, heads, groups
        spec = pl.BlockSpec((None, None, None, side, side), lambda i, h, b: (b, h, i, 0, 0))
        result = jax.ShapeDtypeStruct((groups, heads, self.tiles, side, side), self.inputs.queries.dtype)
        summed = self._run(lags_kernel, grid, self._specs(given, batch // groups), [spec] * 2, [result] * 2)
        by_prior, by_field = (_sum_by_lag(jnp.sum(x, 0)) for x in summed)
        return by_prior, by_field

    def _run(self, kernel: Any, grid: tuple, given: tuple, out_specs: list, out_shape: list) -> list[Array]:
        in_specs, arrays = given
        warps, stages = LAUNCH[kernel.__name__]
        run = pl.pallas_call(
            partial(kernel, shape=self.shape, tiles=self.tiles),
            grid=grid,
            in_specs=in_specs,
            out_specs=out_specs,
            out_shape=out_shape,
            interpret=self.interpret,
            compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
            name=kernel.__name__,
        )
        return run(*arrays)


def _sum_by_lag(pairs: Array) -> Array:
    """Sums by lag of `[H, n, T, T]`, the pairs at every offset of tiles: `[H, n T]`."""
    heads, tiles, side, _ = pairs.shape
    # Keys reversed in rows of 2 T, read with a stride one shorter: each row of the result starts one lag later.
    rows = jnp.pad(pairs[..., ::-1], ((0, 0), (0, 0), (0, 0), (0, side))).reshape(heads, tiles, 2 * side * side)
    walked = rows[..., : side * (2 * side - 1)].reshape(heads, tiles, side, 2 * side - 1)
    before, after = jnp.split(jnp.pad(jnp.sum(walked, 2), ((0, 0), (0, 0), (1, 0))), 2, -1)
    # The lags below an offset of tiles are those above the previous one; the first has none.
    return (after + jnp.pad(before[:, 1:], ((0, 0), (0, 1), (0, 0)))).reshape(heads, tiles * side)


def _lags_like(by_lag: Array, values: Array) -> Array:
    """Sums by lag `[H, …]`, zero-padded or cut to the shape of `[H, N]`."""
    by_lag = by_lag[:, : values.shape[1]]
    return jnp.pad(by_lag, ((0, 0), (0, values.shape[1] - by_lag.shape[1])))


def _padded(size: int) -> int:
    """The power of two that a side or dimension is padded to."""
    return max(SMALLEST, pl.next_power_of_2(size))


def _filled(x: Array, tile: int) -> Array:
    """`[B, L, …]`, zero-padded to a multiple of the tile."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % tile), *[(0, 0)] * (x.ndim - 2)))


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
