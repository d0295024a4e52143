"""Resilience `R(x) > 0`: a weight on the length of a displacement, in retrieval and in the action.

`unit` is 1. `constitutive` follows the magnitude of the field at the query, `R = (mean(s²) + ε)^{χ/2}`. `curvature` is the
scalar collapse of the structured curvature `R_μνρσ(x) = Σ_c κ_c(x) B^c_μρ B^c_νσ`, whose `κ_c(x)` is affine in the
whitened chart point; no tensor of rank 4 is built. Source: the audit's `R_sc_from_R4`, and docs/design.md section 3.

Shapes: `H` heads, `C` terms, `n` chart dimensions, `m` whitened chart dimensions.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

CURVATURE_EPSILON = 1e-4


def scalar_curvature(curvature: Array, contraction: Array) -> Array:
    """`sqrt(|K_μνρσ R_μνρσ| + ε)` of a dense curvature tensor `[..., n, n, n, n]`: `[...]` (tool).

    Args:
        contraction: `K`, from `base_geometry.contraction_kernel`.
    """
    return jnp.sqrt(jnp.abs(jnp.einsum("mnrs,...mnrs->...", contraction, curvature)) + CURVATURE_EPSILON)


class Constitutive(NamedTuple):
    """`exponent` `[H]` = χ."""

    exponent: Array


class Curvature(NamedTuple):
    """`forms` `[H, C, n, n]` = B^c; `slope` `[H, C, m]` and `level` `[H, C]`, of `κ_c(x) = level_c + slope_c · x`."""

    forms: Array
    slope: Array
    level: Array


class Collapsed(NamedTuple):
    """`K_μνρσ R_μνρσ(x) = level + slope · x`: `slope` `[H, m]`, `level` `[H]`."""

    slope: Array
    level: Array


def collapse(curvature: Curvature, inverse: Array) -> Collapsed:
    """Contract the structured curvature with `K = g₀⁻¹ ⊗ g₀⁻¹ / n²`: each term gives `κ_c (tr(g₀⁻¹ B^c) / n)²`.

    Args:
        inverse: `g₀⁻¹` `[n, n]`.
    """
    square = _traces(curvature, inverse) ** 2
    return Collapsed(jnp.sum(square[..., None] * curvature.slope, 1), jnp.sum(square * curvature.level, 1))


def collapse_adjoint(curvature: Curvature, inverse: Array, cotangent: Collapsed) -> Curvature:
    """Adjoint of `collapse` to the curvature."""
    trace = _traces(curvature, inverse)
    c_kappa = jnp.sum(cotangent.slope[:, None] * curvature.slope, -1) + cotangent.level[:, None] * curvature.level
    n = inverse.shape[0]
    return Curvature(
        forms=(2 * trace * c_kappa / n)[..., None, None] * inverse.T[None, None],
        slope=(trace**2)[..., None] * cotangent.slope[:, None],
        level=trace**2 * cotangent.level[:, None],
    )


def _traces(curvature: Curvature, inverse: Array) -> Array:
    """`tr(g₀⁻¹ B^c) / n`: `[H, C]`."""
    return jnp.sum(curvature.forms * inverse.T[None, None], (-2, -1)) / inverse.shape[0]


Law = Constitutive | Collapsed | None
"""The configured resilience; None for unit resilience."""


def resilience(law: Law, points: Array, inverse_rms: Array) -> Array:
    """`R` at every position and head.

    Args:
        law: constitutive or curvature; None for unit resilience.
        points: `[B, L, H, m]`, whitened chart points.
        inverse_rms: `[B, L, 1]`, `(mean(s²) + ε)^{−½}` of the state.

    Returns:
        `[B, L, H]`. Ones for unit resilience, a constant that the compiler folds away.
    """
    if law is None:
        return jnp.ones(points.shape[:-1], points.dtype)
    if isinstance(law, Constitutive):
        return jnp.exp(-law.exponent[None, None] * jnp.log(inverse_rms))
    return jnp.sqrt(jnp.abs(_collapsed(law, points)) + CURVATURE_EPSILON)


def resilience_adjoint(
    law: Law, points: Array, direction: Array, inverse_rms: Array, cotangent: Array
) -> tuple[Law, Array, Array]:
    """Adjoint of `resilience`.

    Args:
        direction: `[B, L, d]`, `ŝ = s inverse_rms`.
        cotangent: `[B, L, H]`.

    Returns:
        Cotangents of the law, of `points`, and of the state `s` through `inverse_rms`, `[B, L, d]`; zero or None where
        there is no dependence.
    """
    if law is None:
        return None, jnp.zeros_like(points), jnp.zeros_like(direction)
    value = resilience(law, points, inverse_rms)
    if isinstance(law, Constitutive):
        c_exponent = -jnp.sum(cotangent * value * jnp.log(inverse_rms), (0, 1))
        # d ln R / ds = χ s / (d (mean(s²) + ε))
        pull = jnp.sum(cotangent * value * law.exponent[None, None], -1, keepdims=True)
        return Constitutive(c_exponent), jnp.zeros_like(points), pull * direction * inverse_rms / direction.shape[-1]
    c_collapsed = cotangent * jnp.sign(_collapsed(law, points)) / (2 * value)
    c_law = Collapsed(jnp.sum(c_collapsed[..., None] * points, (0, 1)), jnp.sum(c_collapsed, (0, 1)))
    return c_law, c_collapsed[..., None] * law.slope[None, None], jnp.zeros_like(direction)


def _collapsed(law: Collapsed, points: Array) -> Array:
    return law.level[None, None] + jnp.sum(law.slope[None, None] * points, -1)
