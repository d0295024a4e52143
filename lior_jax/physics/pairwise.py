"""Pairwise quantities of queries and keys, the inputs of distance and score terms; each is computed once, on first use.

    product  G_ij = ⟨q_i, k_j⟩      q_squared ‖q_i‖²      k_squared ‖k_j‖²      squared  g_ij = ‖q_i − k_j‖²
    places   the lag of every pair, and the keys visible to each query

All are computed from one matrix product, of the points relative to a nearby origin: with a distant one,
`q² + k² − 2 q·k` would cancel for points close to each other. The adjoint of every quantity returns a `PairCotangent`.
Their sum is passed to the adjoint of the matrix product, which is computed once for all users of the pairs.

Shapes: `B` sequences, `T` queries, `L` keys, `H` heads, `m` whitened chart dimensions; a quantity of all pairs is
`[B, H, T, L]`, of queries `[B, H, T, 1]`, of keys `[B, H, 1, L]`. Points are stored heads first too, so that
no product transposes them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lior_jax.physics.lags import delay, delay_adjoint, spread, sum_by_lag
from lior_jax.physics.numerics import Precision, contract


class PairCotangent(NamedTuple):
    """Cotangent of pair quantities: of the product of the points relative to the origin `[B, H, T, L]`, and directly of queries
    `[B, H, T, m]` and keys `[B, H, L, m]`; 0 where there is no dependence."""

    product: Array | float = 0.0
    queries: Array | float = 0.0
    keys: Array | float = 0.0


@dataclass(frozen=True)
class Causal:
    """Queries at `rows` of `length` positions; each sees its own key and the earlier ones.

    `longest` is the largest `length` of all tiles of a sequence, which share their tables by lag. The rows are the last ones,
    or, in a loop over tiles, those starting at `first`.
    """

    rows: int
    length: int
    longest: int
    first: Array | None = None

    @property
    def visible(self) -> Array:
        """`[1, T, L]`."""
        if self.first is not None:
            own, seen = jnp.arange(self.rows), jnp.arange(self.length)
            return (self.first + own[:, None] >= seen[None])[None]
        return jnp.tril(jnp.ones((self.rows, self.length), bool), self.length - self.rows)[None]

    def by_lag(self, values: Array) -> Array:
        """`values[:, i − j]` for every pair `(i, j)`, 0 for masked ones; `values` `[H, N]`, `N ≥ L`: `[1, H, T, L]`."""
        if self.first is not None:
            return spread(delay(values, self.first, self.rows, self.length), self.rows)[None]
        return spread(values[:, : self.longest], self.rows)[None, :, :, self.longest - self.length :]

    def by_lag_adjoint(self, values: Array, cotangent: Array) -> Array:
        """Adjoint of `by_lag` for a cotangent `[B, H, T, L]`: `[H, N]`."""
        # As a matrix product: on a CPU, XLA's sum over a leading axis takes fifty times as long.
        of_all = contract("b,bhij->hij", jnp.ones(len(cotangent), cotangent.dtype), cotangent, "float32")
        c_values = sum_by_lag(of_all)
        if self.first is not None:
            c_values = delay_adjoint(c_values, self.first, self.rows)
        return jnp.pad(c_values, ((0, 0), (0, values.shape[1] - self.length)))


@dataclass(frozen=True)
class Window:
    """Keys in any order: `lag` `[T, L]`, positions from each key to each query, and `visible` `[B, T, L]`."""

    lag: Array
    visible: Array

    def by_lag(self, values: Array) -> Array:
        """`values[:, lag]` for every visible pair; `values` `[H, N]`: `[1, H, T, L]`."""
        return values[:, jnp.clip(self.lag, 0, values.shape[1] - 1)][None]


@dataclass(frozen=True)
class Pairs:
    """Whitened `queries` `[B, H, T, m]` and `keys` `[B, H, L, m]`, taken relative to `origin` `[B, H, 1, m]` where products
    would cancel. Instances cache values of one trace: do not pass one into a loop or a map."""

    queries: Array
    keys: Array
    origin: Array
    places: Causal | Window
    precision: Precision

    @property
    def sequence(self) -> Causal:
        """The places as `Causal`, which the adjoints require; a `Window`, used for decoding, has no adjoints."""
        assert isinstance(self.places, Causal)
        return self.places

    @cached_property
    def near_queries(self) -> Array:
        return self.queries - self.origin

    @cached_property
    def near_keys(self) -> Array:
        return self.keys - self.origin

    @cached_property
    def _near_product(self) -> Array:
        return contract("bhim,bhjm->bhij", self.near_queries, self.near_keys, self.precision)

    @cached_property
    def squared(self) -> Array:
        """`‖q_i − k_j‖²`, clipped at 0 against rounding."""
        lengths = rows(_squares(self.near_queries)) + columns(_squares(self.near_keys))
        return jnp.maximum(lengths - 2 * self._near_product, 0)

    def squared_adjoint(self, cotangent: Array) -> PairCotangent:
        pull = jnp.where(self.squared > 0, 2 * cotangent, 0)
        by_query, by_key = jnp.sum(pull, -1), jnp.sum(pull, -2)
        return PairCotangent(-pull, rows(by_query) * self.near_queries, rows(by_key) * self.near_keys)

    @cached_property
    def product(self) -> Array:
        """`⟨q_i, k_j⟩ = ⟨q_i − o, k_j − o⟩ + ⟨q_i − o, o⟩ + ⟨o, k_j⟩`."""
        return self._near_product + rows(_dots(self.near_queries, self.origin)) + columns(_dots(self.origin, self.keys))

    def product_adjoint(self, cotangent: Array) -> PairCotangent:
        by_query, by_key = jnp.sum(cotangent, -1), jnp.sum(cotangent, -2)
        return PairCotangent(cotangent, rows(by_query) * self.origin, rows(by_key) * self.origin)

    @cached_property
    def q_squared(self) -> Array:
        return rows(_squares(self.queries))

    @cached_property
    def k_squared(self) -> Array:
        return columns(_squares(self.keys))

    def products_adjoint(self, c_product: Array, c_q_squared: Array, c_k_squared: Array) -> PairCotangent:
        """Joint adjoint of product and squared norms."""
        product, queries, keys = self.product_adjoint(c_product)
        queries = queries + 2 * c_q_squared * self.queries
        return PairCotangent(product, queries, keys + 2 * rows(c_k_squared[:, :, 0]) * self.keys)

    def points_adjoint(self, cotangents: Iterable[PairCotangent]) -> tuple[Array, Array]:
        """Cotangents of queries `[B, T, H, m]` and keys `[B, L, H, m]`, positions first, from the sum of all cotangents of
        the pairs."""
        total = reduce(lambda x, y: PairCotangent(*(a + b for a, b in zip(x, y, strict=True))), cotangents)
        product, queries, keys = jnp.asarray(total.product), jnp.asarray(total.queries), jnp.asarray(total.keys)
        queries = queries + contract("bhij,bhjm->bhim", product, self.near_keys, self.precision)
        # With positions as the last axis, the CPU backend would first transpose the matrix of all pairs.
        by_product = contract("bhim,bhij->bjhm", self.near_queries, product, self.precision)
        return heads_first(queries), heads_first(keys) + by_product


def of_sequence(
    queries: Array, keys: Array, precision: Precision, longest: int | None = None, first: int | Array | None = None
) -> Pairs:
    """Pairs of the last `T` positions of a sequence, or of those starting at `first`, with all `L`, for points
    `[B, H, T, m]` and `[B, H, L, m]`.

    The origin is the first key. It is visible to every query, so causality is exact, bit by bit.

    Args:
        longest: the largest `L` of all tiles of the sequence (`Causal`); by default that of this tile.
        first: position of the first query, used only if traced; otherwise it follows from the shapes.
    """
    length, first = keys.shape[2], None if isinstance(first, int) else first
    return Pairs(queries, keys, keys[:, :, :1], Causal(queries.shape[2], length, longest or length, first), precision)


def of_window(queries: Array, keys: Array, lag: Array, visible: Array, precision: Precision) -> Pairs:
    """Pairs of the last positions of a sequence with a window of keys (`Window`); the first query is the origin."""
    return Pairs(queries, keys, queries[:, :, :1], Window(lag, visible), precision)


def weights(scores: Array, visible: Array) -> Array:
    """Boltzmann weights `w_ij ∝ exp(scores_ij)` of the visible keys, else 0, for `visible` `[B or 1, T, L]`."""
    return jax.nn.softmax(jnp.where(visible[:, None], scores, -jnp.inf), axis=-1)


def rows(x: Array) -> Array:
    """`[B, H, T]` shaped to broadcast over pairs, or over points `[B, H, T, m]`."""
    return x[..., None]


def columns(x: Array) -> Array:
    """`[B, H, L]` shaped to broadcast over pairs."""
    return x[:, :, None]


def heads_first(x: Array) -> Array:
    """`[B, L, H, …]` as `[B, H, L, …]`, or back."""
    return jnp.swapaxes(x, 1, 2)


def _squares(x: Array) -> Array:
    """Squared norms of `[B, H, L, m]`: `[B, H, L]`."""
    return _dots(x, x)


def _dots(x: Array, y: Array) -> Array:
    """Dot products of `[B, H, L, m]` and `[B, H, L or 1, m]`: `[B, H, L]`."""
    return jnp.sum(x * y, -1)
