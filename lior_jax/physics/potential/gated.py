"""Gated units: `V(s) = ½ κ ‖s‖² − Σ_m gelu(w_m·ŝ + b_m) (u_m·ŝ)`. The units are those of GEGLU (Shazeer 2020), summed to an
energy. Source: docs/design.md section 2.6."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lior_jax.physics.numerics import (
    RMS_EPSILON,
    Precision,
    correlate,
    gelu_and_slope,
    like,
    masked,
    project,
    project_back,
    raw_positive,
    rms_normalize,
    softplus_adjoint,
)
from lior_jax.physics.pair import Pair, pair
from lior_jax.physics.potential import Potential
from lior_jax.physics.potential.direction import directions, state_force, well, well_contrast

RESTRAINT, FEATURE_SIZE = 2.0, 3.0
"""Constants of the gates' restraint (`restrain`)."""


class Gated(NamedTuple):
    """`features` `w_m` and `gates` `u_m` `[M, d]`; `bias` `[M]` = b; `curvature` `[]` = κ ≥ 0."""

    features: Array
    gates: Array
    bias: Array
    curvature: Array

    MATRICES = ("features", "gates")


def init(key: Array, width: int, units: int, scale: float) -> Gated:
    """Raw parameters; gates of `scale`, features of unit size."""
    features, gates = width**-0.5 * jax.random.normal(key, (2, units, width))
    return Gated(features, scale * gates, jnp.zeros(units), raw_positive(0.01))


def prepare(raw: Gated, relaxes: bool) -> Gated:
    """What is applied: κ by softplus, and gates that are restrained if a relaxation is to settle."""
    gates = restrain(raw.features, raw.gates) if relaxes else raw.gates
    return raw._replace(gates=gates, curvature=jax.nn.softplus(raw.curvature))


def prepare_adjoint(raw: Gated, relaxes: bool, cotangent: Gated) -> Gated:
    """Adjoint of `prepare`."""
    cotangent = cotangent._replace(curvature=softplus_adjoint(raw.curvature, cotangent.curvature))
    if not relaxes:
        return cotangent
    c_features, c_gates = restrain_adjoint(raw.features, raw.gates, cotangent.gates)
    return cotangent._replace(features=cotangent.features + c_features, gates=c_gates)


def energy(potential: Gated, s: Array, softness: float = RMS_EPSILON, mask: Array | None = None) -> Array:
    """`V(s)` of every point `[..., d]`: `[...]`."""
    s_hat, _ = rms_normalize(s, softness)
    z, gate = _projected(potential, s_hat, "float32")
    gelu, _ = gelu_and_slope(z + like(potential.bias, z))
    return well(potential.curvature, s) - jnp.sum(masked(gelu, mask) * gate, -1)


def force(
    potential: Gated,
    s: Array,
    precision: Precision = "float32",
    softness: float = RMS_EPSILON,
    mask: Array | None = None,
) -> Array:
    """`−∂V/∂s` of every point `[..., d]`, from `F̂ = Uᵀ gelu(z) + Wᵀ e` with `e = gelu'(z) ⊙ (Uŝ)`."""
    s_hat, inverse = rms_normalize(s, softness)
    z, gate = _projected(potential, s_hat, precision)
    gelu, slope = (masked(x, mask) for x in gelu_and_slope(z + like(potential.bias, z)))
    return state_force(potential.curvature, s, s_hat, inverse, _on_direction(potential, slope * gate, gelu, precision))


def contrast(
    potential: Gated,
    s: Pair,
    span: Array,
    precision: Precision = "float32",
    softness: float = RMS_EPSILON,
    mask: Array | None = None,
) -> tuple[Pair, Gated]:
    """Forces on both nudged runs, and `[∂V/∂θ(s₊) − ∂V/∂θ(s₋)] / span` (`Potential.contrast`)."""
    nudged = directions(s, span, softness)
    (z_mean, gate_mean), (z_slope, gate_slope) = (_projected(potential, x, precision) for x in nudged.pair)
    z_ends = Pair(z_mean + like(potential.bias, z_mean), z_slope).ends(span)
    gate_ends = Pair(gate_mean, gate_slope).ends(span)
    (gelu_plus, slope_plus), (gelu_minus, slope_minus) = ([masked(x, mask) for x in gelu_and_slope(z)] for z in z_ends)
    gelu = pair(gelu_plus, gelu_minus, span)
    push = pair(slope_plus * gate_ends[0], slope_minus * gate_ends[1], span)
    on_direction = Pair(*(_on_direction(potential, *x, precision) for x in zip(push, gelu, strict=True)))
    local = Gated(
        features=-nudged.correlate(push, precision),
        gates=-nudged.correlate(gelu, precision),
        bias=-jnp.sum(push.slope, (0, 1)),
        curvature=well_contrast(s),
    )
    return nudged.forces(potential.curvature, on_direction, span), local


def _projected(potential: Gated, s_hat: Array, precision: Precision) -> tuple[Array, Array]:
    """`Wŝ` and `Uŝ`, each `[..., M]`."""
    return project(s_hat, potential.features, precision), project(s_hat, potential.gates, precision)


def _on_direction(potential: Gated, push: Array, gelu: Array, precision: Precision) -> Array:
    return project_back(push, potential.features, precision) + project_back(gelu, potential.gates, precision)


def restrain(features: Array, gates: Array) -> Array:
    """The gates `U` divided by `1 + ‖U‖ (‖W‖ + ‖W‖² / 3) / 2`, for features `W` and gates `[M, d]`.

    That is the size of what `V` bends by, `Σ gelu' (w uᵀ + u wᵀ) + gelu'' (u·ŝ) w wᵀ`, so its bend stays of the order of a unit
    spring's however large the matrices grow. The norm is Schatten's of order 8, `tr((AᵀA)⁴)^⅛`: between the largest singular
    value and `d^⅛` times that, and smooth.
    """
    (w, _), (u, _) = (_norm_and_slope(x) for x in (features, gates))
    return gates / (1 + u * w * (1 + w / FEATURE_SIZE) / RESTRAINT)


def restrain_adjoint(features: Array, gates: Array, cotangent: Array) -> tuple[Array, Array]:
    """Adjoint of `restrain`: cotangents of features and gates."""
    (w, w_slope), (u, u_slope) = (_norm_and_slope(x) for x in (features, gates))
    share = 1 / (1 + u * w * (1 + w / FEATURE_SIZE) / RESTRAINT)
    c_size = -jnp.sum(cotangent * gates) * share**2 / RESTRAINT
    c_w, c_u = c_size * u * (1 + 2 * w / FEATURE_SIZE), c_size * w * (1 + w / FEATURE_SIZE)
    return c_w * w_slope, share * cotangent + c_u * u_slope


def _norm_and_slope(matrix: Array) -> tuple[Array, Array]:
    """Schatten's norm of order 8 of `A` `[M, d]`, and its gradient `A (AᵀA)³ / ‖A‖⁷`."""
    scale = jnp.sqrt(jnp.maximum(jnp.sum(matrix * matrix), jnp.finfo(matrix.dtype).tiny))
    unit = matrix / scale  # eighth powers would overflow
    gram = correlate(unit, unit, "float32")
    square = correlate(gram, gram, "float32")
    norm = jnp.sum(square * square) ** 0.125
    slope = project(unit, correlate(gram, square, "float32"), "float32")
    return scale * norm, slope / jnp.maximum(norm, 0.1) ** 7


GATED = Potential(
    init=init,
    prepare=prepare,
    prepare_adjoint=prepare_adjoint,
    energy=energy,
    force=force,
    contrast=contrast,
    stiffness=lambda potential: potential.curvature,
)
