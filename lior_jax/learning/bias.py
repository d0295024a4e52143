"""The bias due to the finite nudge, from the change of an estimate when the nudge is doubled."""

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
    """`‖g(2ε) − g(ε)‖ / ‖g(ε)‖`, `[]`, for the estimate g of `learning.estimate` on a batch, over all parameters together.

    With two-sided nudging the bias of g(ε) is O(ε²) and about a third of this value; with one-sided nudging it is O(ε) and
    about this value. No residual measures it. If both nudges are far too large, both estimates may be wrong in the same way.

    Args:
        params, batch, model, learning, key, pieces: as for `learning.accumulated`. The rule gets `learning.nudge_size` as an
            array, so that one compiled program computes both estimates.
    """

    def at(size: Array) -> Params:
        return accumulated(params, batch, model, learning.model_copy(update={"nudge_size": size}), key, pieces)[0]

    both = lax.map(at, learning.nudge_size * jnp.array([1.0, 2.0]))
    change = optax.tree.norm(jax.tree.map(lambda g: g[1] - g[0], both))
    return change / jnp.maximum(optax.tree.norm(jax.tree.map(lambda g: g[0], both)), jnp.finfo(change.dtype).tiny)
