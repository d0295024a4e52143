"""The block's Hamiltonian `H(s, p) = ½ pᵀ M⁻¹ p + V(s)` and its local statistics.

    V(s) = ½ κ ‖s‖² − Σ_m gelu(w_m·ŝ + b_m) (u_m·ŝ),   ŝ = s / sqrt(mean(s²) + ε)

The potential sees only the direction of `s` (a potential that is not normalised explodes), is gated, and is the
same at every position. Source: docs/design.md section 2.6.

With a `mask` `[..., M]`, of which every point has its own, each unit's term in the sum is multiplied by its element of it
(dropout): another potential, but still one.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from lior_jax.physics.numerics import (
    RMS_EPSILON,
    Precision,
    correlate,
    gelu_and_slope,
    masked,
    project,
    project_back,
    rms_normalize,
    rms_normalize_adjoint,
)


class Hamiltonian(NamedTuple):
    """`units` `[2, M, d]`: the features `w_m` and the gates `u_m`; `bias` `[M]` = b; `curvature` `[]` = κ ≥ 0;
    `inverse_mass` `[d]`, the diagonal of M⁻¹ > 0."""

    units: Array
    bias: Array
    curvature: Array
    inverse_mass: Array


def potential(hamiltonian: Hamiltonian, s: Array, softness: float = RMS_EPSILON, mask: Array | None = None) -> Array:
    """`V(s)` of every point `[..., d]`: `[...]`."""
    s_hat, _ = rms_normalize(s, softness)
    z, gate = _features(hamiltonian, s_hat, "float32")
    gelu, _ = gelu_and_slope(z + _row(hamiltonian.bias, z))
    return 0.5 * hamiltonian.curvature * jnp.sum(s * s, -1) - jnp.sum(masked(gelu, mask) * gate, -1)


def kinetic(hamiltonian: Hamiltonian, p: Array) -> Array:
    """`½ pᵀ M⁻¹ p` of every momentum `[..., d]`: `[...]`."""
    return 0.5 * jnp.sum(p * p * _row(hamiltonian.inverse_mass, p), -1)


def energy(hamiltonian: Hamiltonian, s: Array, p: Array) -> Array:
    """`H(s, p)`, which the exact flow conserves: `[...]`."""
    return kinetic(hamiltonian, p) + potential(hamiltonian, s)


def velocity(hamiltonian: Hamiltonian, p: Array) -> Array:
    """`∂H/∂p = M⁻¹ p`."""
    return p * _row(hamiltonian.inverse_mass, p)


def force(
    hamiltonian: Hamiltonian,
    s: Array,
    precision: Precision = "float32",
    softness: float = RMS_EPSILON,
    mask: Array | None = None,
) -> Array:
    """`−∂V/∂s` of every point `[..., d]`.

    With `e = gelu'(z) ⊙ (Uŝ)` and `F̂ = Uᵀ gelu(z) + Wᵀ e`, the force is
    `(F̂ − ŝ mean(F̂ ⊙ ŝ)) / sqrt(mean(s²) + ε) − κ s`.
    """
    s_hat, inverse = rms_normalize(s, softness)
    z, gate = _features(hamiltonian, s_hat, precision)
    gelu, slope = (masked(x, mask) for x in gelu_and_slope(z + _row(hamiltonian.bias, z)))
    features, gates = hamiltonian.units
    on_direction = project_back(slope * gate, features, precision) + project_back(gelu, gates, precision)
    return rms_normalize_adjoint(s_hat, inverse, on_direction) - hamiltonian.curvature * s


def _features(hamiltonian: Hamiltonian, s_hat: Array, precision: Precision) -> tuple[Array, Array]:
    """`Wŝ` and `Uŝ`, each `[..., M]`."""
    return (
        project(s_hat, hamiltonian.units[0], precision),
        project(s_hat, hamiltonian.units[1], precision),
    )


def _row(vector: Array, like: Array) -> Array:
    """`vector` `[d]` with leading axes of length one, to stand beside `like` `[..., d]`."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


class Pair(NamedTuple):
    """Two nudged runs, kept as `mean = (x₊ + x₋) / 2` and `slope = (x₊ − x₋) / span`.

    Linear maps act on mean and slope alike, so they lose nothing to cancellation however small the nudge is and
    however coarse the matrix products are; only the elementwise non-linear functions form `x₊` and `x₋`.
    """

    mean: Array
    slope: Array

    def ends(self, span: Array) -> tuple[Array, Array]:
        """`x₊` and `x₋`."""
        half = 0.5 * span * self.slope
        return self.mean + half, self.mean - half


def pair(plus: Array, minus: Array, span: Array) -> Pair:
    """The `Pair` of `x₊` and `x₋`."""
    return Pair(0.5 * (plus + minus), (plus - minus) / span)


def kick_contrast(
    hamiltonian: Hamiltonian,
    s: Pair,
    span: Array,
    precision: Precision,
    softness: float = RMS_EPSILON,
    mask: Array | None = None,
) -> tuple[Pair, Hamiltonian]:
    """Force on both nudged runs, and the contrast `[∂V/∂θ(s₊) − ∂V/∂θ(s₋)] / span` summed over positions.

    Args:
        s: `[B, L, d]` each.
        span: `[B, L, 1]`, the distance of the two nudges.

    Returns:
        The pair of forces, and the contrast in the structure of the parameters (the mass has no part in `V`).
    """
    s_ends = s.ends(span)
    (hat_plus, inverse_plus), (hat_minus, inverse_minus) = (rms_normalize(x, softness) for x in s_ends)
    s_hat = pair(hat_plus, hat_minus, span)
    (z_mean, gate_mean), (z_slope, gate_slope) = (_features(hamiltonian, x, precision) for x in s_hat)
    z_ends = Pair(z_mean + _row(hamiltonian.bias, z_mean), z_slope).ends(span)
    gate_ends = Pair(gate_mean, gate_slope).ends(span)
    (gelu_plus, slope_plus), (gelu_minus, slope_minus) = ([masked(x, mask) for x in gelu_and_slope(z)] for z in z_ends)
    gelu = pair(gelu_plus, gelu_minus, span)
    push = pair(slope_plus * gate_ends[0], slope_minus * gate_ends[1], span)

    features, gates = hamiltonian.units
    f_plus, f_minus = Pair(
        project_back(push.mean, features, precision) + project_back(gelu.mean, gates, precision),
        project_back(push.slope, features, precision) + project_back(gelu.slope, gates, precision),
    ).ends(span)
    forces = pair(
        rms_normalize_adjoint(hat_plus, inverse_plus, f_plus) - hamiltonian.curvature * s_ends[0],
        rms_normalize_adjoint(hat_minus, inverse_minus, f_minus) - hamiltonian.curvature * s_ends[1],
        span,
    )

    def contrast_of(x: Pair) -> Array:
        """`Σ (x₊ ŝ₊ᵀ − x₋ ŝ₋ᵀ) / span`, without the cancellation of that form."""
        return correlate(x.slope, s_hat.mean, precision) + correlate(x.mean, s_hat.slope, precision)

    contrast = Hamiltonian(
        units=-jnp.stack([contrast_of(push), contrast_of(gelu)]),
        bias=-jnp.sum(push.slope, (0, 1)),
        curvature=jnp.sum(s.mean * s.slope),
        inverse_mass=jnp.zeros_like(hamiltonian.inverse_mass),
    )
    return forces, contrast


def drift_contrast(p: Pair) -> Array:
    """`[∂K/∂M⁻¹(p₊) − ∂K/∂M⁻¹(p₋)] / span` of the kinetic energy, summed over positions: `[d]`."""
    return jnp.sum(p.mean * p.slope, (0, 1))
