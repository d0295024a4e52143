"""The LIoR action `∫ R(x) sqrt(g(ẋ, ẋ)) dτ`: the metric length of a path, weighted by resilience, and the
fractional order driven by it.

Source: the audit's `lior_step`, and docs/design.md section 3.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

LENGTH_EPSILON = 1e-4

# Relaxation time of the order, in units of τ, and its gain on the action.
RELAXATION_TIME = 100.0
GAIN = 1.0

# Smallest distance of α from 0 and 1, where the kernel is undefined.
EDGE = 1e-3


def length(displacement: Array) -> Array:
    """`sqrt(‖x‖² + ε)` of whitened displacements `[..., m]`: the action of a straight move with `R = 1`, `[...]`.

    It is independent of the parametrisation by τ, and smooth at zero displacement.
    """
    return jnp.sqrt(jnp.sum(displacement**2, -1) + LENGTH_EPSILON)


def length_adjoint(displacement: Array, cotangent: Array) -> Array:
    """Adjoint of `length`."""
    return (cotangent / length(displacement))[..., None] * displacement


class ActionState(NamedTuple):
    """Carried from step to step, `[...]` each: `integral` `I = ∫ cost dτ`, `elapsed` time τ, fractional `order` α in (0, 1)."""

    integral: Array
    elapsed: Array
    order: Array


def initial(order: float, *shape: int) -> ActionState:
    """The state before the first step."""
    return ActionState(jnp.zeros(shape), jnp.zeros(shape), jnp.full(shape, order, jnp.float32))


def step(cost: Array, dtau: float, state: ActionState) -> ActionState:
    """One step of `dI/dτ = cost` and of the fractional order.

    The order relaxes towards the logistic function of the cost's excess over its running average, `cost / (I/τ) − 1`:
    above-average action raises α, which shortens the reach of a prior that decays like `Δ^{−α}`; below-average action extends
    it. The relaxation is exact for a cost that is constant during the step, so α stays in (0, 1) for any step size.

    Args:
        cost: `[...]`, the integrand, non-negative.
        dtau: length of the step in units of τ.
        state: shaped like `cost`.
    """
    integral, elapsed = state.integral + cost * dtau, state.elapsed + dtau
    excess = cost * elapsed / jnp.maximum(integral, jnp.finfo(cost.dtype).tiny) - 1
    target = jnp.clip(jax.nn.sigmoid(GAIN * excess), EDGE, 1 - EDGE)
    order = target + (state.order - target) * jnp.exp(-dtau / RELAXATION_TIME)
    return ActionState(integral, elapsed, order)


def prior_shift(state: ActionState) -> Array:
    """`ln(α / (1 − α))`, the shift that α applies to the raw order of a lag prior (`kernel.log_prior`): `[...]`."""
    return jnp.log(state.order) - jnp.log1p(-state.order)
