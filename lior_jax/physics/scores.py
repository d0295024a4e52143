"""Terms of retrieval, added to the scores of its pairs or to the weights that mix its values.

A term is a pytree of parameters with a value and an adjoint, both functions of `pairwise.Pairs`. Retrieval takes a tuple of
them; a term that is off is absent. `LagPrior` is a relative position bias (Shaw et al. 2018; one that decays with the lag,
Press et al. 2022); the geometric terms are in `products`, the read-out of a field state in `field_state`.
"""

from typing import NamedTuple, Protocol, Self

from jax import Array

from lior_jax.physics.pairwise import PairCotangent, Pairs


class ScoreTerm(Protocol):
    """Added to the scores; the Boltzmann weights are their softmax."""

    def score(self, pairs: Pairs) -> Array:
        """`[B, H, T, L]`, or 1 in place of `B`."""

    def score_adjoint(self, pairs: Pairs, cotangent: Array) -> tuple[Self, PairCotangent]:
        """Cotangents of the term and of the pairs, for a cotangent of the scores `[B, H, T, L]`."""


class MixingTerm(Protocol):
    """Added to the Boltzmann weights after the softmax; 0 for masked keys."""

    def mix(self, pairs: Pairs) -> Array:
        """`[B, H, T, L]`."""

    def mix_adjoint(self, pairs: Pairs, cotangent: Array) -> tuple[Self, PairCotangent]:
        """Cotangents of the term and of the pairs, for a cotangent of the mixing weights `[B, H, T, L]`, whose entries of
        masked keys are ignored."""


class LagPrior(NamedTuple):
    """`log_prior` `[H, L]` = `ln K(Δ)` for the lags `0 … L − 1`: a kernel of the lag as a prior of the Boltzmann weights."""

    log_prior: Array

    def score(self, pairs: Pairs) -> Array:
        return pairs.places.by_lag(self.log_prior)

    def score_adjoint(self, pairs: Pairs, cotangent: Array) -> tuple["LagPrior", PairCotangent]:
        return LagPrior(pairs.sequence.by_lag_adjoint(self.log_prior, cotangent)), PairCotangent()
