"""The nudge's own bias: how much an estimate changes when it is taken with twice the nudge."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from lior_jax.learning.accumulation import accumulated
from lior_jax.model.parameters import Params
from lior_jax.settings import LearningConfig, ModelConfig


@partial(jax.jit, static_argnums=(2, 3, 5))
def nudge_bias(
    params: Params,
    batch: tuple[Array, Array],
    model: ModelConfig,
    learning: LearningConfig,
    key: Array | None = None,
    pieces: int = 1,
) -> Array:
    """`‖g(2ε) − g(ε)‖ / ‖g(ε)‖`, `[]`, of the estimate g of `learning.estimate` on a batch, over all parameters together.

    Nudged to both sides, the bias of g(ε) is of the order ε² and about a third of this; nudged to one side it is of the order
    ε, and about this. No residual shows it. Where both nudges are far too strong, both estimates may be wrong alike.

    Args:
        params, batch, model, learning, key, pieces: as of `learning.accumulated`. The rule is given `learning.nudge_size` as
            an array, so that one compiled program takes both estimates.
    """

    def at(size: Array) -> Params:
        return accumulated(params, batch, model, learning.model_copy(update={"nudge_size": size}), key, pieces)[0]

    both = lax.map(at, learning.nudge_size * jnp.array([1.0, 2.0]))
    change = optax.tree.norm(jax.tree.map(lambda g: g[1] - g[0], both))
    return change / jnp.maximum(optax.tree.norm(jax.tree.map(lambda g: g[0], both)), jnp.finfo(change.dtype).tiny)
