"""Boltzmann sampling of the next token, as pure functions of one sequence's logits, truncated by top-k (Fan et al. 2018), top-p
(nucleus sampling, Holtzman et al. 2020) and min-p (Nguyen et al. 2024)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lior_jax.errors import UserError


class Sampling(NamedTuple):
    """Sampling settings. Applied in this order: penalty, temperature, top-k, top-p, min-p."""

    temperature: float = 0.8
    """Temperature of the Boltzmann distribution `p ∝ exp(logits / temperature)`; 0 for greedy decoding."""
    top_k: int = 0
    """Keep this number of most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most probable tokens whose total probability reaches this; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens with at least this fraction of the largest probability; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Divide positive logits of tokens that have occurred by this, and multiply negative ones; 1 has no effect."""

    def check(self) -> "Sampling":
        """The settings converted to their types; raises a `UserError` that names one out of range."""
        finite = float("inf")
        for name, good, allowed in (
            ("temperature", 0 <= self.temperature < finite, "0 or more"),
            ("top-k", 0 <= self.top_k < 2**31, "0 (all) or more"),
            ("top-p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min-p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition-penalty", 0 < self.repetition_penalty < finite, "above 0"),
        ):
            if not good:
                raise UserError(f"{name} is {getattr(self, name.replace('-', '_'))}, but must be {allowed}.")
        t, k, p, least, penalty = self
        return Sampling(float(t), int(k), float(p), float(least), float(penalty))


def penalize(logits: Array, seen: Array, penalty: Array | float) -> Array:
    """Make tokens that have occurred less probable, by the rule of CTRL (Keskar et al. 2019, section 4.1).

    Args:
        logits: `[V]`.
        seen: `[V]`, true for tokens that have occurred.
        penalty: `[]`, above 1 to avoid them.
    """
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def boltzmann_logits(logits: Array, sampling: Sampling) -> Array:
    """Log probabilities, up to a constant, of `p ∝ exp(logits / temperature)` truncated to its most probable tokens.

    Args:
        logits: `[V]`.
        sampling: scalars; the penalty is not applied here.

    Returns:
        `[V]`, −∞ where truncated. Ties at the edge of top-k and top-p go to the smaller token.
    """
    order = jnp.argsort(-logits, stable=True)
    cold = sampling.temperature <= 0
    scaled = logits / jnp.where(cold, 1, sampling.temperature)
    descending = jax.nn.softmax(scaled[order])
    rank = jnp.arange(logits.shape[0])
    # Rounding can make the sum reach 1 before the last token.
    nucleus = (jnp.cumsum(descending) - descending < sampling.top_p) | (sampling.top_p >= 1)
    likely = descending >= sampling.min_p * descending[0]
    keep = (rank < jnp.where(sampling.top_k > 0, sampling.top_k, logits.shape[0])) & nucleus & likely
    keep = jnp.where(cold, rank == 0, keep | (rank == 0))
    return jnp.where(jnp.zeros_like(keep).at[order].set(keep), scaled, -jnp.inf)


def sample(key: Array, logits: Array, seen: Array, sampling: Sampling) -> Array:
    """Draw a token from `boltzmann_logits` of the penalized `logits` `[V]`: `[]` int32."""
    kept = boltzmann_logits(penalize(logits, seen, sampling.repetition_penalty), sampling)
    # Random bits depend on the type, and in JAX's x64 mode the settings are float64.
    return jax.random.categorical(key, kept.astype(jnp.float32)).astype(jnp.int32)
