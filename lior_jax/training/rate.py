"""A learning-rate range test (Smith 2017): training from the start with a rate that grows by a constant factor per step, until
it diverges. The trained state is discarded.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import optax

from lior_jax import config as configuration
from lior_jax import data, learning
from lior_jax.errors import UserError
from lior_jax.learning import soundness
from lior_jax.settings import Config
from lior_jax.training import origin
from lior_jax.training.step import State, step_key

LOWEST, HIGHEST = 1e-6, 1.0
"""Rates of the first and the last step."""
_DIVERGED = 1.5
"""Multiple of the smallest smoothed loss at which the test ends."""
_RUNNING = 0.8
"""Weight of the past in the running mean that ends the test."""
_SHARE = 0.03
"""Width of the centred smoothing for the choice of the rate, as a fraction of the steps."""
_LEAST = 10
"""Least number of steps for a suggestion."""


class Found(NamedTuple):
    """Result of a range test."""

    rates: np.ndarray
    """`[K]`, rates of the steps."""
    losses: np.ndarray
    """`[K]`, losses of their batches, before each update."""
    smoothed: np.ndarray
    """`[K]`, losses with centred smoothing."""
    suggestion: float
    diverged: bool
    """Whether the loss diverged before the highest rate."""


Progress = Callable[[range, str], Iterable[int]]


def find(config: Config, steps: int = 100, progress: Progress = lambda steps, what: steps) -> Found:
    """Run a range test of a configuration's model, rule, optimiser and data, including `run.init_from`.

    Args:
        steps: from the lowest rate to the highest.
        progress: wraps the iteration over steps.

    Raises:
        UserError: the loss falls at no rate, or what `origin.begin` raises.
    """
    beginning = origin.begin(config)
    config, factor = beginning.config, (HIGHEST / LOWEST) ** (1 / max(steps - 1, 1))
    state = _state(beginning, factor)
    losses: list[float] = []
    running = best = math.inf
    for step in progress(range(steps), "learning rates"):
        batch = data.batch_at(beginning.corpus.train, config.run.seed, step, config.training.batch_size, config.model.context)
        state, loss, sound = _step(state, batch, config)
        loss = float(loss)
        running = loss if step == 0 else _RUNNING * running + (1 - _RUNNING) * loss
        best = min(best, running)
        if not (sound and math.isfinite(loss) and running <= _DIVERGED * best):
            break
        losses.append(loss)
    rates, made = LOWEST * factor ** np.arange(len(losses)), np.array(losses)
    smoothed = smooth(made, max(_SHARE * steps, 1.0))
    return Found(rates, made, smoothed, suggest(rates, smoothed), len(losses) < steps)


def smooth(values: np.ndarray, width: float) -> np.ndarray:
    """Means `[K]` with Gaussian weights of that standard deviation, in steps, truncated at the ends."""
    places = np.arange(len(values))
    weights = np.exp(-0.5 * ((places[:, None] - places) / width) ** 2)
    return weights @ values / weights.sum(1) if len(values) else values


def suggest(rates: np.ndarray, smoothed: np.ndarray) -> float:
    """The rate at which the loss falls fastest with the logarithm of the rate, where it falls below all that it was before:
    not where it recovers from a rise. Raises `UserError` if it never falls."""
    if len(rates) >= _LEAST:
        lowest_yet = smoothed <= np.minimum.accumulate(smoothed)
        slopes = np.where(lowest_yet, np.gradient(smoothed, np.log(rates)), np.inf)
        steepest = int(slopes.argmin())
        if slopes[steepest] < 0:
            return float(rates[steepest])
    raise UserError(
        f"The loss falls at no learning rate from {LOWEST:g} on, in {len(rates)} steps; give --find-rate more steps, and look "
        "at the data and the model."
    )


def _state(beginning: origin.Beginning, factor: float) -> State:
    """The state of step 0 with the configuration's optimiser; its updates, proportional to the rate, are rescaled."""
    config = beginning.config
    level = configuration.replace(config, "optimizer", warmup_steps=0, final_fraction=1.0)
    constant = learning.make_optimizer(level.optimizer, config.training.steps, config.learning)
    scale = optax.scale_by_schedule(lambda step: LOWEST * factor**step / config.optimizer.learning_rate)
    params = origin.state(beginning).params
    state = State.create(apply_fn=None, params=params, tx=optax.chain(constant, scale))
    return state.replace(step=jax.numpy.zeros((), jax.numpy.int32))


@partial(jax.jit, static_argnums=2, donate_argnums=0)
def _step(state: State, batch: tuple[jax.Array, jax.Array], config: Config) -> tuple[State, jax.Array, jax.Array]:
    """The state after an update, the loss before it, and whether the estimate is sound."""
    key, pieces = step_key(state.step, config), config.training.accumulate
    gradient, info = learning.accumulated(state.params, batch, config.model, config.learning, key, pieces)
    state = state.apply_gradients(grads=gradient)
    return (
        state.replace(params=state.params._replace(carried=info.carried)),
        info.loss,
        soundness.is_sound(info, config.learning),
    )
