"""Terms of retrieval: what is added to the scores of its pairs, or to the weights that mix its values.

A term is a pytree of a head's couplings with a value and an adjoint, which see of the pairs what `pairwise.Pairs` offers. It is
given to retrieval in a tuple; a term that is off is not in it. What attention calls a relative position bias is `LagPrior`;
the geometric terms are in `products`, the read-out of a field state in `field_state`.
"""

from typing import NamedTuple, Protocol, Self

from jax import Array

from lior_jax.physics.pairwise import PairCotangent, Pairs


class ScoreTerm(Protocol):
    """Added to the scores, whose softmax are the Boltzmann weights."""

    def score(self, pairs: Pairs) -> Array:
        """`[B, H, T, L]`, or 1 in place of `B`."""

    def score_adjoint(self, pairs: Pairs, cotangent: Array) -> tuple[Self, PairCotangent]:
        """Cotangents of the term and of the pairs for one of the scores, `[B, H, T, L]`."""


class MixingTerm(Protocol):
    """Added to the Boltzmann weights: multiplies values as it is, and is 0 for a key that a query does not see."""

    def mix(self, pairs: Pairs) -> Array:
        """`[B, H, T, L]`."""

    def mix_adjoint(self, pairs: Pairs, cotangent: Array) -> tuple[Self, PairCotangent]:
        """Cotangents of the term and of the pairs for one of the mixing weights, `[B, H, T, L]`; what it has for a key that a
        query does not see counts for nothing."""


class LagPrior(NamedTuple):
    """`log_prior` `[H, L]` = `ln K(Δ)` for the lags `0 … L − 1`: a kernel of the lag as a prior of the Boltzmann weights."""

    log_prior: Array

    def score(self, pairs: Pairs) -> Array:
        return pairs.places.by_lag(self.log_prior)

    def score_adjoint(self, pairs: Pairs, cotangent: Array) -> tuple["LagPrior", PairCotangent]:
        return LagPrior(pairs.sequence.by_lag_adjoint(self.log_prior, cotangent)), PairCotangent()
