"""The adjoint of retrieval as kernels that keep no weight and compute it again (FlashAttention-2, Dao 2023).

With the cotangent `c_ij = ⟨c_i, v_j⟩` of what values are mixed by, weights `w`, and `D_i` the product of `c_i` with the
Boltzmann mean:

    of the score    s̄_ij = w_ij (c_ij − D_i)            of g      −½ β R_i s̄_ij / sqrt(g_ij) where the square is positive
    of the product  Ḡ_ij = F(i − j) c_ij                 of β R_i  −Σ_j s̄_ij sqrt(g_ij)

`∂g = 2 (q_i − k_j)`, so both points take the pull `p_ij = −β R_i s̄_ij / sqrt(g_ij)` along it. A program gathers what its tile
of keys gets from the queries after it, then what the same tile of queries gets from the keys before it: all programs have
the same number of tiles, and nothing is added up across programs, so results are the same from run to run. Sums by lag are
gathered by programs of their own: those of one offset of tiles add up in place, over sequences too.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from lior_jax.kernels.tiles import (
    LN2,
    Keys,
    OfSequence,
    Pairs,
    Queries,
    Shape,
    column,
    dot,
    field_of,
    lags,
    load_keys,
    load_queries,
    look,
    row,
    rows,
    store_rows,
)


class Rows(NamedTuple):
    """Of a tile of queries: cotangent `[T, v]` of what they retrieve; its product `D` with the Boltzmann mean, and the logarithm
    of their scores' sum, `[T]`."""

    cotangent: Array
    mean: Array
    log: Array


class Cotangents(NamedTuple):
    """Of a tile of pairs, `[T, T]` each: of the `score`; of the product, or None without a field; `pull`; and what values are
    multiplied by, `mix`, with what is multiplied by `c_ij` alone, `field`, or None."""

    score: Array
    product: Array | None
    pull: Array
    mix: Array
    mixing: Array


def load_rows(cotangent_ref, mean_ref, log_ref, index, shape: Shape) -> Rows:
    return Rows(
        rows(cotangent_ref, index, shape, shape.values), column(mean_ref, index, shape), column(log_ref, index, shape)
    )


def pair_cotangents(queries: Queries, keys: Keys, own: Rows, prior_ref, field_ref, shape: Shape) -> tuple[Pairs, Cotangents]:
    lag = lags(queries, keys, shape)
    pairs = look(queries, keys, lag, prior_ref, shape)
    weight = jnp.exp2(pairs.score - own.log[:, None])
    mixing = dot(own.cotangent, keys.values, (1, 1), shape.precision)
    score = weight * (mixing - own.mean[:, None])
    pull = jnp.where(pairs.squared > 0, -(LN2 * queries.stiffness)[:, None] * score * pairs.slope, 0.0)
    if not shape.field:
        return pairs, Cotangents(score, None, pull, weight, mixing)
    field = field_of(field_ref, lag)
    return pairs, Cotangents(score, field * mixing, pull, weight + field * pairs.product, mixing)


def points_kernel(
    q_ref,
    k_ref,
    v_ref,
    stiffness_ref,
    prior_ref,
    field_ref,
    cotangent_ref,
    mean_ref,
    log_ref,
    c_q_ref,
    c_k_ref,
    c_v_ref,
    c_stiffness_ref,
    *,
    shape: Shape,
    tiles: int,
) -> None:
    """Cotangents of one tile of queries, keys, values and stiffness `β R` (not in bits), of one head of one sequence."""
    own, origin = pl.program_id(0), row(k_ref, shape.points)

    def queries_at(index) -> tuple[Queries, Rows]:
        queries = load_queries(q_ref, stiffness_ref, origin, index, shape)
        return queries, load_rows(cotangent_ref, mean_ref, log_ref, index, shape)

    def by_query(index, carry):
        c_near, by_pull, by_product, c_values = carry
        queries, of_rows = queries_at(index)
        _, found = pair_cotangents(queries, keys, of_rows, prior_ref, field_ref, shape)
        c_values = c_values + dot(found.mix, of_rows.cotangent, (0, 0), shape.precision)
        c_near = c_near + dot(_of_product(found), queries.near, (0, 0), shape.precision)
        return c_near, by_pull + jnp.sum(found.pull, 0), _plus_sum(by_product, found.product, 0), c_values

    def by_key(index, carry):
        c_near, by_pull, by_product, c_stiffness = carry
        keys = load_keys(k_ref, v_ref, origin, index, shape)
        pairs, found = pair_cotangents(queries, keys, of_rows, prior_ref, field_ref, shape)
        c_near = c_near + dot(_of_product(found), keys.near, (1, 0), shape.precision)
        c_stiffness = c_stiffness - jnp.sum(found.score * pairs.length, 1)
        return c_near, by_pull + jnp.sum(found.pull, 1), _plus_sum(by_product, found.product, 1), c_stiffness

    keys = load_keys(k_ref, v_ref, origin, own, shape)
    none = jnp.zeros((shape.tile,), keys.near.dtype)
    start = jnp.zeros_like(keys.near), none, none, jnp.zeros_like(keys.values)
    *summed, c_values = lax.fori_loop(own, tiles, by_query, start)
    store_rows(c_k_ref, _of_points(keys.near, origin, *summed), shape.points)
    store_rows(c_v_ref, c_values, shape.values)

    queries, of_rows = queries_at(own)
    *summed, c_stiffness = lax.fori_loop(0, own + 1, by_key, (jnp.zeros_like(queries.near), none, none, none))
    store_rows(c_q_ref, _of_points(queries.near, origin, *summed), shape.points)
    c_stiffness_ref[...] = c_stiffness


def _of_product(found: Cotangents) -> Array:
    """The cotangent of the product of the points as measured from the origin."""
    return -found.pull if found.product is None else found.product - found.pull


def _plus_sum(total: Array, values: Array | None, axis: int) -> Array:
    return total if values is None else total + jnp.sum(values, axis)


def _of_points(near: Array, origin: Array, c_near: Array, by_pull: Array, by_product: Array) -> Array:
    """Cotangent of points, from what the products gave and the sums over their pairs."""
    return c_near + by_pull[:, None] * near + by_product[:, None] * origin


def lags_kernel(
    q_ref,
    k_ref,
    v_ref,
    stiffness_ref,
    prior_ref,
    field_ref,
    cotangent_ref,
    mean_ref,
    log_ref,
    c_prior_ref,
    c_field_ref,
    *,
    shape: Shape,
    tiles: int,
) -> None:
    """Cotangents of prior and field of every pair of one head whose key lies one number of tiles before its query, summed over
    some sequences and over all such tiles: `[T, T]` each. Refs of points and values are `[sequences, L, …]`."""
    offset, sequences = pl.program_id(0), q_ref.shape[0]

    def one_sequence(sequence, carry):
        of = [OfSequence(ref, sequence) for ref in (q_ref, k_ref, v_ref, stiffness_ref, cotangent_ref, mean_ref, log_ref)]
        return lax.fori_loop(offset, tiles, lambda index, carry: one_tile(of, index, carry), carry)

    def one_tile(of, index, carry):
        q, k, v, stiffness, cotangent, mean, log = of
        origin, (by_prior, by_field) = row(k, shape.points), carry
        queries = load_queries(q, stiffness, origin, index, shape)
        keys = load_keys(k, v, origin, index - offset, shape)
        of_rows = load_rows(cotangent, mean, log, index, shape)
        pairs, found = pair_cotangents(queries, keys, of_rows, prior_ref, field_ref, shape)
        return by_prior + found.score, by_field + found.mixing * pairs.product if shape.field else by_field

    nothing = jnp.zeros((shape.tile, shape.tile), q_ref.dtype)
    by_prior, by_field = lax.fori_loop(0, sequences, one_sequence, (nothing, nothing))
    triton.store(c_prior_ref.at[:, :], by_prior)
    triton.store(c_field_ref.at[:, :], by_field)
