"""How hard, and to which sides, the nudged rollouts are pushed."""

import jax.numpy as jnp
from jax import Array

from lior_jax.physics.hamiltonian import Pair

# Signs of the two pushes. Free is a push of zero.
SIDES = {"centred": (1.0, -1.0), "one_sided": (1.0, 0.0)}


def strength(size: float, s: Array, *pulls: Array) -> Array:
    """ε of every position, `[B, L, 1]`: `ε₀ rms(s) / rms(λ)`, so that each is pushed by the same share of its state.

    Args:
        size: ε₀.
        s: `[B, L, d]`, the state that is pushed.
        pulls: `[B, L, d]`, what pushes it: the cotangents `λ_s` and `λ_p`, and those that a cost along the path adds.
    """
    push = jnp.sum(sum(pull * pull for pull in pulls), axis=-1, keepdims=True)
    scale = jnp.sum(s * s, axis=-1, keepdims=True)
    # A position without a pull (λ = 0) is not pushed whatever ε is; it only must not become infinite.
    tiny = jnp.finfo(s.dtype).tiny
    return size * jnp.sqrt(jnp.maximum(scale, tiny) / jnp.maximum(push, tiny**0.5))


def nudged_pair(
    s: Array, p: Array, c_s: Array, c_p: Array, epsilon: Array, sides: tuple[float, float]
) -> tuple[Pair, Pair, Array]:
    """The two nudged end points `(s ∓ β ε λ_p, p ± β ε λ_s)`, as pairs, and their span `(β₊ − β₋) ε`."""
    shift = middle(epsilon, sides)
    return Pair(s - shift * c_p, -c_p), Pair(p + shift * c_s, c_s), (sides[0] - sides[1]) * epsilon


def middle(epsilon: Array, sides: tuple[float, float]) -> Array:
    """How far the mean of the two runs is pushed."""
    return 0.5 * (sides[0] + sides[1]) * epsilon


def without_nudge(x: Pair, epsilon: Array, sides: tuple[float, float]) -> Array:
    """The run without a push, from a nudged pair: exact if one side is free, else the mean, right to O(ε²)."""
    return x.mean - middle(epsilon, sides) * x.slope
