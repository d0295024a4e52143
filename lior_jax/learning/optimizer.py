"""Optimisation by optax: gradient clipping, AdamW or Muon, weight decay, schedules, and an average of the weights.

An optimiser is a function `(settings) -> optax.GradientTransformation` that turns a clipped gradient into a direction; decay
and learning rate, common to all, are applied after it. `registry.OPTIMIZERS` names them.

    step:     θ ← θ − η_t [direction + d_t θ]      (decoupled decay: Loshchilov and Hutter 2019)
    AdamW:    direction = m̂ / (√v̂ + ε)              (Kingma and Ba 2015)
    Muon:     direction = 0.2 √max(in, out) · UVᵀ   of the momentum `UΣVᵀ` of a matrix (Jordan 2024; scaled to AdamW's
              size, Liu et al. 2025), and AdamW's direction for everything else
    average:  θ̄ ← θ̄ + (1 − min(a, (1 + t) / (10 + t))) (θ − θ̄)

Clipping by global norm: Pascanu et al. 2013; cosine schedule: Loshchilov and Hutter 2017; warm-up, stable, decay: Hu et al.
2024; averaging of iterates: Polyak and Juditsky 1992.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from lior_jax.model.parameters import Params, decay_mask, matrix_axes
from lior_jax.registry import OPTIMIZERS
from lior_jax.settings import LearningConfig, OptimizerConfig

_ADAM_RMS = 0.2
"""Typical root mean square of AdamW's directions, to which Muon's are scaled (Liu et al. 2025), so that the two share learning
rates and decays."""


def make_schedule(optimizer: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate at each of `steps` steps: linear warm-up to the peak, then decay to `final_fraction` of it by
    `schedule`."""
    warmup, peak, last = optimizer.warmup_steps, optimizer.learning_rate, optimizer.learning_rate * optimizer.final_fraction
    rise = optax.linear_schedule(0.0, peak, warmup) if warmup else optax.constant_schedule(peak)
    if optimizer.schedule != "warmup_stable_decay":
        return optax.join_schedules([rise, _fall(optimizer.schedule, peak, last, steps - warmup)], [warmup])
    begin = max(warmup, steps - round(optimizer.decay_fraction * steps))
    parts = [rise, optax.constant_schedule(peak), _fall("linear", peak, last, steps - begin)]
    return optax.join_schedules(parts, [warmup, begin])


def make_decay(optimizer: OptimizerConfig, steps: int) -> optax.Schedule:
    """Weight decay at each of `steps` steps, to be multiplied by the learning rate."""
    last = optimizer.weight_decay * optimizer.weight_decay_final_fraction
    return _fall(optimizer.weight_decay_schedule, optimizer.weight_decay, last, steps)


def _fall(shape: str, first: float, last: float, steps: int) -> optax.Schedule:
    """From `first` to `last` over a number of steps, then constant at `last`."""
    if steps <= 0 or shape == "constant":
        return optax.constant_schedule(last if steps <= 0 else first)
    if shape == "linear":
        return optax.linear_schedule(first, last, steps)
    return optax.cosine_decay_schedule(first, steps, alpha=last / first) if first else optax.constant_schedule(0.0)


def make_optimizer(optimizer: OptimizerConfig, steps: int, learning: LearningConfig) -> optax.GradientTransformation:
    """Clip by global norm, then the named optimiser; no decay on metric parameters, biases and scalars, and none at all
    unless `learning.learns_all`."""
    decays = learning.learns_all and optimizer.weight_decay > 0
    return optax.chain(
        optax.clip_by_global_norm(optimizer.clip_norm),
        OPTIMIZERS[optimizer.name](optimizer),
        optax.add_decayed_weights(make_decay(optimizer, steps) if decays else 0.0, mask=decay_mask),
        optax.scale_by_learning_rate(make_schedule(optimizer, steps)),
    )


def adamw(optimizer: OptimizerConfig) -> optax.GradientTransformation:
    """Adam's directions for all parameters."""
    return optax.scale_by_adam(b1=optimizer.beta1, b2=optimizer.beta2)


def muon(optimizer: OptimizerConfig) -> optax.GradientTransformation:
    """Orthogonalised momentum for the blocks' matrices, and Adam's directions, with a separate rate, for the rest: embedding,
    readout, taps, metrics, kernels, gates, biases.

    The projection of all heads together counts as one matrix, as does each matrix of a potential. The directions have the same
    root mean square as Adam's.
    """
    orthogonal = optax.chain(
        scale_by_muon(beta=optimizer.momentum, weight_dimension_numbers=_dimensions),
        optax.stateless(lambda directions, _: _at_adams_size(directions)),
    )
    ratio = 1.0 if optimizer.adam_learning_rate is None else optimizer.adam_learning_rate / optimizer.learning_rate
    rest = optax.chain(adamw(optimizer), optax.scale(ratio))
    return optax.partition({True: orthogonal, False: rest}, _is_matrix)


def _at_adams_size(directions: Any) -> Any:
    """Rescale semi-orthogonal matrices from the root mean square `1 / √max(in, out)` to that of Adam's directions."""

    def scaled(axes: MuonDimensionNumbers, direction: Array) -> Array:
        size = max(math.prod(direction.shape[axis] for axis in np.atleast_1d(side)) for side in axes)
        return _ADAM_RMS * math.sqrt(size) * direction

    return jax.tree.map(scaled, _dimensions(directions), directions, is_leaf=lambda x: isinstance(x, MuonDimensionNumbers))


def _dimensions(params: Any) -> Any:
    return matrix_axes(params, lambda inputs, outputs: MuonDimensionNumbers(inputs, outputs), None)


def _is_matrix(params: Any) -> Any:
    return matrix_axes(params, lambda *_: True, False)


def averaged(average: Params, params: Params, step: Array, decay: float) -> Params:
    """The exponential moving average of the weights after `step` applied steps; its carried statistics are those of `params`.

    Args:
        step: `[]`, from 1 on.
        decay: a, reached at late steps; early ones have less, so that the initial weights are forgotten.
    """
    kept = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    moved = jax.tree.map(lambda new, old: (1.0 - kept) * new + kept * old, params, average)
    return moved._replace(carried=params.carried)


Optimizer = Callable[[OptimizerConfig], optax.GradientTransformation]
"""The type of the entries of `OPTIMIZERS`."""
