"""Learning without back-propagation: contrastive estimates, and what the optimiser does with them."""

from lior_jax.learning.echo import Info, estimate
from lior_jax.learning.optimizer import make_optimizer

__all__ = ["Info", "estimate", "make_optimizer"]
