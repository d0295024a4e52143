"""Geodesic retrieval: Boltzmann weights of the metric distance from a query to every earlier key. In the literature: causal
attention (Vaswani et al. 2017) by distance instead of dot product (L2 attention, Kim et al. 2021).

    cost_ij = R_i sqrt(max(g(k_j − q_i, k_j − q_i), 0) + ε)
    w_ij ∝ exp(−β cost_ij + Σ_terms score_ij) for j ≤ i,      y_i = Σ_j (w_ij + Σ_terms mix_ij) v_j

Queries and keys come whitened (`geometry.whiten`), so `g` is a squared Euclidean distance. Terms (`scores`) are the prior of
the lag, geometric products (`products`) and the linear read-out of the prompt's field state (`field_state`); all of them and
the distance share one matrix product of queries and keys (`pairwise`).

Queries can be processed in tiles (`tiling`), with the keys up to the end of the tile or slightly more: then no `[H, L, L]` is
allocated in either pass, and most pairs above the diagonal are not computed.

Source: the audit's `retrieval_step`, and docs/design.md section 2.5.

Shapes: `B` sequences, `L` positions, `T` of them in a tile, `H` heads, `m` whitened chart dimensions, `v` value dimensions.
"""

from functools import reduce
from operator import add
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from lior_jax.physics.numerics import Precision, contract
from lior_jax.physics.pairwise import Pairs, heads_first, of_sequence, of_window, rows, weights
from lior_jax.physics.scores import MixingTerm, ScoreTerm
from lior_jax.physics.tiling import Tile, in_tiles

COST_EPSILON = 1e-4


class Couplings(NamedTuple):
    """Parameters of the weights: `inverse_temperature` `[H]` = β; the score terms; and the mixing terms, which are added to the
    Boltzmann weights."""

    inverse_temperature: Array
    scores: tuple[ScoreTerm, ...] = ()
    mixing: tuple[MixingTerm, ...] = ()


def retrieve(
    queries: Array,
    keys: Array,
    values: Array,
    resilience: Array,
    couplings: Couplings,
    precision: Precision = "float32",
    tile: int | None = None,
) -> Array:
    """The mean that each query retrieves from the positions up to its own.

    Args:
        queries, keys: whitened chart points, `[B, L, H, m]`.
        values: `[B, L, H, v]`.
        resilience: `R` of every query, `[B, L, H]`.
        couplings: parameters of the weights.
        tile: number of queries processed at a time; None for all.

    Returns:
        `[B, L, H, v]`.
    """

    queries, keys, values, resilience = map(heads_first, (queries, keys, values, resilience))

    def one_tile(tile: Tile) -> tuple[Array, None, None]:
        seen = keys[:, :, : tile.stop], values[:, :, : tile.stop]
        pairs = of_sequence(tile.own(queries, 2), seen[0], precision, keys.shape[2], tile.first)
        _, weight = _weigh(pairs, tile.own(resilience, 2), couplings)
        return contract("bhij,bhjv->bhiv", _mix(pairs, weight, couplings), seen[1], precision), None, None

    return heads_first(in_tiles(one_tile, queries.shape[2], tile, axis=2)[0])


def _weigh(pairs: Pairs, resilience: Array, couplings: Couplings) -> tuple[Array, Array]:
    """Geodesic cost and Boltzmann weight of every pair, `[B, H, T, L]`."""
    cost = geodesic_cost(pairs.squared, resilience)
    by_distance = -_of_heads(couplings.inverse_temperature) * cost
    scores = reduce(add, (term.score(pairs) for term in couplings.scores), by_distance)
    return cost, weights(scores, pairs.places.visible)


def _mix(pairs: Pairs, weight: Array, couplings: Couplings) -> Array:
    """The weight of each value: Boltzmann weights plus mixing terms."""
    return reduce(add, (term.mix(pairs) for term in couplings.mixing), weight)


def retrieve_and_adjoint(
    queries: Array,
    keys: Array,
    values: Array,
    resilience: Array,
    couplings: Couplings,
    cotangent: Array,
    precision: Precision = "float32",
    tile: int | None = None,
) -> tuple[Array, tuple[Array, Array, Array, Array, Couplings]]:
    """`retrieve` and its adjoint in one pass.

    Args:
        cotangent: `[B, L, H, v]`, of the result of `retrieve`; other arguments as there.

    Returns:
        The result of `retrieve`, and the cotangents of queries, keys, values, resilience and couplings.
    """

    points = tuple(map(heads_first, (queries, keys, values, resilience, cotangent)))
    length = queries.shape[1]

    def one_tile(tile: Tile) -> tuple[tuple[Array, Array, Array], tuple[Array, Array], Couplings]:
        queries, keys, values, resilience, cotangent = points
        seen = keys[:, :, : tile.stop], values[:, :, : tile.stop]
        pairs = of_sequence(tile.own(queries, 2), seen[0], precision, length, tile.first)
        retrieved, (c_queries, c_keys, c_values, c_resilience, c_couplings) = _tile_and_adjoint(
            pairs, seen[1], tile.own(resilience, 2), couplings, tile.own(cotangent, 2)
        )
        return (retrieved, c_queries, c_resilience), (c_keys, c_values), c_couplings

    (retrieved, c_queries, c_resilience), (c_keys, c_values), c_couplings = in_tiles(one_tile, length, tile)
    return retrieved, (c_queries, c_keys, c_values, c_resilience, c_couplings)


def _tile_and_adjoint(
    pairs: Pairs, values: Array, resilience: Array, couplings: Couplings, cotangent: Array
) -> tuple[Array, tuple[Array, Array, Array, Array, Couplings]]:
    """`retrieve_and_adjoint` for the queries of a tile and the keys that it sees, given with their heads first."""
    cost, weight = _weigh(pairs, resilience, couplings)
    mixing = _mix(pairs, weight, couplings)
    retrieved = contract("bhij,bhjv->bihv", mixing, values, pairs.precision)

    c_values = contract("bhiv,bhij->bjhv", cotangent, mixing, pairs.precision)
    c_mixing = contract("bhiv,bhjv->bhij", cotangent, values, pairs.precision)
    c_score = weight * (c_mixing - jnp.sum(weight * c_mixing, -1, keepdims=True))

    c_temperature = -jnp.sum(c_score * cost, (0, 2, 3))
    c_cost = -_of_heads(couplings.inverse_temperature) * c_score
    c_squared, c_resilience = geodesic_cost_adjoint(pairs.squared, resilience, c_cost)
    by_scores = [term.score_adjoint(pairs, c_score) for term in couplings.scores]
    by_mixing = [term.mix_adjoint(pairs, c_mixing) for term in couplings.mixing]
    by_terms = [c_pairs for _, c_pairs in by_scores + by_mixing]
    c_queries, c_keys = pairs.points_adjoint([pairs.squared_adjoint(c_squared), *by_terms])

    c_couplings = Couplings(c_temperature, tuple(c for c, _ in by_scores), tuple(c for c, _ in by_mixing))
    return retrieved, (c_queries, c_keys, c_values, heads_first(c_resilience), c_couplings)


def geodesic_length(squared: Array) -> Array:
    """`sqrt(g + ε)`: the length of a displacement, smooth at zero."""
    return jnp.sqrt(squared + COST_EPSILON)


def geodesic_cost(squared: Array, resilience: Array) -> Array:
    """The length of every pair's displacement, `squared` `[B, H, T, L]`, weighted by the query's resilience `[B, H, T]`."""
    return rows(resilience) * geodesic_length(squared)


def geodesic_cost_adjoint(squared: Array, resilience: Array, cotangent: Array) -> tuple[Array, Array]:
    """Adjoint of `geodesic_cost`: cotangents of `squared` `[B, H, T, L]` and of the resilience."""
    length = geodesic_length(squared)
    c_resilience = jnp.sum(cotangent * length, -1)
    return 0.5 * (rows(resilience) * cotangent / length), c_resilience


class Retrieved(NamedTuple):
    """Result of a few queries on a window of `S` keys: the mean `values` `[B, C, H, v]`, and the Boltzmann `weight` and
    geodesic `cost` of each key, `[B, H, C, S]`."""

    values: Array
    weight: Array
    cost: Array


def retrieve_window(
    queries: Array,
    keys: Array,
    values: Array,
    resilience: Array,
    couplings: Couplings,
    lag: Array,
    visible: Array,
    precision: Precision = "float32",
) -> Retrieved:
    """`retrieve` for the last `C` positions of a sequence from a window of keys, in any order. Mixing terms are left to the
    recurrence, which carries their state.

    Args:
        queries: `[B, C, H, m]`.
        keys, values: `[B, S, H, m]` and `[B, S, H, v]`.
        resilience: of the queries, `[B, C, H]`.
        couplings: parameters of the weights; terms by lag have `L` lags.
        lag: `[C, S]` integers, positions from each key to each query; used only where visible, and below `L` there.
        visible: `[B, C, S]`; each query sees at least one key.
    """
    queries, keys, values, resilience = map(heads_first, (queries, keys, values, resilience))
    cost, weight = _weigh(of_window(queries, keys, lag, visible, precision), resilience, couplings)
    return Retrieved(heads_first(contract("bhij,bhjv->bhiv", weight, values, precision)), weight, cost)


def _of_heads(x: Array) -> Array:
    """`[H]` as a quantity of pairs."""
    return x[None, :, None, None]
