"""The adjoint of retrieval as kernels that recompute the weights instead of storing them (FlashAttention-2, Dao 2023).

With the cotangent `c_ij = ⟨c_i, v_j⟩` of the mixing weights, Boltzmann weights `w`, and `D_i` the product of `c_i` with the
Boltzmann mean:

    of the score    s̄_ij = w_ij (c_ij − D_i)            of g      −½ β R_i s̄_ij / sqrt(g_ij) where the square is positive
    of the product  Ḡ_ij = F(i − j) c_ij                 of β R_i  −Σ_j s̄_ij sqrt(g_ij)

`∂g = 2 (q_i − k_j)`, so both points get a cotangent of `p_ij = −β R_i s̄_ij / sqrt(g_ij)` along it. A program sums the
cotangents of its tile of keys over the queries after it, or of its tile of queries over the keys before it; nothing is
accumulated across programs, so results are deterministic. Sums by lag have programs of their own: the tiles of one offset
accumulate in place, over sequences too.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from lior_jax.kernels.forward import own_tile
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
    of_queries,
    products,
    row,
    rows,
    store_rows,
)


class Rows(NamedTuple):
    """Row data of a tile of queries: `cotangent` `[T, v]` of the retrieved means; `mean` `[T]`, its product with the Boltzmann
    mean; `log` `[T]`, the log-sum-exp of the scores, in bits."""

    cotangent: Array
    mean: Array
    log: Array


class Cotangents(NamedTuple):
    """Cotangents of a tile of pairs, `[T, T]` each: their `weight`; `s̄` of the `score`; `Ḡ` of the `product`, or None without
    a field; the `pull`; and the mixing weights of the values, `mix`, with their cotangent `c`, `mixing`."""

    weight: Array
    score: Array
    product: Array | None
    pull: Array
    mix: Array
    mixing: Array


def load_rows(cotangent_ref, mean_ref, log_ref, index, shape: Shape) -> Rows:
    return Rows(rows(cotangent_ref, index, shape, shape.values), column(mean_ref, index, shape), column(log_ref, index, shape))


def pair_cotangents(queries: Queries, keys: Keys, own: Rows, prior_ref, field_ref, shape: Shape) -> tuple[Pairs, Cotangents]:
    lag = lags(queries, keys, shape)
    pairs = look(queries, keys, lag, prior_ref, shape)
    weight = jnp.exp2(pairs.score - of_queries(own.log, shape))
    mixing = products(own.cotangent, keys.values, shape)
    score = weight * (mixing - of_queries(own.mean, shape))
    pull = jnp.where(pairs.squared > 0, -of_queries(LN2 * queries.stiffness, shape) * score * pairs.slope, 0.0)
    if not shape.field:
        return pairs, Cotangents(weight, score, None, pull, weight, mixing)
    assert pairs.product is not None  # set whenever `shape.field` is
    field = field_of(field_ref, lag)
    return pairs, Cotangents(weight, score, field * mixing, pull, weight + field * pairs.product, mixing)


def keys_kernel(
    q_ref,
    k_ref,
    v_ref,
    stiffness_ref,
    prior_ref,
    field_ref,
    cotangent_ref,
    mean_ref,
    log_ref,
    c_k_ref,
    c_v_ref,
    *,
    shape: Shape,
    tiles: int,
) -> None:
    """Cotangents of one tile of keys and values, of one head of one sequence, from the queries that see them."""
    shape = shape._replace(by_key=True)
    own, origin = pl.program_id(0), row(k_ref, shape.points)
    keys = load_keys(k_ref, v_ref, origin, own, shape)

    def more(index, carry):
        c_near, by_pull, by_product, c_values = carry
        queries = load_queries(q_ref, stiffness_ref, origin, index, shape)
        of_rows = load_rows(cotangent_ref, mean_ref, log_ref, index, shape)
        _, found = pair_cotangents(queries, keys, of_rows, prior_ref, field_ref, shape)
        c_values = c_values + dot(found.mix, of_rows.cotangent, (1, 0), shape)
        c_near = c_near + dot(_of_product(found), queries.near, (1, 0), shape)
        return c_near, by_pull + jnp.sum(found.pull, 1), _plus_sum(by_product, found.product), c_values

    none = jnp.zeros((shape.tile,), keys.near.dtype)
    start = jnp.zeros_like(keys.near), none, none, jnp.zeros_like(keys.values)
    *summed, c_values = lax.fori_loop(own, tiles, more, start)
    store_rows(c_k_ref, _of_points(keys.near, origin, *summed), shape.points)
    store_rows(c_v_ref, c_values, shape.values)


def queries_kernel(
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
    c_stiffness_ref,
    *,
    shape: Shape,
    tiles: int,
) -> None:
    """Cotangents of one tile of queries and of their stiffness `β R` (not in bits), of one head of one sequence, from the keys
    visible to them."""
    own, origin = own_tile(tiles), row(k_ref, shape.points)
    queries = load_queries(q_ref, stiffness_ref, origin, own, shape)
    of_rows = load_rows(cotangent_ref, mean_ref, log_ref, own, shape)

    def more(index, carry):
        c_near, by_pull, by_product, c_stiffness, excess, mean_length = carry
        keys = load_keys(k_ref, v_ref, origin, index, shape)
        pairs, found = pair_cotangents(queries, keys, of_rows, prior_ref, field_ref, shape)
        c_near = c_near + dot(_of_product(found), keys.near, (1, 0), shape)
        c_stiffness = c_stiffness - jnp.sum(found.score * pairs.length, 1)
        excess, mean_length = excess + jnp.sum(found.score, 1), mean_length + jnp.sum(found.weight * pairs.length, 1)
        by_pull, by_product = by_pull + jnp.sum(found.pull, 1), _plus_sum(by_product, found.product)
        return c_near, by_pull, by_product, c_stiffness, excess, mean_length

    none = jnp.zeros((shape.tile,), queries.near.dtype)
    start = jnp.zeros_like(queries.near), none, none, none, none, none
    *summed, c_stiffness, excess, mean_length = lax.fori_loop(0, own + 1, more, start)
    store_rows(c_q_ref, _of_points(queries.near, origin, *summed), shape.points)
    # The s̄ of a row sum to zero up to rounding. Lengths in a row are nearly equal, so that error would be as large as the
    # result; it is removed here.
    c_stiffness_ref[...] = c_stiffness + excess * mean_length


def _of_product(found: Cotangents) -> Array:
    """The cotangent of the product of the points relative to the origin."""
    return -found.pull if found.product is None else found.product - found.pull


def _plus_sum(total: Array, values: Array | None) -> Array:
    return total if values is None else total + jnp.sum(values, 1)


def _of_points(near: Array, origin: Array, c_near: Array, by_pull: Array, by_product: Array) -> Array:
    """Cotangent of points, from the products' cotangents and the sums over their pairs."""
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
        if pairs.product is not None:
            by_field = by_field + found.mixing * pairs.product
        return by_prior + found.score, by_field

    nothing = jnp.zeros((shape.tile, shape.tile), q_ref.dtype)
    by_prior, by_field = lax.fori_loop(0, sequences, one_sequence, (nothing, nothing))
    triton.store(c_prior_ref.at[:, :], by_prior)
    triton.store(c_field_ref.at[:, :], by_field)
