"""Modern Hopfield energy: `V(s) = ½ κ ‖s‖² − (1/β) log Σ_m exp(β w_m·ŝ)`, whose force pulls the direction towards
similar patterns (Ramsauer et al. 2021). Source: docs/design.md section 2.6.

A mask multiplies the terms of the sum, one element per pattern; where all are masked, the logarithm is replaced by 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lior_jax.physics.numerics import (
    RMS_EPSILON,
    Precision,
    project,
    project_back,
    raw_positive,
    rms_normalize,
    softplus_adjoint,
)
from lior_jax.physics.pair import Pair, beside
from lior_jax.physics.potential import Keeping, Potential
from lior_jax.physics.potential.direction import Directions, directions, state_force, well, well_contrast

SHARPNESS = 2.0
"""Standard deviation of `β w_m·ŝ` at initialisation: some patterns stand out, but no single one dominates."""
BEND, PULL = 0.5, 1.0
"""Bounds on the two parts of the curvature (`restrain`)."""


class Hopfield(NamedTuple):
    """`patterns` `w_m` `[M, d]`; `sharpness` `[]` = β > 0; `curvature` `[]` = κ ≥ 0."""

    patterns: Array
    sharpness: Array
    curvature: Array

    MATRICES = ("patterns",)


class Units(NamedTuple):
    """Intermediate results of a state: `overlap` = Wŝ `[..., M]`, and F̂, `on_direction` `[..., d]`."""

    overlap: Array
    on_direction: Array


def init(key: Array, width: int, units: int, scale: float) -> Hopfield:
    """Random raw parameters: the length of a pattern is that of a direction times `scale`."""
    patterns = scale * jax.random.normal(key, (units, width))
    return Hopfield(patterns, raw_positive(SHARPNESS / (scale * width**0.5)), raw_positive(0.01))


def prepare(raw: Hopfield, relaxes: bool) -> Hopfield:
    """Applied parameters: β and κ by softplus, and bounded patterns (`restrain`) if relaxations must converge."""
    sharpness = jax.nn.softplus(raw.sharpness)
    patterns = restrain(raw.patterns, sharpness) if relaxes else raw.patterns
    return Hopfield(patterns, sharpness, jax.nn.softplus(raw.curvature))


def prepare_adjoint(raw: Hopfield, relaxes: bool, cotangent: Hopfield) -> Hopfield:
    """Adjoint of `prepare`."""
    c_patterns, c_sharpness, c_curvature = cotangent
    if relaxes:
        c_patterns, by_restraint = restrain_adjoint(raw.patterns, jax.nn.softplus(raw.sharpness), c_patterns)
        c_sharpness = c_sharpness + by_restraint
    return Hopfield(c_patterns, softplus_adjoint(raw.sharpness, c_sharpness), softplus_adjoint(raw.curvature, c_curvature))


def energy(potential: Hopfield, s: Array, softness: float = RMS_EPSILON, mask: Array | None = None) -> Array:
    """`V(s)` of every point `[..., d]`: `[...]`."""
    s_hat, _ = rms_normalize(s, softness)
    logits = _logits(potential.sharpness * project(s_hat, potential.patterns, "float32"), mask)
    top = _top(logits)
    total = jnp.sum(jnp.exp(logits - top), -1)
    kept = total > 0
    log_sum = jnp.where(kept, top[..., 0] + jnp.log(jnp.where(kept, total, 1.0)), 0.0)
    return well(potential.curvature, s) - log_sum / potential.sharpness


def force(
    potential: Hopfield,
    s: Array,
    precision: Precision = "float32",
    softness: float = RMS_EPSILON,
    mask: Array | None = None,
) -> Array:
    """`−∂V/∂s` of every point `[..., d]`, from `F̂ = Wᵀ softmax(β W ŝ)`."""
    return force_and_units(potential, s, precision, softness, mask)[0]


def force_and_units(
    potential: Hopfield,
    s: Array,
    precision: Precision = "float32",
    softness: float = RMS_EPSILON,
    mask: Array | None = None,
) -> tuple[Array, Units]:
    """`force`, with its intermediate results."""
    s_hat, inverse = rms_normalize(s, softness)
    overlap = project(s_hat, potential.patterns, precision)
    on_direction = project_back(_weights(_logits(potential.sharpness * overlap, mask)), potential.patterns, precision)
    return state_force(potential.curvature, s, s_hat, inverse, on_direction), Units(overlap, on_direction)


def contrast(
    potential: Hopfield,
    s: Pair,
    span: Array,
    precision: Precision = "float32",
    softness: float = RMS_EPSILON,
    mask: Array | None = None,
) -> tuple[Pair, Hopfield]:
    """Forces on both nudged runs, and `[∂V/∂θ(s₊) − ∂V/∂θ(s₋)] / span` (`Potential.contrast`).

    With `a = β W ŝ` and `w = softmax(a)`, `∂V/∂β = (log Σ exp(a) − Σ w a) / β²`. Weights and logarithms are not subtracted:
    with `e = exp(a₊ − a₋) − 1` and `σ = Σ w₋ e`, `w₊ − w₋ = w₋ (e − σ) / (1 + σ)`, and the logarithms differ by `log(1 + σ)`.
    """
    nudged = directions(s, span, softness)
    overlap = Pair(*(project(x, potential.patterns, precision) for x in nudged.pair))
    weights, local = _weights_and_local(potential, s, nudged, overlap, span, precision, mask)
    on_direction = Pair(*(project_back(x, potential.patterns, precision) for x in weights))
    return nudged.forces(potential.curvature, on_direction, span), local


def contrast_of_units(
    potential: Hopfield,
    s: Pair,
    span: Array,
    free: Units,
    middle: Array | float,
    precision: Precision = "float32",
    softness: float = RMS_EPSILON,
    mask: Array | None = None,
) -> tuple[Pair, Hopfield]:
    """`contrast` from the units of the free run (`potential.FreeContrast`): 4 matrix products instead of 6."""
    nudged = directions(s, span, softness)
    overlap = beside(free.overlap, project(nudged.pair.slope, potential.patterns, precision), middle)
    weights, local = _weights_and_local(potential, s, nudged, overlap, span, precision, mask)
    on_direction = beside(free.on_direction, project_back(weights.slope, potential.patterns, precision), middle)
    return nudged.forces(potential.curvature, on_direction, span), local


def _weights_and_local(
    potential: Hopfield, s: Pair, nudged: Directions, overlap: Pair, span: Array, precision: Precision, mask: Array | None
) -> tuple[Pair, Hopfield]:
    """The pair of weights, and the local statistic, from the pair of `Wŝ`."""
    beta = potential.sharpness
    a = Pair(*(beta * x for x in overlap))
    a = a._replace(mean=a.mean - _top(_logits(a.mean, mask)))  # changes neither the weights nor the contrast
    minus = _weights(_logits(a.mean - 0.5 * span * a.slope, mask))
    growth = jnp.expm1(span * a.slope)
    total = jnp.sum(minus * growth, -1, keepdims=True)
    difference = minus * (growth - total) / (1 + total)
    weights = Pair(minus + 0.5 * difference, difference / span)
    by_mean = jnp.sum(weights.slope * a.mean + weights.mean * a.slope, -1, keepdims=True)
    local = Hopfield(
        patterns=-nudged.correlate(weights, precision),
        sharpness=jnp.sum(jnp.log1p(total) / span - by_mean) / beta**2,
        curvature=well_contrast(s),
    )
    return weights, local


def _logits(a: Array, mask: Array | None) -> Array:
    """`log(mask exp(a))`, `[..., M]`."""
    return a if mask is None else jnp.where(mask > 0, a + jnp.log(jnp.where(mask > 0, mask, 1.0)), -jnp.inf)


def _top(logits: Array) -> Array:
    """The maximum of `[..., M]`, or 0 where all are masked: `[..., 1]`."""
    top = jnp.max(logits, -1, keepdims=True)
    return jnp.where(jnp.isfinite(top), top, 0.0)


def _weights(logits: Array) -> Array:
    """`softmax` of `[..., M]`, or 0 where all are masked."""
    terms = jnp.exp(logits - _top(logits))
    return terms / jnp.maximum(jnp.sum(terms, -1, keepdims=True), jnp.finfo(terms.dtype).tiny)


def restrain(patterns: Array, sharpness: Array) -> Array:
    """The patterns `W` `[M, d]` divided by `sqrt(1 + ρ² (β / b + 1 / (c² d)))`, with `ρ = (Σ ‖w_m‖⁸)^⅛`, `b = 1/2`, `c = 1`.

    The Hessian of the sum is `β` times the covariance of the patterns under their weights, at most `β ρ²`; the curvature of the
    normalisation adds at most about `ρ / sqrt(d)`. The division keeps the two below `b` and `c` however large patterns and β
    grow. `ρ` is a smooth function between the length of the longest pattern and `M^⅛` times that.
    """
    size, _ = _size_and_slope(patterns)
    return patterns / jnp.sqrt(1 + size * _bend(patterns, sharpness))


def restrain_adjoint(patterns: Array, sharpness: Array, cotangent: Array) -> tuple[Array, Array]:
    """Adjoint of `restrain`: cotangents of patterns and β."""
    size, slope = _size_and_slope(patterns)
    bend = _bend(patterns, sharpness)
    share = 1 / jnp.sqrt(1 + size * bend)
    c_square = -0.5 * jnp.sum(cotangent * patterns) * share**3
    return share * cotangent + c_square * bend * slope, c_square * size / BEND


def _bend(patterns: Array, sharpness: Array) -> Array:
    return sharpness / BEND + 1 / (PULL**2 * patterns.shape[-1])


def _size_and_slope(patterns: Array) -> tuple[Array, Array]:
    """`ρ²` of patterns `[M, d]`, and its gradient `2 (‖w_m‖² / ρ²)³ w_m`."""
    squares = jnp.sum(patterns * patterns, -1, keepdims=True)
    longest = jnp.maximum(jnp.max(squares), jnp.finfo(squares.dtype).tiny)  # eighth powers would overflow
    size = longest * jnp.sum((squares / longest) ** 4) ** 0.25
    return size, 2 * (squares / jnp.maximum(size, jnp.finfo(squares.dtype).tiny)) ** 3 * patterns


HOPFIELD = Potential(
    init=init,
    prepare=prepare,
    prepare_adjoint=prepare_adjoint,
    energy=energy,
    force=force,
    contrast=contrast,
    stiffness=lambda potential: potential.curvature,
    keeping=Keeping(force_and_units, contrast_of_units),
)
