"""The learning rules by their names in the configuration."""

from jax import Array

from lior_jax.errors import UserError
from lior_jax.learning.info import Info
from lior_jax.model import dropout
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
        key: from `jax.random.key`, what `learning.dropout` draws its masks from. Without dropout it is not needed.

    Returns:
        An estimate in the structure of `params`, and diagnostics.

    Raises:
        UserError: `learning.dropout` without a key.
    """
    rate, keys = learning.dropout, dropout.NO_KEYS
    if rate:
        if key is None:
            raise UserError(
                f"learning.dropout: {rate} draws its masks from a key; give `learning.estimate` one, such as "
                "key=jax.random.key(step), or set learning.dropout: 0."
            )
        keys = dropout.keys(key, model.blocks, batch[0].shape[0])
    return resolve(RULES[learning.rule].estimate)(params, batch, model, learning, keys)
