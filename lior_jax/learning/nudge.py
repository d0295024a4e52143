"""How hard, and to which sides, the nudged rollouts are pushed."""

import jax
import jax.numpy as jnp
from jax import Array

from lior_jax.physics.flow import State
from lior_jax.physics.numerics import RMS_EPSILON, rms_normalize, rms_normalize_adjoint
from lior_jax.physics.pair import Pair

# Signs of the two pushes. Free is a push of zero.
SIDES = {"centred": (1.0, -1.0), "one_sided": (1.0, 0.0)}


def sides_of(mode: str, tokens: Array) -> tuple[Array, Array]:
    """The two pushes of every sequence `[B, L]`, in units of ε: `[B, 1, 1]` each.

    `random_sign` is `(±1, 0)`, its sign drawn from the sequence's own tokens, so that a resumed run draws it again.
    """
    if mode != "random_sign":
        plus, minus = (jnp.full((tokens.shape[0], 1, 1), side, jnp.float32) for side in SIDES[mode])
        return plus, minus
    # A polynomial in an odd base tells sequences apart that differ in one token, or in their order.
    powers = jnp.cumprod(jnp.full((1, tokens.shape[1]), 0x9E3779B1, jnp.uint32), axis=1)
    seeds = jnp.sum(powers * tokens.astype(jnp.uint32), axis=1)
    sign = jax.vmap(lambda seed: jax.random.rademacher(jax.random.key(seed), (1, 1), jnp.float32))(seeds)
    return sign, jnp.zeros_like(sign)


def target_embedding_adjoint(embedding: Array, s: Array, targets: Array) -> Array:
    """Cotangent of `s` `[B, L, d]` of `½ mean ‖ŝ − ê‖²`, over targets and channels: the audit's pull to the target's embedding.

    `ê` is the normalised embedding `[V, d]` of each of `targets` `[B, L]`, treated as constant.
    """
    (direction, inverse), (target, _) = rms_normalize(s), rms_normalize(embedding[targets])
    return rms_normalize_adjoint(direction, inverse, (direction - target) / s.size)


def mean_square(s: Array) -> Array:
    """`mean(s²)` over channels: `[B, L, 1]` of `[B, L, d]`."""
    return jnp.mean(s * s, axis=-1, keepdims=True)


def strength(size: float, s: Array, *pulls: Array, start: Array | None = None) -> Array:
    """ε of every position, `[B, L, 1]`: `ε₀ rms(s) / rms(λ)`, so that each is pushed by the same share of its state.

    The pushed runs go back to where the flow began, and the push is small only if it is small beside the state there too: an
    embedding can be a hundredth of what a block makes of it. Where a state is next to nothing, its own size means nothing:
    directions `s / sqrt(mean(s²) + RMS_EPSILON)` are linear there, and ε₀ is relative to the root of that constant.

    Args:
        size: ε₀.
        s: `[B, L, d]`, the state that is pushed.
        pulls: `[B, L, d]`, what pushes it: the cotangents `λ_s` and `λ_p`, and those that a cost along the path adds.
        start: `[B, L, 1]`, `mean_square` of the state that the flow began with; None if it is not left.
    """
    push = mean_square(pulls[0]) + sum(map(mean_square, pulls[1:]))
    smaller = mean_square(s) if start is None else jnp.minimum(mean_square(s), start)
    # A position without a pull (λ = 0) is not pushed whatever ε is; it only must not become infinite.
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
    """How far the mean of the two runs is pushed."""
    return 0.5 * (sides[0] + sides[1]) * epsilon


def without_nudge(x: Pair, epsilon: Array, sides: tuple[float, float]) -> State:
    """The run without a push, from a nudged pair: exact if one side is free, else the mean, right to O(ε²)."""
    shift = middle(epsilon, sides)
    return jax.tree.map(lambda mean, slope: mean - shift * slope, x.mean, x.slope)
