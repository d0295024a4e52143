"""Dissipative rollouts: relaxation to a minimum of a block's energy, free or with a target pulling on it.

    E(s) = ½ ‖s − s_in − M⁻¹ f‖²_M + V(s)

A spring of stiffness `M` holds the state to the block's input, the retrieval's kick `f` pushes it, and the potential of the
Hamiltonian shapes it. `V` is bounded below, so `E` is too, and a minimum is where `s = s_in + M⁻¹ (f − ∂V/∂s)`. With `M = 1`
the spring is the classic `½ ‖s − s_in − A_o y‖²`. Source: docs/design.md section 4.

A descent of fixed rate settles in a dozen steps only if `V` bends less than the spring does. Two things see to that. Here
`ŝ = s / sqrt(mean(s²) + 1)` is soft: it follows a small state itself instead of its direction, which turns the faster the
smaller the state is. And the gates of `V` are restrained (`restrain`), so that learning cannot make it outgrow the spring.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lior_jax.physics.hamiltonian import Hamiltonian, Pair, force, kick_contrast, potential
from lior_jax.physics.numerics import Precision, correlate, project

SOFTNESS = 1.0
"""Added to `mean(s²)` in the potential's `ŝ`."""

RESTRAINT, FEATURE_SIZE = 2.0, 3.0
"""Of the potential's gates (`restrain`)."""


class Descent(NamedTuple):
    """Heavy-ball descent: `v ← momentum v − rate P ∂E/∂s`, `s ← s + v`, `steps` times. Without momentum it is gradient flow."""

    steps: int
    rate: float
    momentum: float


def energy(hamiltonian: Hamiltonian, s: Array, s_in: Array, push: Array) -> Array:
    """`E(s)` of every position: `[...]`, for `[..., d]` each."""
    stretch = s - anchor(hamiltonian, s_in, push)
    spring = 0.5 * jnp.sum(stretch * stretch / _like(hamiltonian.inverse_mass, s), -1)
    return spring + potential(hamiltonian, s, SOFTNESS)


def anchor(hamiltonian: Hamiltonian, s_in: Array, push: Array) -> Array:
    """Where the spring and the push alone would hold the state: `s_in + M⁻¹ f`, `[..., d]`."""
    return s_in + _like(hamiltonian.inverse_mass, s_in) * push


def relax(
    hamiltonian: Hamiltonian,
    s_in: Array,
    push: Array,
    descent: Descent,
    precision: Precision = "float32",
    mask: Array | None = None,
) -> tuple[Array, Array]:
    """Descend from the anchor towards a minimum of `E`, every position by itself.

    Args:
        s_in: `[..., d]`, the block's input.
        push: `[..., d]`, the retrieval's kick.
        mask: `[..., M]`, of the potential's units.

    Returns:
        The state, and the residual of every step `[steps]`: `‖P ∂E/∂s‖ / ‖s‖` over all positions, before the step.
    """
    held = anchor(hamiltonian, s_in, push)

    def gradient(s: Array) -> Array:
        return (s - held) / _like(hamiltonian.inverse_mass, s) - force(hamiltonian, s, precision, SOFTNESS, mask)

    return _descend(gradient, held, _preconditioner(hamiltonian, held), descent, _ratio)


Pull = Callable[[Array], Array]
"""The cotangent with which a target pulls on states `[B, L, d]`."""


def relax_pair(
    hamiltonian: Hamiltonian,
    held: Array,
    free: Array,
    pull: Pull,
    sides: tuple[Array, Array],
    epsilon: Array,
    descent: Descent,
    precision: Precision = "float32",
    mask: Array | None = None,
) -> tuple[Pair, Array]:
    """Relax two copies of the free state under `E + β ε C`, for the two sides β.

    Args:
        held: `[B, L, d]`, the anchor.
        free: `[B, L, d]`, the free state, where both copies start.
        pull: `∂C/∂s`.
        sides: the two β, `[B, 1, 1]` each, different from each other.
        epsilon: `[B, L, 1]`.
        mask: `[B, L, M]`, as in the free phase.

    Returns:
        The pair, its slope the difference divided by the span `(β₊ − β₋) ε`; and the residual of the slope at every step.
    """
    plus, minus = sides
    span = (plus - minus) * epsilon
    stiffness = 1 / _like(hamiltonian.inverse_mass, free)

    def gradient(s: Pair) -> Pair:
        forces, _ = kick_contrast(hamiltonian, s, span, precision, SOFTNESS, mask)
        c_plus, c_minus = (pull(end) for end in s.ends(span))
        mean = stiffness * (s.mean - held) - forces.mean + 0.5 * epsilon * (plus * c_plus + minus * c_minus)
        return Pair(mean, stiffness * s.slope - forces.slope + (plus * c_plus - minus * c_minus) / (plus - minus))

    def residual(update: Pair, s: Pair) -> Array:
        return _ratio(update.slope, s.slope)

    return _descend(gradient, Pair(free, jnp.zeros_like(free)), _preconditioner(hamiltonian, free), descent, residual)


class Contrast(NamedTuple):
    """`[∂E/∂x(s₊) − ∂E/∂x(s₋)] / span` of what a block's energy depends on: `s_in` and `push` `[B, L, d]`, and the parameters
    of the potential and the spring, summed over positions."""

    s_in: Array
    push: Array
    hamiltonian: Hamiltonian


def contrast(
    hamiltonian: Hamiltonian, s: Pair, s_in: Array, span: Array, precision: Precision, mask: Array | None = None
) -> Contrast:
    """The local statistics of both copies, as differences and means.

    Args:
        s: the relaxed pair, `[B, L, d]` each.
        s_in: `[B, L, d]`, the block's input.
        span: `[B, L, 1]`, the distance of the two nudges.
    """
    _, by_potential = kick_contrast(hamiltonian, s, span, precision, SOFTNESS, mask)
    by_spring = -jnp.sum((s.mean - s_in) * s.slope, (0, 1)) / hamiltonian.inverse_mass**2
    return Contrast(
        s_in=-s.slope / _like(hamiltonian.inverse_mass, s_in),
        push=-s.slope,
        hamiltonian=by_potential._replace(inverse_mass=by_spring),
    )


def restrain(units: Array) -> Array:
    """Features `W` and gates `U`, `[2, M, d]`, with the gates divided by `1 + ‖U‖ (‖W‖ + ‖W‖² / 3) / 2`.

    That is the size of what `V` bends by, `Σ gelu' (w uᵀ + u wᵀ) + gelu'' (u·ŝ) w wᵀ`, so its bend stays of the order of the
    spring's however large the matrices grow. The norm is Schatten's of order 8, `tr((AᵀA)⁴)^⅛`: between the largest singular
    value and `d^⅛` times that, and smooth.
    """
    (features, _), (gates, _) = (_norm_and_slope(x) for x in units)
    return units.at[1].divide(1 + gates * features * (1 + features / FEATURE_SIZE) / RESTRAINT)


def restrain_adjoint(units: Array, cotangent: Array) -> Array:
    """Adjoint of `restrain`."""
    (features, features_slope), (gates, gates_slope) = (_norm_and_slope(x) for x in units)
    share = 1 / (1 + gates * features * (1 + features / FEATURE_SIZE) / RESTRAINT)
    c_size = -jnp.sum(cotangent[1] * units[1]) * share**2 / RESTRAINT
    c_features = c_size * gates * (1 + 2 * features / FEATURE_SIZE)
    c_gates = c_size * features * (1 + features / FEATURE_SIZE)
    return jnp.stack([cotangent[0] + c_features * features_slope, share * cotangent[1] + c_gates * gates_slope])


def _norm_and_slope(matrix: Array) -> tuple[Array, Array]:
    """Schatten's norm of order 8 of `A` `[M, d]`, and its gradient `A (AᵀA)³ / ‖A‖⁷`."""
    scale = jnp.sqrt(jnp.maximum(jnp.sum(matrix * matrix), jnp.finfo(matrix.dtype).tiny))
    unit = matrix / scale  # eighth powers would overflow
    gram = correlate(unit, unit, "float32")
    square = correlate(gram, gram, "float32")
    norm = jnp.sum(square * square) ** 0.125
    slope = project(unit, correlate(gram, square, "float32"), "float32")
    return scale * norm, slope / jnp.maximum(norm, 0.1) ** 7


def _descend(
    gradient: Callable[[Any], Any], start: Any, preconditioner: Array, descent: Descent, residual: Callable[[Any, Any], Array]
) -> tuple[Any, Array]:
    """The one descent, for a state or a pair of them."""

    def step(moving, _):
        s, v = moving
        update = jax.tree.map(lambda g: preconditioner * g, gradient(s))
        v = jax.tree.map(lambda v, u: descent.momentum * v - descent.rate * u, v, update)
        return (jax.tree.map(jnp.add, s, v), v), residual(update, s)

    (s, _), residuals = lax.scan(step, (start, jax.tree.map(jnp.zeros_like, start)), length=descent.steps)
    return s, residuals


def _preconditioner(hamiltonian: Hamiltonian, like: Array) -> Array:
    """`P = (M + κ)⁻¹`, the inverse of the part of E's curvature that does not depend on the state."""
    inverse_mass = _like(hamiltonian.inverse_mass, like)
    return inverse_mass / (1 + hamiltonian.curvature * inverse_mass)


def _ratio(x: Array, y: Array) -> Array:
    """`‖x‖ / ‖y‖`, and 0 where both vanish."""
    return jnp.sqrt(jnp.sum(x * x) / jnp.maximum(jnp.sum(y * y), jnp.finfo(y.dtype).tiny))


def _like(vector: Array, state: Array) -> Array:
    """`vector` `[d]` with leading axes of length one, to stand beside `state` `[..., d]`."""
    return vector.reshape((1,) * (state.ndim - 1) + vector.shape)
