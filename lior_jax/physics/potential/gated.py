"""Gated units: `V(s) = ½ κ ‖s‖² − Σ_m gelu(w_m·ŝ + b_m) (u_m·ŝ)`. The units are those of GEGLU (Shazeer 2020), summed
into an energy. Source: docs/design.md section 2.6."""

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
from lior_jax.physics.pair import Pair, beside, pair
from lior_jax.physics.potential import Keeping, Potential
from lior_jax.physics.potential.direction import Directions, directions, state_force, well, well_contrast

RESTRAINT, FEATURE_SIZE = 2.0, 3.0
"""Constants of the bound on the gates (`restrain`)."""


class Gated(NamedTuple):
    """`features` `w_m` and `gates` `u_m` `[M, d]`; `bias` `[M]` = b; `curvature` `[]` = κ ≥ 0."""

    features: Array
    gates: Array
    bias: Array
    curvature: Array

    MATRICES = ("features", "gates")


class Units(NamedTuple):
    """Intermediate results of a state: `z` = Wŝ and `gate` = Uŝ, `[..., M]` each, and F̂, `on_direction` `[..., d]`."""

    z: Array
    gate: Array
    on_direction: Array


def init(key: Array, width: int, units: int, scale: float) -> Gated:
    """Random raw parameters: gates of size `scale`, features of unit size."""
    features, gates = width**-0.5 * jax.random.normal(key, (2, units, width))
    return Gated(features, scale * gates, jnp.zeros(units), raw_positive(0.01))


def prepare(raw: Gated, relaxes: bool) -> Gated:
    """Applied parameters: κ by softplus, and bounded gates (`restrain`) if relaxations must converge."""
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
    return force_and_units(potential, s, precision, softness, mask)[0]


def force_and_units(
    potential: Gated,
    s: Array,
    precision: Precision = "float32",
    softness: float = RMS_EPSILON,
    mask: Array | None = None,
) -> tuple[Array, Units]:
    """`force`, with its intermediate results."""
    s_hat, inverse = rms_normalize(s, softness)
    z, gate = _projected(potential, s_hat, precision)
    gelu, slope = (masked(x, mask) for x in gelu_and_slope(z + like(potential.bias, z)))
    on_direction = _on_direction(potential, slope * gate, gelu, precision)
    return state_force(potential.curvature, s, s_hat, inverse, on_direction), Units(z, gate, on_direction)


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
    gelu, push = _nonlinear(potential, Pair(z_mean, z_slope), Pair(gate_mean, gate_slope), span, mask)
    on_direction = Pair(*(_on_direction(potential, *x, precision) for x in zip(push, gelu, strict=True)))
    return nudged.forces(potential.curvature, on_direction, span), _local(s, nudged, gelu, push, precision)


def contrast_of_units(
    potential: Gated,
    s: Pair,
    span: Array,
    free: Units,
    middle: Array | float,
    precision: Precision = "float32",
    softness: float = RMS_EPSILON,
    mask: Array | None = None,
) -> tuple[Pair, Gated]:
    """`contrast` from the units of the free run (`potential.FreeContrast`): 8 matrix products instead of 12."""
    nudged = directions(s, span, softness)
    z_slope, gate_slope = _projected(potential, nudged.pair.slope, precision)
    gelu, push = _nonlinear(potential, beside(free.z, z_slope, middle), beside(free.gate, gate_slope, middle), span, mask)
    on_direction = beside(free.on_direction, _on_direction(potential, push.slope, gelu.slope, precision), middle)
    return nudged.forces(potential.curvature, on_direction, span), _local(s, nudged, gelu, push, precision)


def _nonlinear(potential: Gated, z: Pair, gate: Pair, span: Array, mask: Array | None) -> tuple[Pair, Pair]:
    """The pairs of `gelu(z + b)` and `e`, from those of `Wŝ` and `Uŝ`."""
    z_ends = z._replace(mean=z.mean + like(potential.bias, z.mean)).ends(span)
    gate_ends = gate.ends(span)
    (gelu_plus, slope_plus), (gelu_minus, slope_minus) = ([masked(x, mask) for x in gelu_and_slope(z)] for z in z_ends)
    gelu = pair(gelu_plus, gelu_minus, span)
    push = pair(slope_plus * gate_ends[0], slope_minus * gate_ends[1], span)
    return gelu, push


def _local(s: Pair, nudged: Directions, gelu: Pair, push: Pair, precision: Precision) -> Gated:
    return Gated(
        features=-nudged.correlate(push, precision),
        gates=-nudged.correlate(gelu, precision),
        bias=-jnp.sum(push.slope, (0, 1)),
        curvature=well_contrast(s),
    )


def _projected(potential: Gated, s_hat: Array, precision: Precision) -> tuple[Array, Array]:
    """`Wŝ` and `Uŝ`, each `[..., M]`."""
    return project(s_hat, potential.features, precision), project(s_hat, potential.gates, precision)


def _on_direction(potential: Gated, push: Array, gelu: Array, precision: Precision) -> Array:
    return project_back(push, potential.features, precision) + project_back(gelu, potential.gates, precision)


def restrain(features: Array, gates: Array) -> Array:
    """The gates `U` divided by `1 + ‖U‖ (‖W‖ + ‖W‖² / 3) / 2`, for features `W` and gates `[M, d]`.

    The divisor estimates the size of V's Hessian, `Σ gelu' (w uᵀ + u wᵀ) + gelu'' (u·ŝ) w wᵀ`, so the curvature stays of the
    order of a unit spring's however large the matrices grow. The norm is the Schatten norm of order 8, `tr((AᵀA)⁴)^⅛`, a smooth
    function between the largest singular value and `d^⅛` times that.
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
    """The Schatten norm of order 8 of `A` `[M, d]`, and its gradient `A (AᵀA)³ / ‖A‖⁷`."""
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
    keeping=Keeping(force_and_units, contrast_of_units),
)
