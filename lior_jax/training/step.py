"""One step of training: an estimate, and the optimiser's update if the estimate is sound."""

import inspect
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.training import train_state
from jax import Array

from lior_jax import learning, model, parallel
from lior_jax.learning import soundness
from lior_jax.learning.optimizer import averaged, make_schedule
from lior_jax.model import Params
from lior_jax.parallel import Devices
from lior_jax.settings import Config

_DRAWS = 0xD809
"""Folded into the seed's key, which the parameters are drawn from, for one that each step draws from."""


class State(train_state.TrainState):
    """All that a step changes: parameters, the optimiser's state, and `step`, the count of applied steps."""

    step: Array  # pyrefly: ignore[bad-override-mutable-attribute] - an array from the first step on
    params: Params  # pyrefly: ignore[bad-override] - flax says a dictionary, and takes any tree
    average: Params | None = None
    """The average of the weights; None without one (`optimizer.average`)."""

    @property
    def weights(self) -> Params:
        """The parameters that evaluation, samples and inference use."""
        return self.params if self.average is None else self.average

    @property
    def optimizer(self) -> dict[str, Any]:
        """What a checkpoint stores beside `weights`."""
        values = {"opt_state": self.opt_state, "step": self.step}
        return values if self.average is None else values | {"params": self.params}

    def restored(self, weights: Params, optimizer: dict[str, Any]) -> "State":
        """The state with the `weights` and the `optimizer` of a checkpoint."""
        if self.average is None:
            return self.replace(params=weights, **optimizer)
        return self.replace(average=weights, **optimizer)


class Report(NamedTuple):
    """Diagnostics of a step."""

    info: learning.Info
    sound: Array
    """`[]` bool, whether the estimate may be applied (`soundness.is_sound`)."""
    learning_rate: Array
    """`[]`, of this step. The schedule counts the steps that were applied."""


@partial(jax.jit, static_argnums=2, donate_argnums=0)
def train_step(state: State, batch: tuple[Array, Array], config: Config, proceed: Array | bool = True) -> tuple[State, Report]:
    """One estimate and, if it is sound, one optimiser step; an unsound one leaves the state as it is, to the last bit.

    Args:
        state: from `initial_state` or `state_of`, whose optimiser is the one that is applied.
        proceed: `[]` bool; False leaves the state as it is too. Given the last step's `sound`, of which the host does not
            know yet, it keeps the state of a bad step for the host to look at.
    """
    key, pieces = step_key(state.step, config), config.training.accumulate
    ends = parallel.gathered({"embedding": state.params.embedding, "readout": state.params.readout})
    gradient, info = learning.accumulated(state.params._replace(**ends), batch, config.model, config.learning, key, pieces)
    gradient = parallel.kept_sharded(gradient, config.parallel.shard_parameters)
    stepped = state.apply_gradients(grads=gradient)
    stepped = stepped.replace(params=stepped.params._replace(carried=info.carried))
    if state.average is not None and config.optimizer.average is not None:
        average = averaged(state.average, stepped.params, stepped.step, config.optimizer.average)
        stepped = stepped.replace(average=average)
    sound = soundness.is_sound(info, config.learning)
    applied = sound & proceed
    learning_rate = make_schedule(config.optimizer, config.training.steps)(state.step)
    state = jax.tree.map(lambda new, old: jnp.where(applied, new, old), stepped, state)
    return state, Report(info._replace(observed=None), sound, jnp.asarray(learning_rate))


def step_on(devices: Devices, state: State) -> jax.stages.Wrapped:
    """`train_step` on several devices: state and batch lie as `Devices` says, and so does the new state.

    All between is left to the compiler, which cuts one program of the whole batch, so that means, maxima and verdicts are
    those of the whole batch. Call it, or lower it, where the devices are active.

    Args:
        state: arrays or their shapes.
    """
    places = devices.of_state(state)
    return jax.jit(
        inspect.unwrap(train_step),
        static_argnums=2,
        donate_argnums=0,
        in_shardings=(places, devices.batch, devices.everywhere),
        out_shardings=(places, devices.everywhere),
    )


def compiled(config: Config, devices: Devices, state: State) -> jax.stages.Compiled:
    """The step's program for batches of the configuration, compiled and not run.

    Args:
        state: shapes.
    """
    window = jax.ShapeDtypeStruct((config.training.batch_size, config.model.context), jnp.int32)
    run: Any = train_step if devices.mesh is None else step_on(devices, state)
    with devices.active():
        return run.lower(state, (window, window), config, jax.ShapeDtypeStruct((), bool)).compile()


def step_key(step: Array, config: Config) -> Array:
    """The key of what a step draws. It follows from the seed and the applied steps, so that a resumed run draws it again."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.run.seed), _DRAWS), step)


def initial_state(key: Array, config: Config) -> State:
    """Parameters and optimiser state of step 0."""
    return state_of(model.init(key, config.model), config)


def state_of(params: Params, config: Config) -> State:
    """The state that training would start from with these parameters."""
    params = jax.tree.map(jnp.asarray, params)  # flax asks whether a name is `in` them
    state = State.create(apply_fn=model.logits, params=params, tx=_optimizer(config))
    average = None if config.optimizer.average is None else jax.tree.map(jnp.array, params)  # donated with the state: a copy
    # An array from the first step on: a second type compiles again.
    return state.replace(step=jnp.zeros((), jnp.int32), average=average)


@cache
def _optimizer(config: Config) -> optax.GradientTransformation:
    """The same object for the same configuration: it is a static part of the state, and compiled programs are found by it."""
    return learning.make_optimizer(config.optimizer, config.training.steps, config.learning)
