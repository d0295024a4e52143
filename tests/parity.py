"""A score term that the package does not have: what a user gives it from outside."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from lior_jax.model.terms import Recipe

LAGS = 64


class ParityBonus(NamedTuple):
    """`bonus` `[H]`, what a key at an even lag gets, times the cosine of its product with the query."""

    bonus: Array

    def score(self, pairs):
        return self.bonus[None, :, None, None] * self._even(pairs) * jnp.cos(pairs.product)

    def score_adjoint(self, pairs, cotangent):
        even = self._even(pairs) * cotangent
        c_product = -self.bonus[None, :, None, None] * even * jnp.sin(pairs.product)
        return ParityBonus(jnp.sum(even * jnp.cos(pairs.product), (0, 2, 3))), pairs.product_adjoint(c_product)

    def _even(self, pairs):
        even = jnp.where(jnp.arange(LAGS) % 2 == 0, 1.0, 0.0)
        return pairs.places.by_lag(jnp.broadcast_to(even, (len(self.bonus), LAGS)))


PARITY = Recipe(
    init=lambda config, normal: ParityBonus(jnp.zeros(config.heads)),
    prepare=lambda raw, state, length, config: raw,
    prepare_adjoint=lambda raw, state, cotangent, config: cotangent,
)
