"""Geodesic retrieval from a large bank of points: tiles of keys and an online softmax (Milakov and Gimelshein 2018), so that
no full row of costs is stored.

The streaming form of `retrieval`, for banks without temporal order. Source: docs/design.md section 3, `retrieval_step`.

Shapes: `Q` queries, `K` keys, `m` whitened chart dimensions, `v` value dimensions, `V` labels; `T` tiles of `b` keys.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lior_jax.physics.numerics import Precision, contract
from lior_jax.physics.retrieval import geodesic_length

TILE = 4096
"""Keys per tile: 1 MiB at 64 dimensions, which fits in a core's cache."""
_CHUNK = 32
"""Keys per chunk in `nearest`, which keeps only the smallest distance of each chunk."""
_QUERIES_AT_ONCE = 64
"""Queries per pass: their costs to the keys of a tile take another MiB."""


class TiledKeys(NamedTuple):
    """Keys in a layout for a single pass: each coordinate of a tile's keys is contiguous, and squared norms are precomputed.
    The last tile may be partly empty."""

    origin: Array
    """`[1, m]`, subtracted from all keys: the expanded square of a distance would cancel far from the origin."""
    tiles: Array
    """`[T, m, b]`."""
    squares: Array
    """`[T, b]`, `‖x − origin‖²`."""

    @property
    def rows(self) -> Array:
        """The original keys, and `origin` in empty slots: `[T b, m]`."""
        return self.tiles.transpose(0, 2, 1).reshape(-1, self.origin.shape[1]) + self.origin


def room(size: int, dimension: int, tile: int = TILE, dtype: Any = jnp.float32) -> TiledKeys:
    """Empty slots for at least `size` keys, with an origin of zero. `tile` is rounded up to a multiple of 32."""
    tile = -(-min(tile, size) // _CHUNK) * _CHUNK
    count = -(-size // tile)
    shapes = (1, dimension), (count, dimension, tile), (count, tile)
    return TiledKeys(*(jnp.zeros(shape, dtype) for shape in shapes))


def arrange(keys: Array, tile: int = TILE) -> TiledKeys:
    """Tile keys `[K, m]`, with the first one as origin."""
    empty = room(keys.shape[0], keys.shape[1], tile, keys.dtype)
    return put(empty._replace(origin=keys[:1]), jnp.arange(len(keys)), keys)


def put(keys: TiledKeys, places: Array, rows: Array) -> TiledKeys:
    """The keys with those at `places` `[k]` replaced by `rows` `[k, m]`; indices past the last slot are dropped."""
    tile, rows = keys.squares.shape[1], rows - keys.origin
    index = places // tile, places % tile
    return keys._replace(
        tiles=keys.tiles.at[index[0], :, index[1]].set(rows, mode="drop"),
        squares=keys.squares.at[index].set(jnp.sum(rows * rows, -1), mode="drop"),
    )


def retrieve_from_bank(
    queries: Array,
    keys: Array,
    values: Array,
    inverse_temperature: Array,
    tile: int = TILE,
    resilience: Array | None = None,
    precision: Precision = "float32",
) -> tuple[Array, Array]:
    """Boltzmann mean of the values under the geodesic costs of their keys: `Σ_j w_j v_j`, `w_j ∝ exp(−β R cost_j)` (tool).

    Args:
        queries: whitened chart points, `[Q, m]`.
        keys: `[K, m]`, `K ≥ 1`.
        values: `[K, v]`.
        inverse_temperature: `[]`, β.
        tile: keys processed together.
        resilience: `R` of every query, `[Q]`; None for 1.

    Returns:
        The retrieved means, `[Q, v]`, and the log partition function `ln Σ_j exp(−β R cost_j)`, `[Q]`, from which the results
        of several banks can be combined.
    """
    beta = inverse_temperature * (jnp.ones(len(queries), queries.dtype) if resilience is None else resilience)

    def gather(weight: Array, part: Array) -> Array:
        return contract("kq,kv->vq", weight, part, precision)

    return _stream(queries, arrange(keys, tile), values, beta, len(keys), gather, values.shape[-1], precision)


def retrieve_labels(
    queries: Array,
    keys: TiledKeys,
    labels: Array,
    inverse_temperature: Array | float,
    labels_count: int,
    present: Array | int | None = None,
    precision: Precision = "float32",
) -> tuple[Array, Array]:
    """Retrieve labels instead of values from a bank: the Boltzmann weight of each label.

    Args:
        labels: `[K]` integers below `labels_count` = `V`.
        present: `[]`, at least 1: only the first `present` keys are used, and the run time scales with them; `K` by default.

    Returns:
        `ln Σ_{j: label_j = v} w_j`, `[Q, V]`, −∞ for labels without keys; and the log partition function, `[Q]`.
    """

    def gather(weight: Array, part: Array) -> Array:
        return jax.ops.segment_sum(weight, part, labels_count)

    present = len(labels) if present is None else present
    beta = jnp.broadcast_to(jnp.asarray(inverse_temperature, queries.dtype), len(queries))
    sums, log_total = _stream(queries, keys, labels, beta, present, gather, labels_count, precision)
    return jnp.log(sums), log_total


def nearest(
    queries: Array, keys: TiledKeys, count: int, present: Array | int | None = None, precision: Precision = "float32"
) -> tuple[Array, Array]:
    """The keys of smallest geodesic cost: an exact search.

    A first pass keeps the smallest distance of each chunk of keys. The nearest `count` keys lie in the `count` chunks with the
    smallest of these, and only those chunks are searched key by key.

    Args:
        queries: `[Q, m]`.
        count: from 1 to `K`.
        present: `[]`, only the first `present` keys are used; all slots by default.

    Returns:
        Indices of the keys, `[Q, count]`, and their costs, ascending; −1 and ∞ past the last present key.
    """
    tiles, dimension, tile = keys.tiles.shape
    present = tiles * tile if present is None else present
    relative = queries - keys.origin

    def smallest(index: Array) -> Array:
        near = keys.tiles[index], keys.squares[index]
        squared = jnp.where(_there(index, tile, present), _squared(relative, *near, precision), jnp.inf)
        return jnp.min(squared.reshape(-1, _CHUNK, len(queries)), 1)

    of_chunks = lax.map(smallest, jnp.arange(tiles)).reshape(-1, len(queries))
    _, chosen = lax.top_k(-of_chunks.T, min(count, len(of_chunks)))

    def chunk(index: Array) -> Array:
        begin = index * _CHUNK // tile, jnp.zeros_like(index), index * _CHUNK % tile
        return lax.dynamic_slice(keys.tiles, begin, (1, dimension, _CHUNK))[0]

    near = jax.vmap(jax.vmap(chunk))(chosen)
    squared = jnp.sum((near - relative[:, None, :, None]) ** 2, 2).reshape(len(queries), -1)
    place = (chosen[..., None] * _CHUNK + jnp.arange(_CHUNK)[None, None]).reshape(len(queries), -1)
    best, order = lax.top_k(-jnp.where(place < present, squared, jnp.inf), count)
    cost = geodesic_length(-best)
    return jnp.where(jnp.isfinite(cost), jnp.take_along_axis(place, order, -1), -1), cost


def _stream(
    queries: Array,
    keys: TiledKeys,
    payload: Array,
    beta: Array,
    present: Array | int,
    gather: Callable[[Array, Array], Array],
    width: int,
    precision: Precision,
) -> tuple[Array, Array]:
    """The weighted mean of the payload of the first `present` keys, `[Q, width]`, and `ln` of the sum of the weights, `[Q]`;
    `gather` maps weights `[b, Q]` and the payload of a tile to their sum of products `[width, Q]`."""
    tiles, _, tile = keys.tiles.shape
    spare = ((0, tiles * tile - len(payload)),) + ((0, 0),) * (payload.ndim - 1)
    payload = jnp.pad(payload, spare).reshape(tiles, tile, *payload.shape[1:])

    def some(part: tuple[Array, Array]) -> tuple[Array, Array]:
        queries, beta = part

        def look(index, seen):
            highest, total, sums = seen
            cost = geodesic_length(_squared(queries, keys.tiles[index], keys.squares[index], precision))
            scores = jnp.where(_there(index, tile, present), -beta[None] * cost, -jnp.inf)
            raised = jnp.maximum(highest, jnp.max(scores, 0))
            weight, fade = jnp.exp(scores - raised[None]), jnp.exp(highest - raised)
            return raised, fade * total + jnp.sum(weight, 0), fade[None] * sums + gather(weight, payload[index])

        lowest = jnp.finfo(queries.dtype).min  # not −∞: −∞ − (−∞) is NaN
        nothing = jnp.zeros((width, len(queries)), queries.dtype)
        begun = jnp.full(len(queries), lowest, queries.dtype), nothing[0], nothing
        highest, total, sums = lax.fori_loop(0, -(-present // tile), look, begun)
        return (sums / total[None]).T, highest + jnp.log(total)

    relative = queries - keys.origin
    if len(queries) <= _QUERIES_AT_ONCE:
        return some((relative, beta))
    groups = -(-len(queries) // _QUERIES_AT_ONCE)
    missing = groups * _QUERIES_AT_ONCE - len(queries)
    padded = jnp.pad(relative, ((0, missing), (0, 0))), jnp.pad(beta, (0, missing))
    found = lax.map(some, jax.tree.map(lambda x: x.reshape(groups, _QUERIES_AT_ONCE, *x.shape[1:]), padded))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: len(queries)], found)


def _there(index: Array, tile: int, present: Array | int) -> Array:
    """Mask of the present keys of a tile: `[b, 1]`."""
    return (index * tile + jnp.arange(tile) < present)[:, None]


def _squared(queries: Array, tile: Array, squares: Array, precision: Precision) -> Array:
    """`‖q − k‖²`, `[b, Q]`, of queries `[Q, m]` and a tile `[m, b]` relative to one origin."""
    product = contract("mk,qm->kq", tile, queries, precision)
    return jnp.maximum(squares[:, None] + jnp.sum(queries * queries, -1)[None] - 2 * product, 0)
