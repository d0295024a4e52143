"""Geodesic retrieval: Boltzmann weights of the metric distance from a query to every earlier key.

    cost_ij = R_i sqrt(max(g(k_j − q_i, k_j − q_i), 0) + ε),   w_ij ∝ K(i − j) exp(−β cost_ij),   y_i = Σ_{j≤i} w_ij v_j

Queries and keys come whitened (`geometry.whiten`), so `g` is a squared Euclidean distance and costs one matrix
product. The resilience `R` is 1. Source: the audit's `retrieval_step`, and DESIGN.md section 2.5.

Shapes: `B` sequences, `L` positions, `H` heads, `m` whitened chart dimensions, `v` value dimensions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lior_jax.physics.numerics import Precision, contract

COST_EPSILON = 1e-4


class Couplings(NamedTuple):
    """What a head weighs by: `inverse_temperature` β, and the lag prior's `lag_rate` ξ and `lag_order` δ, each `[H]`."""

    inverse_temperature: Array
    lag_rate: Array
    lag_order: Array


def squared_distance(queries: Array, keys: Array, precision: Precision = "float32") -> Array:
    """`‖q_i − k_j‖²` `[B, H, L, L]` for whitened `[B, L, H, m]`, from one matrix product.

    Both are first measured from the first key, or the expansion `q² + k² − 2 q·k` would cancel for points that
    lie far from the origin and close together. The first key is visible to every query, so causality is kept
    to the last bit.
    """
    queries, keys = _centre(queries, keys)
    query_norms, key_norms = (jnp.sum(x * x, -1).transpose(0, 2, 1) for x in (queries, keys))
    norms = query_norms[..., None] + key_norms[:, :, None]
    return jnp.maximum(norms - 2 * contract("bihm,bjhm->bhij", queries, keys, precision), 0)


def _centre(queries: Array, keys: Array) -> tuple[Array, Array]:
    return queries - keys[:, :1], keys - keys[:, :1]


def geodesic_cost(squared: Array) -> Array:
    """`sqrt(g + ε)`: the length of the displacement, smooth at zero."""
    return jnp.sqrt(squared + COST_EPSILON)


def lag_features(length: int, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Lag `Δ = i − j` and `ln(1 + Δ)`, each `[L, L]`, zero above the diagonal."""
    position = jnp.arange(length)
    lag = jnp.maximum(position[:, None] - position[None], 0).astype(dtype)
    return lag, jnp.log1p(lag)


def log_prior(couplings: Couplings, length: int) -> Array:
    """`ln K(Δ)` of the lag kernel `K(Δ) = (1 + Δ)^{−δ} e^{−ξΔ}`, a power law with an exponential cut-off: `[H, L, L]`."""
    lag, log_lag = lag_features(length, couplings.lag_rate.dtype)
    return -couplings.lag_rate[:, None, None] * lag[None] - couplings.lag_order[:, None, None] * log_lag[None]


def weights(cost: Array, inverse_temperature: Array, prior: Array) -> Array:
    """Causal Boltzmann weights `w_ij ∝ exp(prior_ij − β_h cost_ij)` for `j ≤ i`, zero for `j > i`.

    Args:
        cost: `[B, H, L, L]`.
        inverse_temperature: `[H]`, β.
        prior: `[H, L, L]`, added to the exponent.
    """
    scores = prior[None] - inverse_temperature[None, :, None, None] * cost
    causal = jnp.tril(jnp.ones(cost.shape[-2:], bool))
    return jax.nn.softmax(jnp.where(causal[None, None], scores, -jnp.inf), axis=-1)


def retrieve(queries: Array, keys: Array, values: Array, couplings: Couplings, precision: Precision = "float32") -> Array:
    """What each query retrieves from the positions up to its own.

    Args:
        queries, keys: whitened chart points, `[B, L, H, m]`.
        values: `[B, L, H, v]`.
        couplings: each `[H]`.

    Returns:
        `[B, L, H, v]`.
    """
    cost = geodesic_cost(squared_distance(queries, keys, precision))
    weight = weights(cost, couplings.inverse_temperature, log_prior(couplings, queries.shape[1]))
    return contract("bhij,bjhv->bihv", weight, values, precision)


def retrieve_adjoint(
    queries: Array, keys: Array, values: Array, couplings: Couplings, cotangent: Array, precision: Precision = "float32"
) -> tuple[Array, tuple[Array, Array, Array, Couplings]]:
    """`retrieve` and its adjoint in one pass.

    Args:
        cotangent: `[B, L, H, v]`, of what `retrieve` returns; the others as there.

    Returns:
        What `retrieve` returns, and the cotangents of queries, keys, values and couplings.
    """
    beta = couplings.inverse_temperature
    squared = squared_distance(queries, keys, precision)
    cost = geodesic_cost(squared)
    weight = weights(cost, beta, log_prior(couplings, queries.shape[1]))
    retrieved = contract("bhij,bjhv->bihv", weight, values, precision)

    c_values = contract("bhij,bihv->bjhv", weight, cotangent, precision)
    c_weight = contract("bihv,bjhv->bhij", cotangent, values, precision)
    c_score = weight * (c_weight - jnp.sum(weight * c_weight, -1, keepdims=True))
    lag, log_lag = lag_features(queries.shape[1], cost.dtype)
    score_by_lag = jnp.sum(c_score, axis=0)
    c_couplings = Couplings(
        inverse_temperature=-jnp.sum(c_score * cost, axis=(0, 2, 3)),
        lag_rate=-jnp.sum(score_by_lag * lag[None], axis=(1, 2)),
        lag_order=-jnp.sum(score_by_lag * log_lag[None], axis=(1, 2)),
    )

    # d cost / d squared = 1 / (2 cost); the 2 goes with the gradient 2 (q − k) of the squared distance.
    pull = jnp.where(squared > 0, -beta[None, :, None, None] * c_score / cost, 0)
    queries, keys = _centre(queries, keys)
    row, column = jnp.sum(pull, -1).transpose(0, 2, 1)[..., None], jnp.sum(pull, -2).transpose(0, 2, 1)[..., None]
    c_queries = row * queries - contract("bhij,bjhm->bihm", pull, keys, precision)
    c_keys = column * keys - contract("bhij,bihm->bjhm", pull, queries, precision)
    return retrieved, (c_queries, c_keys, c_values, c_couplings)
