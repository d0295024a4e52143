"""Strength and sides of the nudges. Two-sided (centred) nudging: Laborieux et al. 2021; random sign: Scellier and Bengio
2017."""

import jax
import jax.numpy as jnp
from jax import Array

from lior_jax.physics.flow import State
from lior_jax.physics.numerics import RMS_EPSILON, rms_normalize, rms_normalize_adjoint
from lior_jax.physics.pair import Pair

# Signs of the two nudges; 0 is the free run.
SIDES = {"centred": (1.0, -1.0), "one_sided": (1.0, 0.0)}


def sides_of(mode: str, tokens: Array) -> tuple[Array, Array]:
    """The two nudges of every sequence `[B, L]`, in units of ε: `[B, 1, 1]` each.

    `random_sign` is `(±1, 0)`, with the sign a hash of the sequence's tokens, so that a resumed run draws the same one.
    """
    if mode != "random_sign":
        plus, minus = (jnp.full((tokens.shape[0], 1, 1), side, jnp.float32) for side in SIDES[mode])
        return plus, minus
    # A polynomial in an odd base distinguishes sequences that differ in one token or in their order.
    powers = jnp.cumprod(jnp.full((1, tokens.shape[1]), 0x9E3779B1, jnp.uint32), axis=1)
    seeds = jnp.sum(powers * tokens.astype(jnp.uint32), axis=1)
    sign = jax.vmap(lambda seed: jax.random.rademacher(jax.random.key(seed), (1, 1), jnp.float32))(seeds)
    return sign, jnp.zeros_like(sign)


def target_embedding_adjoint(embedding: Array, s: Array, targets: Array) -> Array:
    """Cotangent of `s` `[B, L, d]` of `½ mean ‖ŝ − ê‖²`, averaged over targets and channels: the audit's pull to the target's
    embedding.

    `ê` is the normalised embedding `[V, d]` of each of `targets` `[B, L]`, treated as constant.
    """
    (direction, inverse), (target, _) = rms_normalize(s), rms_normalize(embedding[targets])
    return rms_normalize_adjoint(direction, inverse, (direction - target) / s.size)


def mean_square(s: Array) -> Array:
    """`mean(s²)` over channels: `[B, L, 1]` of `[B, L, d]`."""
    return jnp.mean(s * s, axis=-1, keepdims=True)


def strength(size: float, s: Array, *pulls: Array, start: Array | None = None) -> Array:
    """ε of every position, `[B, L, 1]`: `ε₀ rms(s) / rms(λ)`, so that every position is nudged by the same fraction of its
    state.

    The nudged runs return to the start of the flow, and the nudge must be small relative to the state there too: an embedding
    can be a hundredth of a block's output. For a vanishing state its own size is no scale: directions
    `s / sqrt(mean(s²) + RMS_EPSILON)` are linear there, and ε₀ is relative to the root of that constant.

    Args:
        size: ε₀.
        s: `[B, L, d]`, the state to be nudged.
        pulls: `[B, L, d]` each: the cotangents `λ_s` and `λ_p`, and those of a cost along the path.
        start: `[B, L, 1]`, `mean_square` of the state at the start of the flow; None if there is no flow.
    """
    push = mean_square(pulls[0]) + sum(map(mean_square, pulls[1:]))
    smaller = mean_square(s) if start is None else jnp.minimum(mean_square(s), start)
    # A position without a pull (λ = 0) is not nudged at any ε, which only must stay finite.
    tiny = jnp.finfo(s.dtype).tiny
    return size * jnp.sqrt(jnp.maximum(smaller, RMS_EPSILON) / jnp.maximum(push, tiny**0.5))


def nudged_pair(
    s: State, p: State, c_s: State, c_p: State, epsilon: Array, sides: tuple[float, float]
) -> tuple[Pair, Pair, Array]:
    """The two nudged end points `(s ∓ β ε λ_p, p ± β ε λ_s)`, as pairs, and their span `(β₊ − β₋) ε`."""
    shift = middle(epsilon, sides)
    s_mean = jax.tree.map(lambda s, c: s - shift * c, s, c_p)
    p_mean = jax.tree.map(lambda p, c: p + shift * c, p, c_s)
    return Pair(s_mean, jax.tree.map(jnp.negative, c_p)), Pair(p_mean, c_s), (sides[0] - sides[1]) * epsilon


def middle(epsilon: Array, sides: tuple[float, float]) -> Array:
    """Displacement of the mean of the two runs."""
    return 0.5 * (sides[0] + sides[1]) * epsilon


def without_nudge(x: Pair, epsilon: Array, sides: tuple[float, float]) -> State:
    """The free run from a nudged pair: exact if one side is free, else the mean, accurate to O(ε²)."""
    shift = middle(epsilon, sides)
    return jax.tree.map(lambda mean, slope: mean - shift * slope, x.mean, x.slope)
