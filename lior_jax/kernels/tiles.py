"""A tile of pairs inside a kernel: loading its queries and keys, and the quantities of every pair.

    g_ij = max(‖q_i − k_j‖², 0) + ε      s_ij = −β R_i sqrt(g_ij) + ln K(i − j)      G_ij = ⟨q_i, k_j⟩      f_ij = F(i − j) G_ij

as in `physics.retrieval`, all from one product of points relative to the first key `o`. Scores are kept in bits, `s / ln 2`,
because GPUs have an instruction for `2^x`. A tile's sides are powers of two; points and values are padded to powers of two when
loaded.

Shapes: `T` positions in a tile, `m` and `v` dimensions of points and values with their padding.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from lior_jax.physics.precision import Precision
from lior_jax.physics.retrieval import COST_EPSILON

LN2 = float(np.log(2.0))
HIDDEN = -1e30
"""Score of a masked pair: its weight underflows to 0. Finite, so that the difference of two of them is finite."""


class Shape(NamedTuple):
    """Static parameters of a call: positions `tile` along a tile's side, dimensions of points and values before padding,
    precision of the products and how it is requested, and whether there is a lag prior and a field. Quantities of pairs have
    queries as rows and keys as columns, or with `by_key` the reverse, so that no product transposes them."""

    tile: int
    points: int
    values: int
    precision: Precision
    level: lax.Precision | lax.DotAlgorithmPreset
    prior: bool
    field: bool
    by_key: bool = False


class Queries(NamedTuple):
    """`near` `[T, m]` = `q − o`; their squares, their products with `o`, and stiffness `β R / ln 2`, `[T]` each; the index of
    the first one."""

    near: Array
    squared: Array
    with_origin: Array
    stiffness: Array
    first: Array | int


class Keys(NamedTuple):
    """`near` `[T, m]` = `k − o`; their squares, and products of `k` and `o`, `[T]` each; `values` `[T, v]`; the index of the
    first one."""

    near: Array
    squared: Array
    with_origin: Array
    values: Array
    first: Array | int


class Pairs(NamedTuple):
    """`[T, T]` each: `product` G, or None without a field; `squared`, before its ε; `slope` `1 / sqrt(g)`; `length` `sqrt(g)`;
    `score` in bits."""

    product: Array | None
    squared: Array
    slope: Array
    length: Array
    score: Array


class OfSequence(NamedTuple):
    """One sequence of a ref `[sequences, L, …]`, read like a ref `[L, …]`."""

    ref: Any
    sequence: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.ref.shape[1:]


def _part(ref: Any, *index: Any) -> Any:
    # Triton's lowering supports one index into a ref, not nested indexing.
    return ref.ref.at[(ref.sequence, *index)] if isinstance(ref, OfSequence) else ref.at[index]


def rows(ref: Any, index: Array, shape: Shape, width: int) -> Array:
    """Tile `index` of `[L, c]`, with padding in the columns from `width` on: `[T, c]`."""
    return _padded(ref, pl.ds(index * shape.tile, shape.tile), shape.tile, width)


def row(ref: Any, width: int) -> Array:
    """The first row of `[L, c]`: `[1, c]`."""
    return _padded(ref, pl.ds(0, 1), 1, width)


def _padded(ref: Any, own: Any, count: int, width: int) -> Array:
    return triton.load(_part(ref, own, slice(None)), mask=_columns(count, ref.shape[-1], width), other=0.0)


def _columns(count: int, padded: int, width: int) -> Array:
    """Mask of the columns that are not padding, in `count` rows."""
    return lax.broadcasted_iota(jnp.int32, (count, padded), 1) < width


def column(ref: Any, index: Array, shape: Shape) -> Array:
    """Tile `index` of `[L]`: `[T]`."""
    return triton.load(_part(ref, pl.ds(index * shape.tile, shape.tile)))


def store_rows(ref: Any, values: Array, width: int) -> None:
    """Store a tile `[T, c]` without the padding from column `width` on."""
    triton.store(ref.at[:, :], values, mask=_columns(values.shape[0], values.shape[1], width))


def load_queries(q_ref, stiffness_ref, origin: Array, index, shape: Shape) -> Queries:
    near = rows(q_ref, index, shape, shape.points) - origin
    stiffness = column(stiffness_ref, index, shape)
    return Queries(near, jnp.sum(near * near, 1), jnp.sum(near * origin, 1), stiffness, index * shape.tile)


def load_keys(k_ref, v_ref, origin: Array, index, shape: Shape) -> Keys:
    points = rows(k_ref, index, shape, shape.points)
    near, values = points - origin, rows(v_ref, index, shape, shape.values)
    return Keys(near, jnp.sum(near * near, 1), jnp.sum(points * origin, 1), values, index * shape.tile)


def of_queries(x: Array, shape: Shape) -> Array:
    """A quantity of queries `[T]`, broadcast to pairs."""
    return x[None] if shape.by_key else x[:, None]


def of_keys(x: Array, shape: Shape) -> Array:
    """A quantity of keys `[T]`, broadcast to pairs."""
    return x[:, None] if shape.by_key else x[None]


def products(of_query: Array, of_key: Array, shape: Shape) -> Array:
    """Products of every query's `[T, c]` with every key's."""
    return dot(of_key, of_query, (1, 1), shape) if shape.by_key else dot(of_query, of_key, (1, 1), shape)


def lags(queries: Queries, keys: Keys, shape: Shape) -> Array:
    """`i − j` of every pair."""
    side = (shape.tile, shape.tile)
    query, key = (lax.broadcasted_iota(jnp.int32, side, axis) for axis in ((1, 0) if shape.by_key else (0, 1)))
    return query - key + (queries.first - keys.first)


def by_lag(ref, lag: Array) -> Array:
    """`values[lag]` of every pair, for `[N]`; lag 0 where the key comes after the query."""
    return triton.load(ref.at[jnp.maximum(lag, 0)])


def look(queries: Queries, keys: Keys, lag: Array, prior_ref, shape: Shape) -> Pairs:
    """The quantities of a tile of pairs; keys after their query are masked."""
    product = products(queries.near, keys.near, shape)
    squared = jnp.maximum(of_queries(queries.squared, shape) + of_keys(keys.squared, shape) - 2.0 * product, 0.0)
    slope = lax.rsqrt(squared + COST_EPSILON)
    length = (squared + COST_EPSILON) * slope
    score = -of_queries(queries.stiffness, shape) * length
    if shape.prior:
        score = score + by_lag(prior_ref, lag)
    score = jnp.where(lag >= 0, score, HIDDEN)
    from_origin = of_queries(queries.with_origin, shape) + of_keys(keys.with_origin, shape)
    return Pairs(product + from_origin if shape.field else None, squared, slope, length, score)


def field_of(field_ref, lag: Array) -> Array:
    """`F(i − j)` of every pair, 0 where the key comes after the query."""
    return jnp.where(lag >= 0, by_lag(field_ref, lag), 0.0)


def level_of(precision: Precision, interpret: bool) -> lax.Precision | lax.DotAlgorithmPreset:
    """The precision that a product requests.

    On a GPU a float32 product is composed of three TF32 products, at nearly the same accuracy: Triton's own float32 products do
    not use tensor cores, and a tile of them does not fit in the registers.
    """
    if precision != "float32":
        return lax.Precision.DEFAULT
    return lax.Precision.HIGHEST if interpret else lax.DotAlgorithmPreset.TF32_TF32_F32_X3


def dot(a: Array, b: Array, contracted: tuple[int, int], shape: Shape) -> Array:
    """The product of two matrices over one axis of each, with the precisions of `numerics.contract`."""
    dtype = a.dtype
    if shape.precision == "bfloat16":
        a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    axes = ((contracted[0],), (contracted[1],)), ((), ())
    return lax.dot_general(a, b, axes, precision=shape.level, preferred_element_type=dtype)
