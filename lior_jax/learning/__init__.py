"""Learning without back-propagation: contrastive estimates, and what the optimiser does with them."""

from lior_jax.learning.info import Info
from lior_jax.learning.optimizer import make_optimizer
from lior_jax.learning.rule import estimate

__all__ = ["Info", "estimate", "make_optimizer"]
