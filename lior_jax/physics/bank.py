"""Geodesic retrieval from a long bank of points: blocks of keys and an online softmax, so that no row of costs is kept.

The streaming form of `retrieval`, for banks without order in time. Source: DESIGN.md section 3, `retrieval_step`.

Shapes: `Q` queries, `K` keys, `m` whitened chart dimensions, `v` value dimensions.
"""

import jax.numpy as jnp
from jax import Array, lax

from lior_jax.physics.numerics import Precision, contract
from lior_jax.physics.retrieval import geodesic_cost


def retrieve_from_bank(
    queries: Array,
    keys: Array,
    values: Array,
    inverse_temperature: Array,
    block: int = 4096,
    resilience: Array | None = None,
    precision: Precision = "float32",
) -> tuple[Array, Array]:
    """Boltzmann mean of the values by the geodesic cost of their keys: `Σ_j w_j v_j`, `w_j ∝ exp(−β R cost_j)`.

    Args:
        queries: whitened chart points, `[Q, m]`.
        keys: `[K, m]`, `K ≥ 1`.
        values: `[K, v]`.
        inverse_temperature: `[]`, β.
        block: keys looked at together; memory is `Q × block`.
        resilience: `R` of every query, `[Q]`; None for 1.

    Returns:
        What is retrieved, `[Q, v]`, and the logarithm of the partition function `ln Σ_j exp(−β R cost_j)`, `[Q]`, with
        which the results of several banks can be mixed.
    """
    count, block = keys.shape[0], min(block, keys.shape[0])
    # Distances are measured from a point of the bank, or the expanded square would cancel far from the origin.
    origin = keys[:1]
    queries, keys = queries - origin, keys - origin
    missing = -count % block
    keys, values = (jnp.pad(x, ((0, missing), (0, 0))).reshape(-1, block, x.shape[-1]) for x in (keys, values))
    inside = (jnp.arange(count + missing) < count).reshape(-1, block)
    beta = inverse_temperature if resilience is None else inverse_temperature * resilience[:, None]
    q_squared = jnp.sum(queries * queries, -1, keepdims=True)

    def look(seen, piece):
        highest, total, mean = seen
        keys, values, inside = piece
        product = contract("qm,km->qk", queries, keys, precision)
        squared = jnp.maximum(q_squared + jnp.sum(keys * keys, -1)[None] - 2 * product, 0)
        scores = jnp.where(inside[None], -beta * geodesic_cost(squared), -jnp.inf)
        raised = jnp.maximum(highest, jnp.max(scores, -1))
        weight, fade = jnp.exp(scores - raised[:, None]), jnp.exp(highest - raised)
        mean = fade[:, None] * mean + contract("qk,kv->qv", weight, values, precision)
        return (raised, fade * total + jnp.sum(weight, -1), mean), None

    nothing = (
        jnp.full(queries.shape[:1], -jnp.inf, queries.dtype),
        jnp.zeros(queries.shape[:1], queries.dtype),
        jnp.zeros((queries.shape[0], values.shape[-1]), queries.dtype),
    )
    (highest, total, mean), _ = lax.scan(look, nothing, (keys, values, inside))
    return mean / total[:, None], highest + jnp.log(total)
