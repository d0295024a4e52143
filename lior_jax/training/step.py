"""One step of training: an estimate, and the optimiser's update if the estimate is sound."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from lior_jax import learning, model
from lior_jax.learning import soundness
from lior_jax.learning.optimizer import make_schedule
from lior_jax.model import Params
from lior_jax.settings import Config

_DROPOUT = 0xD809
"""Folded into the seed's key, which the parameters are drawn from, for one that the masks are drawn from."""


class State(NamedTuple):
    """All that a step changes."""

    params: Params
    optimizer: optax.OptState


class Report(NamedTuple):
    """What a step says of itself."""

    info: learning.Info
    sound: Array
    """`[]` bool, whether the estimate may be applied (`soundness.is_sound`)."""
    learning_rate: Array
    """`[]`, of this step. The schedule counts the steps that were applied."""


@partial(jax.jit, static_argnums=2, donate_argnums=0)
def train_step(state: State, batch: tuple[Array, Array], config: Config, proceed: Array | bool = True) -> tuple[State, Report]:
    """One estimate and, if it is sound, one optimiser step; an unsound one leaves the state as it is, to the last bit.

    Args:
        proceed: `[]` bool; False leaves the state as it is too. Given the last step's `sound`, of which the host does not
            know yet, it keeps the state of a bad step for the host to look at.
    """
    step = optax.tree.get_all_with_path(state.optimizer, "count")[0][1]
    gradient, info = learning.estimate(state.params, batch, config.model, config.learning, dropout_key(step, config))
    updates, optimizer = _optimizer(config).update(gradient, state.optimizer, state.params)
    stepped = State(optax.apply_updates(state.params, updates)._replace(carried=info.carried), optimizer)
    sound = soundness.is_sound(info, config.learning)
    applied = sound & proceed
    learning_rate = make_schedule(config.optimizer, config.training.steps)(step)
    state = jax.tree.map(lambda new, old: jnp.where(applied, new, old), stepped, state)
    return state, Report(info, sound, jnp.asarray(learning_rate))


def dropout_key(step: Array, config: Config) -> Array | None:
    """The key of a step's masks. It depends on the seed and the applied steps alone, so that a resumed run draws them again."""
    if not config.learning.dropout:
        return None
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.run.seed), _DROPOUT), step)


def initial_state(key: Array, config: Config) -> State:
    """Parameters and optimiser state of step 0."""
    params = model.init(key, config.model)
    return State(params, _optimizer(config).init(params))


def _optimizer(config: Config) -> optax.GradientTransformation:
    return learning.make_optimizer(config.optimizer, config.training.steps, config.learning)
