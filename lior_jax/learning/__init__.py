"""Learning without back-propagation: contrastive gradient estimates, and the optimiser that applies them."""

from lior_jax.learning.accumulation import accumulated
from lior_jax.learning.info import Info
from lior_jax.learning.optimizer import make_optimizer
from lior_jax.learning.rule import estimate
from lior_jax.learning.systems import echo_gradient, energy_landscape, equilibrium_gradient, separable_system

__all__ = [
    "Info",
    "accumulated",
    "echo_gradient",
    "energy_landscape",
    "equilibrium_gradient",
    "estimate",
    "make_optimizer",
    "separable_system",
]
