"""One training step: a gradient estimate, and the optimiser's update if the estimate is sound."""

import inspect
from collections.abc import Callable
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
"""Folded into the seed's key, which initialises the parameters, to derive the key of the steps."""


class State(train_state.TrainState):
    """Everything a step updates: parameters, the optimiser's state, and `step`, the number of applied steps."""

    step: Array  # pyrefly: ignore[bad-override-mutable-attribute] - an array from the first step on
    params: Params  # pyrefly: ignore[bad-override] - flax says a dictionary, and takes any tree
    average: Params | None = None
    """The moving average of the weights; None without `optimizer.average`."""

    @property
    def weights(self) -> Params:
        """The parameters for evaluation, samples and inference."""
        return self.params if self.average is None else self.average

    @property
    def optimizer(self) -> dict[str, Any]:
        """The part of the state that a checkpoint stores besides `weights`."""
        values = {"opt_state": self.opt_state, "step": self.step}
        return values if self.average is None else values | {"params": self.params}

    def restored(self, weights: Params, optimizer: dict[str, Any]) -> "State":
        """The state with `weights` and `optimizer` replaced by those of a checkpoint."""
        if self.average is None:
            return self.replace(params=weights, **optimizer)
        return self.replace(average=weights, **optimizer)


class Report(NamedTuple):
    """Diagnostics of a step."""

    info: learning.Info
    sound: Array
    """`[]` bool, whether the estimate may be applied (`soundness.is_sound`)."""
    learning_rate: Array
    """`[]`, of this step. The schedule counts applied steps only."""


@partial(jax.jit, static_argnums=2, donate_argnums=0)
def train_step(state: State, batch: tuple[Array, Array], config: Config, proceed: Array | bool = True) -> tuple[State, Report]:
    """One estimate and, if it is sound, one optimiser step; an unsound estimate leaves the state unchanged, bit by bit.

    Args:
        state: from `initial_state` or `state_of`; its optimiser is applied.
        proceed: `[]` bool; False leaves the state unchanged, too. Passing the previous step's `sound`, which the host has not
            read yet, preserves the state of a bad step until the host inspects it.
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
    """`train_step` on several devices, with the shardings of `Devices` for the batch, the state and the new state.

    Everything in between is left to the compiler, which partitions one program of the whole batch, so means, maxima and
    soundness are those of the whole batch. Call or lower it in the context of `Devices.active`.

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
    """Compile the step for batches of the configuration, without running it.

    Args:
        state: shapes.
    """
    window = jax.ShapeDtypeStruct((config.training.batch_size, config.model.context), jnp.int32)
    run: Any = train_step if devices.mesh is None else step_on(devices, state)
    with devices.active():
        return run.lower(state, (window, window), config, jax.ShapeDtypeStruct((), bool)).compile()


def step_key(step: Array, config: Config) -> Array:
    """PRNG key of a step, a function of the seed and the number of applied steps, so a resumed run draws the same numbers."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.run.seed), _DRAWS), step)


def initial_state(key: Array, config: Config) -> State:
    """Parameters and optimiser state of step 0."""
    return state_of(model.init(key, config.model), config)


def state_of(params: Params, config: Config) -> State:
    """The initial training state with the given parameters."""
    params = jax.tree.map(jnp.asarray, params)  # flax tests whether a name is `in` the parameters
    state = State.create(apply_fn=model.logits, params=params, tx=_optimizer(config))
    average = None if config.optimizer.average is None else jax.tree.map(jnp.array, params)  # donated with the state: a copy
    # An array from the start: a Python integer would make the second step compile again.
    return state.replace(step=jnp.zeros((), jnp.int32), average=average)


def placed(
    make: Callable[[Any, Config], State], given: Array | Params, config: Config, devices: Devices | None = None
) -> State:
    """`initial_state` or `state_of` as one program, whose result is sharded over `devices`; on the default device if None."""
    places = None if devices is None else devices.of_state(jax.eval_shape(lambda source: make(source, config), given))
    return jax.jit(make, static_argnums=1, out_shardings=places)(given, config)


@cache
def _optimizer(config: Config) -> optax.GradientTransformation:
    """Cached per configuration: the optimiser is a static part of the state, so a new object would trigger a recompilation."""
    return learning.make_optimizer(config.optimizer, config.training.steps, config.learning)
