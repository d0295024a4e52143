"""Using a trained model: generation, scoring and explanations."""

from lior_jax.inference.engine import Engine, Score
from lior_jax.inference.explanation import Explanation

__all__ = ["Engine", "Explanation", "Score"]
