"""Checks whether an estimate may be applied: its numbers are finite, and its residual is within the limit."""

import jax
import jax.numpy as jnp
from jax import Array

from lior_jax.learning.info import Info
from lior_jax.registry import RULES
from lior_jax.settings import LearningConfig


def residual_limit(learning: LearningConfig) -> float:
    """Largest `info.reversibility` at which an estimate is applied."""
    given = learning.residual_limit
    return RULES[learning.rule].residual_limit if given is None else given


def bias_advice(bias: float, learning: LearningConfig) -> str:
    """Advice about a `nudge_bias`, empty if it is within its limit."""
    if bias <= learning.nudge_bias_limit:
        return ""
    if learning.nudge == "one_sided":
        return "nudge to both sides, learning.nudge=centred"
    return f"take a smaller nudge, learning.nudge_size={learning.nudge_size / 10:g}"


def is_sound(info: Info, learning: LearningConfig) -> Array:
    """`[]` bool: loss, gradient and carried statistics are finite, and the residual is within its limit.

    The gradient's norm is finite only if all of its elements are; a NaN residual exceeds any limit.
    """
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in (info.loss, info.gradient_norm, *jax.tree.leaves(info.carried))]
    return jnp.all(jnp.stack([*finite, info.reversibility <= residual_limit(learning)]))


def complaints(info: Info, learning: LearningConfig) -> list[str]:
    """The reasons why an estimate is not sound, as phrases."""
    found = [
        f"the {name} is {value}"
        for name, value in (("loss", float(info.loss)), ("norm of the gradient", float(info.gradient_norm)))
        if not jnp.isfinite(value)
    ]
    if not float(info.reversibility) <= residual_limit(learning):
        found.append(f"the residual is {float(info.reversibility):.2g}, above its limit, {residual_limit(learning):g}")
    if not all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(info.carried)):
        found.append("what the physics carries on is not finite")
    return found
