"""Geodesic retrieval from a large bank of points: blocks of keys and an online softmax (Milakov and Gimelshein 2018), so that
no full row of costs is stored.

The streaming form of `retrieval`, for banks without temporal order. Source: docs/design.md section 3, `retrieval_step`.

Shapes: `Q` queries, `K` keys, `m` whitened chart dimensions, `v` value dimensions, `V` labels.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from lior_jax.physics.numerics import Precision, contract
from lior_jax.physics.retrieval import geodesic_length

_SCORES_AT_ONCE = 2**18
"""Queries times keys in a block: 1 MiB of scores, which fits in a core's cache."""
_CHUNK = 32
"""Keys per chunk in `nearest`, which keeps only the smallest distance of each chunk."""


def retrieve_from_bank(
    queries: Array,
    keys: Array,
    values: Array,
    inverse_temperature: Array,
    block: int | None = None,
    resilience: Array | None = None,
    precision: Precision = "float32",
) -> tuple[Array, Array]:
    """Boltzmann mean of the values under the geodesic costs of their keys: `Σ_j w_j v_j`, `w_j ∝ exp(−β R cost_j)` (tool).

    Args:
        queries: whitened chart points, `[Q, m]`.
        keys: `[K, m]`, `K ≥ 1`.
        values: `[K, v]`.
        inverse_temperature: `[]`, β.
        block: keys processed together, at a memory cost of `Q × block` scores; by default as many as fit in the cache.
        resilience: `R` of every query, `[Q]`; None for 1.

    Returns:
        The retrieved means, `[Q, v]`, and the log partition function `ln Σ_j exp(−β R cost_j)`, `[Q]`, from which the results
        of several banks can be combined.
    """
    beta = inverse_temperature if resilience is None else inverse_temperature * resilience[None]

    def gather(weight: Array, part: Array) -> Array:
        return contract("kq,kv->vq", weight, part, precision)

    sums, total, highest = _stream(queries, keys, values, beta, len(keys), block, gather, values.shape[-1], precision)
    return (sums / total[None]).T, highest + jnp.log(total)


def retrieve_labels(
    queries: Array,
    keys: Array,
    labels: Array,
    inverse_temperature: Array | float,
    labels_count: int,
    present: Array | int | None = None,
    block: int | None = None,
    precision: Precision = "float32",
) -> tuple[Array, Array]:
    """Retrieve labels instead of values from a bank: the Boltzmann weight of each label.

    Args:
        labels: `[K]` integers below `labels_count` = `V`.
        present: `[]`, at least 1: only the first `present` keys are used, and the run time scales with them; all by default.

    Returns:
        `ln Σ_{j: label_j = v} w_j`, `[Q, V]`, −∞ for labels without keys; and the log partition function, `[Q]`.
    """

    def gather(weight: Array, part: Array) -> Array:
        return jax.ops.segment_sum(weight, part, labels_count)

    present = len(keys) if present is None else present
    beta = jnp.asarray(inverse_temperature)
    sums, total, highest = _stream(queries, keys, labels, beta, present, block, gather, labels_count, precision)
    return jnp.log(sums / total[None]).T, highest + jnp.log(total)


def nearest(
    queries: Array,
    keys: Array,
    count: int,
    present: Array | int | None = None,
    block: int | None = None,
    precision: Precision = "float32",
) -> tuple[Array, Array]:
    """The keys of smallest geodesic cost: an exact search.

    A first pass keeps the smallest distance of each chunk of keys. The nearest `count` keys lie in the `count` chunks with the
    smallest of these, and only those chunks are searched key by key.

    Args:
        queries, keys: `[Q, m]` and `[K, m]`.
        count: from 1 to `K`.
        present: `[]`, only the first `present` keys are used; all by default.

    Returns:
        Indices of the keys, `[Q, count]`, and their costs, ascending; −1 and ∞ past the last present key.
    """
    size, block = len(keys), _block_size(block, queries, keys)
    chunk = math.gcd(block, _CHUNK)
    present = size if present is None else present
    origin = keys[:1]
    begins = jnp.arange(0, size, block)

    def look(begin):
        near, place = _cut(keys, begin, block)
        squared = _squared(queries - origin, near - origin, precision)
        squared = jnp.where(((place >= begin) & (place < present))[:, None], squared, jnp.inf)
        return jnp.min(squared.reshape(-1, chunk, len(queries)), 1), place[::chunk], jnp.full(block // chunk, begin)

    smallest, first, begin = (x.reshape(-1, *x.shape[2:]) for x in lax.map(look, begins))
    _, chosen = lax.top_k(-smallest.T, min(count, len(smallest)))
    place = (first[chosen][..., None] + jnp.arange(chunk)[None, None]).reshape(len(queries), -1)
    known = (place >= jnp.repeat(begin[chosen], chunk, axis=-1)) & (place < present)
    squared = jnp.where(known, jnp.sum((keys[place] - queries[:, None]) ** 2, -1), jnp.inf)
    best, order = lax.top_k(-squared, count)
    cost = geodesic_length(-best)
    return jnp.where(jnp.isfinite(cost), jnp.take_along_axis(place, order, -1), -1), cost


def _stream(
    queries: Array,
    keys: Array,
    payload: Array,
    beta: Array,
    present: Array | int,
    block: int | None,
    gather: Callable[[Array, Array], Array],
    width: int,
    precision: Precision,
) -> tuple[Array, Array, Array]:
    """Sum `gather(weight [block, Q], payload of the block) → [width, Q]` over the first `present` keys.

    Returns:
        The sums and the sum of all weights `[Q]`, both divided by `exp(highest)`, and `highest` `[Q]`.
    """
    block = _block_size(block, queries, keys)
    # Points are taken relative to a point of the bank: far from the origin the expanded square would cancel.
    origin = keys[:1]
    queries = queries - origin
    scale = -jnp.asarray(beta, queries.dtype)

    def look(index, seen):
        highest, total, sums = seen
        begin = index * block
        near, place = _cut(keys, begin, block)
        cost = geodesic_length(_squared(queries, near - origin, precision))
        scores = jnp.where(((place >= begin) & (place < present))[:, None], scale * cost, -jnp.inf)
        raised = jnp.maximum(highest, jnp.max(scores, 0))
        weight, fade = jnp.exp(scores - raised[None]), jnp.exp(highest - raised)
        part = gather(weight, _cut(payload, begin, block)[0])
        return raised, fade * total + jnp.sum(weight, 0), fade[None] * sums + part

    lowest = jnp.finfo(queries.dtype).min  # not −∞: −∞ − (−∞) is NaN
    nothing = jnp.zeros((width, len(queries)), queries.dtype)
    begun = jnp.full(len(queries), lowest, queries.dtype), nothing[0], nothing
    highest, total, sums = lax.fori_loop(0, -(-present // block), look, begun)
    return sums, total, highest


def _block_size(block: int | None, queries: Array, keys: Array) -> int:
    block = max(_CHUNK, _SCORES_AT_ONCE // len(queries) // _CHUNK * _CHUNK) if block is None else block
    return min(block, 16384, len(keys))


def _cut(x: Array, begin: Array, block: int) -> tuple[Array, Array]:
    """Rows of `x` from `begin` on, and their indices `[block]`; the last block overlaps the one before it."""
    begin = jnp.minimum(begin, len(x) - block)
    return lax.dynamic_slice_in_dim(x, begin, block), begin + jnp.arange(block)


def _squared(queries: Array, keys: Array, precision: Precision) -> Array:
    """`‖q − k‖²`, `[K, Q]`."""
    product = contract("km,qm->kq", keys, queries, precision)
    return jnp.maximum(jnp.sum(keys * keys, -1)[:, None] + jnp.sum(queries * queries, -1)[None] - 2 * product, 0)
