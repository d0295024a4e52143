"""Using a trained model: generation and scoring."""

from lior_jax.inference.engine import Engine, Score

__all__ = ["Engine", "Score"]
