"""The gradient estimate of the configured learning rule (`registry.RULES`, which users can extend)."""

from jax import Array

from lior_jax.learning.info import Info
from lior_jax.model.parameters import Params
from lior_jax.registry import RULES, resolve
from lior_jax.settings import LearningConfig, ModelConfig


def estimate(
    params: Params, batch: tuple[Array, Array], model: ModelConfig, learning: LearningConfig, key: Array | None = None
) -> tuple[Params, Info]:
    """Contrastive estimate of the gradient of `model.loss`, without automatic differentiation, by `learning.rule`.

    With `learning.action_weight` the cost is the loss plus that weight times the sum of the blocks' mean actions
    (`model.actions`).

    Args:
        params: from `model.init`.
        batch: tokens and targets, each `[B, L]` integers.
        model, learning: static.
        key: from `jax.random.key`, for the dropout masks; needed only with `learning.dropout`.

    Returns:
        An estimate in the structure of `params`, and diagnostics.

    Raises:
        UserError: `learning.dropout` without a key.
    """
    return resolve(RULES[learning.rule].estimate)(params, batch, model, learning, key)
