"""The language model, built from the functions of `physics`."""

from lior_jax.model.network import actions, logits, loss, observe, token_losses
from lior_jax.model.parameters import Params, count, decay_mask, init

__all__ = ["Params", "actions", "count", "decay_mask", "init", "logits", "loss", "observe", "token_losses"]
