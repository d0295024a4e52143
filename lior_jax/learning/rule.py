"""The learning rules by their names in the configuration."""

from jax import Array

from lior_jax.config import Config
from lior_jax.learning import echo, equilibrium
from lior_jax.learning.info import Info
from lior_jax.model.parameters import Params

RULES = {"echo": echo.estimate, "equilibrium": equilibrium.estimate}


def estimate(params: Params, batch: tuple[Array, Array], config: Config) -> tuple[Params, Info]:
    """Contrastive estimate of the gradient of `model.loss`, without automatic differentiation, by `learning.rule`.

    With `learning.action_weight` the cost is the loss plus that weight times the sum of the blocks' mean actions
    (`model.actions`).

    Args:
        params: from `model.init`.
        batch: tokens and targets, each `[B, L]` integers.
        config: static.

    Returns:
        An estimate in the structure of `params`, and diagnostics.
    """
    return RULES[config.learning.rule](params, batch, config)
