"""Retrieval as a kernel: one pass over the keys of each tile of queries, with an online softmax (Milakov and Gimelshein 2018;
FlashAttention-2, Dao 2023), and the statistics of every row that the adjoint needs.

A program handles one tile of queries of one head of one sequence; its refs of points and values are `[L, …]`.
"""

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from lior_jax.kernels.tiles import (
    HIDDEN,
    Shape,
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


def retrieve_kernel(q_ref, k_ref, v_ref, stiffness_ref, prior_ref, field_ref, y_ref, *, shape: Shape, tiles: int) -> None:
    """The retrieved means, `y_ref` `[T, v]`."""
    refs = q_ref, k_ref, v_ref, stiffness_ref, prior_ref, field_ref
    boltzmann, read, _ = _retrieve(*refs, own_tile(tiles), shape)
    store_rows(y_ref, boltzmann + read, shape.values)


def statistics_kernel(
    q_ref,
    k_ref,
    v_ref,
    stiffness_ref,
    prior_ref,
    field_ref,
    cotangent_ref,
    y_ref,
    mean_ref,
    log_ref,
    *,
    shape: Shape,
    tiles: int,
) -> None:
    """The retrieved means; and for every row, `[T]`, the product of its cotangent with the Boltzmann mean of the values, and
    the log-sum-exp of its scores, in bits."""
    own = own_tile(tiles)
    boltzmann, read, log = _retrieve(q_ref, k_ref, v_ref, stiffness_ref, prior_ref, field_ref, own, shape)
    store_rows(y_ref, boltzmann + read, shape.values)
    mean_ref[...] = jnp.sum(rows(cotangent_ref, own, shape, shape.values) * boltzmann, 1)
    log_ref[...] = log


def own_tile(tiles: int) -> Array:
    """The tile of a program: tiles with the most keys start first."""
    return tiles - 1 - pl.program_id(0)


def _retrieve(q_ref, k_ref, v_ref, stiffness_ref, prior_ref, field_ref, own: Array, shape: Shape) -> tuple[Array, Array, Array]:
    """The Boltzmann mean of the values and the field's read-out, `[T, v]` each, and the log-sum-exp of the scores."""
    origin = row(k_ref, shape.points)
    queries = load_queries(q_ref, stiffness_ref, origin, own, shape)
    dtype = queries.near.dtype

    def more(index, carry):
        top, total, boltzmann, read = carry
        keys = load_keys(k_ref, v_ref, origin, index, shape)
        lag = lags(queries, keys, shape)
        pairs = look(queries, keys, lag, prior_ref, shape)
        higher = jnp.maximum(top, jnp.max(pairs.score, 1))
        weight, fade = jnp.exp2(pairs.score - higher[:, None]), jnp.exp2(top - higher)
        boltzmann = fade[:, None] * boltzmann + dot(weight, keys.values, (1, 0), shape)
        if pairs.product is not None:
            read = read + dot(field_of(field_ref, lag) * pairs.product, keys.values, (1, 0), shape)
        return higher, fade * total + jnp.sum(weight, 1), boltzmann, read

    nothing = jnp.zeros((shape.tile, v_ref.shape[-1]), dtype)
    start = jnp.full((shape.tile,), HIDDEN, dtype), jnp.zeros((shape.tile,), dtype), nothing, nothing
    top, total, boltzmann, read = lax.fori_loop(0, own + 1, more, start)
    return boltzmann / total[:, None], read, top + jnp.log2(total)
