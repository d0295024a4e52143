"""The Bayesian pull of the field to its evidence, token by token, computed in chunks: the gated delta rule.

    T_t = ρ T_{t−1} + u_t k_tᵀ,      u_t = λ_t (v_t − ρ T_{t−1} k_t),      y_t = T_t q_t

`u_t k_tᵀ` is the pull `λ_t (E_t − T)` to the evidence `E_t = v_t k_tᵀ`, restricted to the direction of the key: for a unit key
and `λ = 1` the field returns `v_t` at `k_t`. In a chunk of `C` positions, `i` and `j` counted from 1, following a field `T₀`,

    (1 + A) u = λ ⊙ (v − ρ^i T₀ k),      A_ij = λ_i ρ^{i−j} ⟨k_i, k_j⟩ for j < i, else 0
    y_i = ρ^i T₀ q_i + Σ_{j≤i} ρ^{i−j} ⟨k_j, q_i⟩ u_j

so after one triangular inverse per chunk, all chunks in parallel, two small products carry the field from chunk to chunk.
Literature: the delta rule as linear attention, Schlag et al. 2021; with decay ("gated"), Yang et al. 2025; the chunked form (UT
transform), Yang et al. 2024. Source: docs/design.md section 3.

Shapes: `B` sequences, `L` positions, `H` heads, `m` dimensions of a key, `v` of a value, `N` chunks of `C` positions. Queries
and keys are `[B, L, H, m]`, values `[B, L, H, v]`, the pull λ `[B, L, H]`, the rate of ρ = e^{−rate} `[H]`, the field
`[B, H, m, v]`, which is Tᵀ.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from lior_jax.physics.numerics import Precision, contract

CHUNK = 32
"""Positions in a chunk."""


class DeltaCotangent(NamedTuple):
    """Cotangents of queries, keys, values, the pull and the rate."""

    queries: Array
    keys: Array
    values: Array
    pull: Array
    rate: Array


def delta(
    queries: Array, keys: Array, values: Array, pull: Array, rate: Array, precision: Precision = "float32", chunk: int = CHUNK
) -> Array:
    """The read-out `y` of every query, for sequences from their beginning: `[B, L, H, v]`."""
    return _joined(_run(queries, keys, values, pull, rate, None, precision, chunk).read, queries.shape[1])


def delta_step(rate: Array, field: Array, query: Array, key: Array, value: Array, pull: Array) -> tuple[Array, Array]:
    """One position: query and key `[B, H, m]`, value `[B, H, v]`, pull `[B, H]`. Returns the new field, and `y` `[B, H, v]`."""
    field = jnp.exp(-rate)[None, :, None, None] * field
    change = pull[..., None] * (value - contract("bhmv,bhm->bhv", field, key, "float32"))
    field = field + key[..., None] * change[:, :, None]
    return field, contract("bhmv,bhm->bhv", field, query, "float32")


def delta_more(
    queries: Array,
    keys: Array,
    values: Array,
    pull: Array,
    rate: Array,
    field: Array,
    lengths: Array,
    precision: Precision = "float32",
) -> tuple[Array, Array]:
    """Continue from a field by a chunk of positions.

    Args:
        field: `[B, H, m, v]`.
        lengths: `[B]`, how many of the chunk's positions each sequence has; the rest is padding and has no effect.

    Returns:
        The field after each sequence's last position, and `y` `[B, L, H, v]`.
    """
    length = queries.shape[1]
    run = _run(queries, keys, values, pull, rate, field, precision, min(CHUNK, length))
    age = (lengths[:, None] - 1 - jnp.arange(length)[None])[..., None, None]
    kept = jnp.where(age >= 0, jnp.exp(-rate[None, None, :, None] * jnp.maximum(age, 0)), 0)
    written = contract("bihm,bihv->bhmv", kept * keys, _joined(run.change, length), precision)
    gone = lengths[:, None, None, None]
    return jnp.exp(-rate[None, :, None, None] * gone) * field + written, _joined(run.read, length)


def delta_and_adjoint(
    queries: Array,
    keys: Array,
    values: Array,
    pull: Array,
    rate: Array,
    cotangent: Array,
    precision: Precision = "float32",
    chunk: int = CHUNK,
) -> tuple[Array, DeltaCotangent]:
    """`delta` and its adjoint in one pass, for a cotangent `[B, L, H, v]` of its result."""
    run, length = _run(queries, keys, values, pull, rate, None, precision, chunk), queries.shape[1]
    *by_position, c_rate = _run_adjoint(run, _chunked(cotangent, chunk), precision)
    queries, keys, values, pull = (_joined(x, length) for x in by_position)
    return _joined(run.read, length), DeltaCotangent(queries, keys, values, pull, c_rate)


# --- chunks ----------------------------------------------------------------------------------------------------------


class _Fading(NamedTuple):
    """Powers of ρ: `pairs` `[H, 1, C, C]` = ρ^{i−j}, 0 for j > i; `since` the start of the chunk, ρ^i, and `until` its end,
    ρ^{C−j}, `[H, 1, C, 1]`; over the `whole` chunk, ρ^C, `[H, 1, 1]`."""

    pairs: Array
    since: Array
    until: Array
    whole: Array


class _Run(NamedTuple):
    """All chunks `[B, H, N, C, …]`: the inputs; `overlap` `⟨k_i, k_j⟩` and `match` `⟨q_i, k_j⟩`, both with their decay; the
    `inverse` of 1 + A; the field before each chunk, `starts` `[B, H, N, m, v]`; the `change` u, and `read`, the result."""

    queries: Array
    keys: Array
    values: Array
    pull: Array
    fading: _Fading
    overlap: Array
    match: Array
    inverse: Array
    starts: Array
    change: Array
    read: Array


def _run(queries, keys, values, pull, rate, field: Array | None, precision: Precision, chunk: int) -> _Run:
    q, k, v, pull = (_chunked(x, chunk) for x in (queries, keys, values, pull[..., None]))
    fading = _fade(rate, chunk)
    overlap = fading.pairs[None] * contract("bhnim,bhnjm->bhnij", k, k, precision)
    match = fading.pairs[None] * contract("bhnim,bhnjm->bhnij", q, k, precision)
    inverse = _inverse(pull * overlap)
    alone, response = _split(_times(inverse, jnp.concatenate([pull * v, pull * fading.since[None] * k], -1)), v)
    writer, whole = fading.until[None] * k, fading.whole[None]

    def pass_on(field: Array, chunk_of: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        alone, response, writer = chunk_of
        change = alone - contract("bhim,bhmv->bhiv", response, field, precision)
        return whole * field + contract("bhim,bhiv->bhmv", writer, change, precision), (field, change)

    field = jnp.zeros((*k.shape[:2], k.shape[-1], v.shape[-1]), v.dtype) if field is None else field
    alone, response, writer = _scanned(alone, response, writer)
    _, (starts, change) = lax.scan(pass_on, field, (alone, response, writer))
    starts, change = _unscanned(starts), _unscanned(change)
    read = contract("bhnim,bhnmv->bhniv", fading.since[None] * q, starts, precision)
    read = read + contract("bhnij,bhnjv->bhniv", match, change, precision)
    return _Run(q, k, v, pull, fading, overlap, match, inverse, starts, change, read)


def _run_adjoint(run: _Run, cotangent: Array, precision: Precision) -> tuple[Array, Array, Array, Array, Array]:
    """Cotangents of `_run`'s queries, keys, values, pull `[B, H, N, C, …]` and rate `[H]`, for a cotangent of its result."""
    q, k, v, pull, fading, starts, change = (*run[:5], run.starts, run.change)
    since, until, whole = (x[None] for x in fading[1:])
    by_read = contract("bhnij,bhniv->bhnjv", run.match, cotangent, precision)
    alone, response = _split(_times(jnp.swapaxes(run.inverse, -1, -2), jnp.concatenate([by_read, until * k], -1)), v)
    reached = contract("bhnim,bhniv->bhnmv", since * q, cotangent, precision)

    def pass_back(c_field: Array, chunk_of: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        alone, response, reached, reader = chunk_of
        z = alone + contract("bhim,bhmv->bhiv", response, c_field, precision)
        return whole * c_field + reached - contract("bhim,bhiv->bhmv", reader, z, precision), (c_field, z)

    scanned = _scanned(alone, response, reached, pull * since * k)
    _, (c_ends, z) = lax.scan(pass_back, jnp.zeros_like(starts[:, :, 0]), scanned, reverse=True)
    c_ends, z = _unscanned(c_ends), _unscanned(z)  # z is the cotangent of the right-hand side.

    held = contract("bhnim,bhnmv->bhniv", k, starts, precision)  # T₀ k
    c_held = -pull * since * z
    c_system = -contract("bhniv,bhnjv->bhnij", z, change, precision)
    c_overlap = jnp.tril(pull * c_system, -1)
    c_pull = jnp.sum(z * (v - since * held), -1) + jnp.sum(jnp.tril(c_system * run.overlap, -1), -1)
    c_match = contract("bhniv,bhnjv->bhnij", cotangent, change, precision)

    by_key, by_query = fading.pairs[None] * c_overlap, fading.pairs[None] * c_match
    c_q_past = contract("bhniv,bhnmv->bhnim", cotangent, starts, precision)
    c_writer = contract("bhniv,bhnmv->bhnim", change, c_ends, precision)
    c_queries = since * c_q_past + contract("bhnij,bhnjm->bhnim", by_query, k, precision)
    c_keys = contract("bhniv,bhnmv->bhnim", c_held, starts, precision) + until * c_writer
    c_keys = c_keys + contract("bhnij,bhnjm->bhnim", by_key + jnp.swapaxes(by_key, -1, -2), k, precision)
    c_keys = c_keys + contract("bhnij,bhnim->bhnjm", by_query, q, precision)

    # Cotangent of the rate, through the exponents: i − j for a pair, and so on.
    steps = jnp.arange(1, k.shape[3] + 1, dtype=k.dtype)
    by_pair = c_overlap * run.overlap + c_match * run.match
    by_since = since * jnp.sum(c_q_past * q, -1, keepdims=True) + jnp.sum(c_held * held, -1, keepdims=True)
    by_until = until * jnp.sum(c_writer * k, -1, keepdims=True)
    exponents = jnp.sum(by_pair, (0, 2, 4)) - jnp.sum(by_pair, (0, 2, 3)) + jnp.sum(by_since, (0, 2, 4))
    exponents = exponents @ steps + jnp.sum(by_until, (0, 2, 4)) @ (len(steps) - steps)
    c_rate = -exponents - len(steps) * jnp.sum(whole[..., None, :, :] * c_ends * starts, (0, 2, 3, 4))
    return c_queries, c_keys, pull * z, c_pull, c_rate


def _fade(rate: Array, chunk: int) -> _Fading:
    steps = jnp.arange(1, chunk + 1, dtype=rate.dtype)
    slow, lag = -rate[:, None, None, None], (steps[:, None] - steps[None])[None, None]
    pairs = jnp.where(lag >= 0, jnp.exp(slow * jnp.maximum(lag, 0)), 0)
    since, until = (jnp.exp(slow * x[None, None, :, None]) for x in (steps, chunk - steps))
    return _Fading(pairs, since, until, jnp.exp(slow[:, 0] * chunk))


def _inverse(system: Array) -> Array:
    """`(1 + A)⁻¹` of strictly lower triangular A `[…, C, C]`, in float32 products.

    Doubles the block size at each step: `[P 0; R Q]⁻¹ = [P⁻¹ 0; −Q⁻¹ R P⁻¹ Q⁻¹]`. It is as stable as substitution and uses
    matrix products only: LAPACK's batched triangular solve can deadlock XLA's threads on a CPU.
    """
    place, size = jnp.arange(system.shape[-1]), 1
    inverse = jnp.broadcast_to(jnp.eye(len(place), dtype=system.dtype), system.shape)
    while size < len(place):
        block = place // size
        left_below = (block[:, None] == block[None] + 1) & (block % 2 == 1)[:, None]
        corner = jnp.where(left_below[None, None, None], system, 0)
        corner = corner if size == 1 else _times(_times(inverse, corner), inverse)
        inverse, size = inverse - corner, 2 * size
    return inverse


def _times(a: Array, b: Array) -> Array:
    return contract("bhnij,bhnjk->bhnik", a, b, "float32")


def _split(solved: Array, values: Array) -> tuple[Array, Array]:
    return solved[..., : values.shape[-1]], solved[..., values.shape[-1] :]


def _chunked(x: Array, chunk: int) -> Array:
    """`[B, L, H, …]` as `[B, H, N, C, …]`; the last chunk is padded with zeros, which have no effect."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % chunk), *((0, 0),) * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 3, 1)


def _joined(x: Array, length: int) -> Array:
    """`[B, H, N, C, …]` as `[B, L, H, …]`."""
    return jnp.moveaxis(x, 1, 3).reshape(x.shape[0], -1, x.shape[1], *x.shape[4:])[:, :length]


def _scanned(*chunks: Array) -> tuple[Array, ...]:
    return tuple(jnp.moveaxis(x, 2, 0) for x in chunks)


def _unscanned(x: Array) -> Array:
    return jnp.moveaxis(x, 0, 2)
