"""Boltzmann sampling of the next token, with the usual truncations."""

import jax
import jax.numpy as jnp
from jax import Array


def boltzmann_logits(logits: Array, temperature: Array, top_k: Array, top_p: Array) -> Array:
    """Log probabilities, up to a constant, of `p ∝ exp(logits / temperature)` cut to its most probable tokens.

    Args:
        logits: `[V]`.
        temperature: `[]`; at 0 only the most probable token is left.
        top_k: `[]` integer, keep the `top_k` most probable tokens; 0 keeps all.
        top_p: `[]`, keep the fewest most probable tokens whose probabilities reach `top_p`; 1 keeps all.

    Returns:
        `[V]`, −∞ where cut. Ties at the edge go to the smaller token.
    """
    order = jnp.argsort(-logits, stable=True)
    cold = temperature <= 0
    scaled = logits / jnp.where(cold, 1, temperature)
    descending = jax.nn.softmax(scaled[order])
    rank = jnp.arange(logits.shape[0])
    # Rounding lets the sum reach 1 before the last token.
    nucleus = (jnp.cumsum(descending) - descending < top_p) | (top_p >= 1)
    keep = (rank < jnp.where(top_k > 0, top_k, logits.shape[0])) & nucleus
    keep = jnp.where(cold, rank == 0, keep | (rank == 0))
    return jnp.where(jnp.zeros_like(keep).at[order].set(keep), scaled, -jnp.inf)


def sample(key: Array, logits: Array, temperature: Array, top_k: Array, top_p: Array) -> Array:
    """Draw a token from `boltzmann_logits`: `[]` int32."""
    return jax.random.categorical(key, boltzmann_logits(logits, temperature, top_k, top_p)).astype(jnp.int32)
