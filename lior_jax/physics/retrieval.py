"""Geodesic retrieval: Boltzmann weights of the metric distance from a query to every earlier key.

    cost_ij = R_i sqrt(max(g(k_j − q_i, k_j − q_i), 0) + ε)
    w_ij ∝ K(i − j) exp(−β cost_ij + products_ij),   y_i = Σ_{j≤i} (w_ij + F(i − j) ⟨q_i, k_j⟩) v_j

Queries and keys come whitened (`geometry.whiten`), so `g` is a squared Euclidean distance, and one matrix product
`G = q̃k̃ᵀ` gives distances, geometric products and the read-out of the prompt's field state, whose propagator is `F`.

Queries may be taken a tile at a time, against the keys up to its end: no `[H, L, L]` is made then, forward or backward, and
most of what lies above the diagonal is not computed.

Source: the audit's `retrieval_step`, and docs/design.md section 2.5.

Shapes: `B` sequences, `L` positions, `T` of them in a tile, `H` heads, `m` whitened chart dimensions, `v` value dimensions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lior_jax.physics import products
from lior_jax.physics.kernel import spread, sum_by_lag
from lior_jax.physics.numerics import Precision, contract
from lior_jax.physics.products import Gates

COST_EPSILON = 1e-4


class Couplings(NamedTuple):
    """What a head weighs by; None for what is left out.

    `inverse_temperature` `[H]` = β; `log_prior` `[H, L]`, `ln K` by lag; `products`, gates and 2-form (antisymmetric);
    `field` `[H, L]`, the propagator `F` of the field state by lag, gate included.
    """

    inverse_temperature: Array
    log_prior: Array | None = None
    products: Gates | None = None
    field: Array | None = None


class _Pairs(NamedTuple):
    """Of every query with every key: `[B, H, T, L]`; the squared norms `[B, H, T, 1]` and `[B, H, 1, L]`."""

    squared: Array
    cost: Array
    weight: Array
    product: Array | None = None
    q_squared: Array | None = None
    k_squared: Array | None = None

    def mixing(self, couplings: Couplings) -> Array:
        """What each value is multiplied by."""
        if couplings.field is None:
            return self.weight
        return self.weight + spread(couplings.field, self.weight.shape[2])[None] * self.product


def _pairs(queries: Array, keys: Array, resilience: Array | None, couplings: Couplings, precision: Precision) -> _Pairs:
    """The queries are those of the last `T` positions of the keys."""
    near_queries, near_keys = _centre(queries, keys)
    near_product = contract("bihm,bjhm->bhij", near_queries, near_keys, precision)
    squared = _expand(near_queries, near_keys, near_product)
    cost = geodesic_cost(squared, resilience)
    prior = couplings.log_prior
    scores = jnp.zeros_like(cost) if prior is None else spread(prior, queries.shape[1])[None]
    scores = scores - couplings.inverse_temperature[None, :, None, None] * cost
    if couplings.products is None and couplings.field is None:
        return _Pairs(squared, cost, weights(scores))

    # ⟨q, k⟩ = ⟨q − o, k − o⟩ + ⟨q − o, o⟩ + ⟨o, k⟩ with the first key o.
    origin = keys[:, :1]
    product = near_product + _dots(near_queries, origin)[..., None] + _dots(origin, keys)[:, :, None]
    q_squared, k_squared = _squares(queries)[..., None], _squares(keys)[:, :, None]
    if couplings.products is not None:
        scores = scores + products.score(couplings.products, product, q_squared, k_squared)
        if couplings.products.form is not None:
            turned = _turn(queries, couplings.products.form, precision)
            # Centring the keys changes a row of scores by a constant, which Boltzmann weights do not see.
            scores = scores + contract("bihm,bjhm->bhij", turned, near_keys, precision)
    return _Pairs(squared, cost, weights(scores), product, q_squared, k_squared)


def squared_distance(queries: Array, keys: Array, precision: Precision = "float32") -> Array:
    """`‖q_i − k_j‖²` `[B, H, L, L]` for whitened `[B, L, H, m]`, from one matrix product.

    Both are first measured from the first key, or the expansion `q² + k² − 2 q·k` would cancel for points that
    lie far from the origin and close together. The first key is visible to every query, so causality is kept
    to the last bit.
    """
    queries, keys = _centre(queries, keys)
    product = contract("bihm,bjhm->bhij", queries, keys, precision)
    return _expand(queries, keys, product)


def _expand(queries: Array, keys: Array, product: Array) -> Array:
    """`q² + k² − 2 q·k`, which rounding must not make negative."""
    return jnp.maximum(_squares(queries)[..., None] + _squares(keys)[:, :, None] - 2 * product, 0)


def _centre(queries: Array, keys: Array) -> tuple[Array, Array]:
    return queries - keys[:, :1], keys - keys[:, :1]


def _squares(x: Array) -> Array:
    """Squared norms of `[B, L, H, m]`: `[B, H, L]`."""
    return jnp.sum(x * x, -1).transpose(0, 2, 1)


def _dots(x: Array, y: Array) -> Array:
    """Dot products of `[B, L, H, m]` and `[B, 1, H, m]`: `[B, H, L]`."""
    return jnp.sum(x * y, -1).transpose(0, 2, 1)


def _turn(queries: Array, form: Array, precision: Precision) -> Array:
    """`Ωᵀ q`, so that its dot product with `k` is `qᵀ Ω k`: `[B, L, H, m]`."""
    return contract("bihm,hmn->bihn", queries, form, precision)


def geodesic_cost(squared: Array, resilience: Array | None = None) -> Array:
    """`R sqrt(g + ε)`: the length of the displacement, smooth at zero, weighed by the query's resilience `[B, L, H]`."""
    length = jnp.sqrt(squared + COST_EPSILON)
    return length if resilience is None else _rows(resilience) * length


def _rows(x: Array) -> Array:
    """`[B, L, H]` as a factor of each row of `[B, H, L, L]`."""
    return x.transpose(0, 2, 1)[..., None]


def weights(scores: Array) -> Array:
    """Causal Boltzmann weights of the last `T` positions, `w_ij ∝ exp(scores_ij)` for `j ≤ i`, else 0: `[B, H, T, L]`."""
    rows, length = scores.shape[-2:]
    causal = jnp.tril(jnp.ones((rows, length), bool), length - rows)
    return jax.nn.softmax(jnp.where(causal[None, None], scores, -jnp.inf), axis=-1)


def retrieve(
    queries: Array,
    keys: Array,
    values: Array,
    resilience: Array | None,
    couplings: Couplings,
    precision: Precision = "float32",
    tile: int | None = None,
) -> Array:
    """What each query retrieves from the positions up to its own.

    Args:
        queries, keys: whitened chart points, `[B, L, H, m]`.
        values: `[B, L, H, v]`.
        resilience: `R` of every query, `[B, L, H]`; None for 1.
        couplings: what the heads weigh by.
        tile: how many positions retrieve at a time; None for all.

    Returns:
        `[B, L, H, v]`.
    """
    found = []
    for rows in _tiles(queries.shape[1], tile):
        near, seen, read, weight, by = _seen_from(rows, queries, keys, values, resilience, couplings)
        pairs = _pairs(near, seen, weight, by, precision)
        found.append(contract("bhij,bjhv->bihv", pairs.mixing(by), read, precision))
    return jnp.concatenate(found, 1)


def _tiles(length: int, tile: int | None) -> list[slice]:
    tile = length if tile is None else tile
    return [slice(begin, min(begin + tile, length)) for begin in range(0, length, tile)]


def _seen_from(
    rows: slice, queries: Array, keys: Array, values: Array, resilience: Array | None, couplings: Couplings
) -> tuple[Array, Array, Array, Array | None, Couplings]:
    """What a tile's queries need: their own, and of all else what is up to the tile's end."""

    def start(x: Array | None) -> Array | None:
        return None if x is None else x[:, : rows.stop]

    resilience = None if resilience is None else resilience[:, rows]
    couplings = couplings._replace(log_prior=start(couplings.log_prior), field=start(couplings.field))
    return queries[:, rows], start(keys), start(values), resilience, couplings


class Looked(NamedTuple):
    """What a few queries found in a window of `S` keys: `retrieved` `[B, C, H, v]`; `weight` and geodesic `cost`
    `[B, H, C, S]`."""

    retrieved: Array
    weight: Array
    cost: Array


def retrieve_window(
    queries: Array,
    keys: Array,
    values: Array,
    resilience: Array | None,
    couplings: Couplings,
    lag: Array,
    visible: Array,
    precision: Precision = "float32",
) -> Looked:
    """`retrieve` for the last `C` positions of a sequence from a window of keys, in any order. The field state is not read.

    Args:
        queries: `[B, C, H, m]`.
        keys, values: `[B, S, H, m]` and `[B, S, H, v]`.
        resilience: of the queries, `[B, C, H]`; None for 1.
        couplings: `log_prior` `[H, L]`.
        lag: `[C, S]` integers, positions from each key to each query; counts only where visible, and is below `L` there.
        visible: `[B, C, S]`; each query sees at least one key.
    """
    # Measured from a point close by, or the expanded square would cancel. It comes before all other queries.
    origin = queries[:, :1]
    near_queries, near_keys = queries - origin, keys - origin
    near_product = contract("bihm,bjhm->bhij", near_queries, near_keys, precision)
    cost = geodesic_cost(_expand(near_queries, near_keys, near_product), resilience)
    scores = -couplings.inverse_temperature[None, :, None, None] * cost
    if couplings.log_prior is not None:
        scores = scores + couplings.log_prior[:, jnp.clip(lag, 0, couplings.log_prior.shape[1] - 1)][None]
    if couplings.products is not None:
        product = contract("bihm,bjhm->bhij", queries, keys, precision)
        squares = _squares(queries)[..., None], _squares(keys)[:, :, None]
        scores = scores + products.score(couplings.products, product, *squares)
        if couplings.products.form is not None:
            turned = _turn(queries, couplings.products.form, precision)
            scores = scores + contract("bihm,bjhm->bhij", turned, near_keys, precision)
    weight = jax.nn.softmax(jnp.where(visible[:, None], scores, -jnp.inf), axis=-1)
    return Looked(contract("bhij,bjhv->bihv", weight, values, precision), weight, cost)


def retrieve_adjoint(
    queries: Array,
    keys: Array,
    values: Array,
    resilience: Array | None,
    couplings: Couplings,
    cotangent: Array,
    precision: Precision = "float32",
    tile: int | None = None,
) -> tuple[Array, tuple[Array, Array, Array, Array | None, Couplings]]:
    """`retrieve` and its adjoint in one pass.

    Args:
        cotangent: `[B, L, H, v]`, of what `retrieve` returns; the others as there.

    Returns:
        What `retrieve` returns, and the cotangents of queries, keys, values, resilience and couplings.
    """
    own, summed = [], None
    # The last tile sees everything; the others add to a part of what it gives.
    for rows in reversed(_tiles(queries.shape[1], tile)):
        seen = _seen_from(rows, queries, keys, values, resilience, couplings)
        retrieved, (c_queries, *c_seen, c_resilience, c_couplings) = _tile_adjoint(*seen, cotangent[:, rows], precision)
        own.insert(0, (retrieved, c_queries, c_resilience))
        shared = *c_seen, c_couplings
        summed = shared if summed is None else jax.tree.map(_add_start, summed, shared)
    retrieved, c_queries, c_resilience = jax.tree.map(lambda *pieces: jnp.concatenate(pieces, 1), *own)
    *c_seen, c_couplings = summed
    return retrieved, (c_queries, *c_seen, c_resilience, c_couplings)


def _add_start(whole: Array, start: Array) -> Array:
    """Add to what a shorter array covers of a longer one: along the second axis, or all."""
    return whole + start if whole.shape == start.shape else whole.at[:, : start.shape[1]].add(start)


def _tile_adjoint(
    queries: Array,
    keys: Array,
    values: Array,
    resilience: Array | None,
    couplings: Couplings,
    cotangent: Array,
    precision: Precision,
) -> tuple[Array, tuple[Array, Array, Array, Array | None, Couplings]]:
    """`retrieve_adjoint` for the last `T` positions of the keys."""
    beta = couplings.inverse_temperature
    pairs = _pairs(queries, keys, resilience, couplings, precision)
    mixing = pairs.mixing(couplings)
    retrieved = contract("bhij,bjhv->bihv", mixing, values, precision)

    c_values = contract("bhij,bihv->bjhv", mixing, cotangent, precision)
    c_mixing = contract("bihv,bjhv->bhij", cotangent, values, precision)
    c_score = pairs.weight * (c_mixing - jnp.sum(pairs.weight * c_mixing, -1, keepdims=True))

    c_temperature = -jnp.sum(c_score * pairs.cost, axis=(0, 2, 3))
    c_length = -beta[None, :, None, None] * c_score
    c_resilience = None
    length = geodesic_cost(pairs.squared)
    if resilience is not None:
        c_resilience = jnp.sum(c_length * length, -1).transpose(0, 2, 1)
        c_length = _rows(resilience) * c_length
    # d length / d squared = 1 / (2 length); the 2 goes with the gradient 2 (q − k) of the squared distance.
    pull = jnp.where(pairs.squared > 0, c_length / length, 0)
    near_queries, near_keys = _centre(queries, keys)
    c_queries = _columns(jnp.sum(pull, -1)) * near_queries
    c_keys = _columns(jnp.sum(pull, -2)) * near_keys
    c_product, c_field, c_products = -pull, None, None

    if couplings.products is not None:
        by_product = products.score_adjoint(couplings.products, pairs.product, pairs.q_squared, pairs.k_squared, c_score)
        c_products, c_by_product, c_q_squared, c_k_squared = by_product
        c_queries = c_queries + 2 * _columns(c_q_squared[..., 0]) * queries
        c_keys = c_keys + 2 * _columns(c_k_squared[:, :, 0]) * keys
        if couplings.products.form is not None:
            turned = _turn(queries, couplings.products.form, precision)
            c_turned = contract("bhij,bjhm->bihm", c_score, near_keys, precision)
            c_form = contract("bihm,bihn->hmn", queries, c_turned, precision)
            c_queries = c_queries + contract("bihn,hmn->bihm", c_turned, couplings.products.form, precision)
            c_keys = c_keys + contract("bhij,bihm->bjhm", c_score, turned, precision)
            c_products = c_products._replace(form=c_form)
    else:
        c_by_product = None
    if couplings.field is not None:
        c_field = sum_by_lag(jnp.sum(c_mixing * pairs.product, 0))  # which leaves out what lies above the diagonal
        by_field = spread(couplings.field, queries.shape[1])[None] * c_mixing
        c_by_product = by_field if c_by_product is None else c_by_product + by_field
    if c_by_product is not None:
        c_product = c_product + c_by_product
        origin = keys[:, :1]
        c_queries = c_queries + _columns(jnp.sum(c_by_product, -1)) * origin
        c_keys = c_keys + _columns(jnp.sum(c_by_product, -2)) * origin

    c_queries = c_queries + contract("bhij,bjhm->bihm", c_product, near_keys, precision)
    c_keys = c_keys + contract("bhij,bihm->bjhm", c_product, near_queries, precision)
    c_prior = None if couplings.log_prior is None else sum_by_lag(jnp.sum(c_score, 0))
    return retrieved, (c_queries, c_keys, c_values, c_resilience, Couplings(c_temperature, c_prior, c_products, c_field))


def _columns(x: Array) -> Array:
    """`[B, H, L]` as a factor of `[B, L, H, m]`."""
    return x.transpose(0, 2, 1)[..., None]
