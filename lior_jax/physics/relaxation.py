"""Dissipative rollouts: relaxation to a minimum of an energy, free or nudged towards a target.

`relax` and `relax_pair` minimise any energy over arrays or trees of them. A block's is

    E(s) = ½ ‖s − s_in − M⁻¹ f‖²_M + V(s)

A spring of stiffness `M` ties the state to the block's input, displaced by the retrieval's kick `f`, and a potential adds to
it. `V` is bounded below, so `E` is too, and at a minimum `s = s_in + M⁻¹ (f − ∂V/∂s)`. With `M = 1` the spring is the squared
prediction error `½ ‖s − s_in − A_o y‖²` of predictive coding (Whittington and Bogacz 2017). Descent is by the heavy-ball method
(Polyak 1964). Source: docs/design.md section 4.

Descent at a fixed rate converges in a dozen steps only if the curvature of `V` stays below the spring's. Two measures ensure
this. `ŝ = s / sqrt(mean(s²) + 1)` is softened: for a small state it follows the state itself, not its direction, which varies
the faster the smaller the state is. And the potential is restrained (`Potential.prepare`), so that it cannot outgrow the spring
during learning.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lior_jax.physics.flow import Contrast, State
from lior_jax.physics.hamiltonian import Hamiltonian
from lior_jax.physics.numerics import Precision, like
from lior_jax.physics.pair import Pair
from lior_jax.physics.potential import Potential

SOFTNESS = 1.0
"""Added to `mean(s²)` in the potential's `ŝ`."""


class Descent(NamedTuple):
    """Heavy-ball descent: `v ← momentum v − rate P ∂E/∂s`, `s ← s + v`, `steps` times. Without momentum it is gradient
    descent."""

    steps: int
    rate: float
    momentum: float


class Landscape(NamedTuple):
    """An energy `E(s)` in the form that a descent takes.

    `gradient`: `∂E/∂s`. `contrast`: the gradients on a nudged pair, and `[∂E/∂θ(s₊) − ∂E/∂θ(s₋)] / span`. `precondition`:
    multiplies by `P`, an approximate inverse of E's curvature.
    """

    gradient: Callable[[State], State]
    contrast: Contrast
    precondition: Callable[[State], State]


def relax(landscape: Landscape, start: State, descent: Descent) -> tuple[State, Array]:
    """Descend towards a minimum.

    Returns:
        The state, and the residual of every step `[steps]`: `‖P ∂E/∂s‖ / ‖s‖` over the whole state, before the step.
    """
    return _descend(landscape.gradient, start, landscape.precondition, descent, _ratio)


Pull = Callable[[State], State]
"""From states to the cotangent by which the target pulls on them."""


def relax_pair(
    landscape: Landscape, free: State, pull: Pull, sides: tuple[Array | float, Array | float], epsilon: Array, descent: Descent
) -> tuple[Pair, Array]:
    """Relax two copies of the free state under `E + β ε C`, one for each side β.

    Args:
        free: the free state, from which both copies start.
        pull: `∂C/∂s`.
        sides: the two β, which must differ, and `epsilon`: both broadcast to every array of the state, `[B, 1, 1]` and
            `[B, L, 1]` for `[B, L, d]`.

    Returns:
        The pair, whose slope is the difference divided by the span `(β₊ − β₋) ε`; and the residual of the slope at every step.
    """
    plus, minus = sides
    span = (plus - minus) * epsilon

    def gradient(s: Pair) -> Pair:
        slopes, _ = landscape.contrast(s, span)
        pulls = tuple(pull(end) for end in s.ends(span))
        return Pair(
            jax.tree.map(lambda g, x, y: g + 0.5 * epsilon * (plus * x + minus * y), slopes.mean, *pulls),
            jax.tree.map(lambda g, x, y: g + (plus * x - minus * y) / (plus - minus), slopes.slope, *pulls),
        )

    def precondition(s: Pair) -> Pair:
        return Pair(*map(landscape.precondition, s))

    start = Pair(free, jax.tree.map(jnp.zeros_like, free))
    return _descend(gradient, start, precondition, descent, lambda update, s: _ratio(update.slope, s.slope))


def energy(potential: Potential, hamiltonian: Hamiltonian, s: Array, s_in: Array, push: Array) -> Array:
    """A block's `E(s)` of every position: `[...]`, for `[..., d]` each."""
    stretch = s - anchor(hamiltonian, s_in, push)
    spring = 0.5 * jnp.sum(stretch * stretch / like(hamiltonian.inverse_mass, s), -1)
    return spring + potential.energy(hamiltonian.potential, s, SOFTNESS)


def anchor(hamiltonian: Hamiltonian, s_in: Array, push: Array) -> Array:
    """The equilibrium of spring and kick without the potential: `s_in + M⁻¹ f`, `[..., d]`."""
    return s_in + like(hamiltonian.inverse_mass, s_in) * push


class BlockContrast(NamedTuple):
    """`[∂E/∂x(s₊) − ∂E/∂x(s₋)] / span` for every argument x of a block's energy: `s_in` and `push` `[B, L, d]`, and the
    parameters of the potential and the spring, summed over positions."""

    s_in: Array
    push: Array
    hamiltonian: Hamiltonian


def landscape(
    potential: Potential,
    hamiltonian: Hamiltonian,
    s_in: Array,
    push: Array,
    precision: Precision = "float32",
    mask: Array | None = None,
) -> Landscape:
    """A block's energy, independent for each position; its contrast is a `BlockContrast` of pairs `[B, L, d]`.

    Args:
        s_in: `[..., d]`, the block's input.
        push: `[..., d]`, the retrieval's kick.
        mask: `[..., M]`, of the potential's units.
    """
    parameters, held = hamiltonian.potential, anchor(hamiltonian, s_in, push)
    inverse_mass = like(hamiltonian.inverse_mass, s_in)
    preconditioner = inverse_mass / (1 + potential.stiffness(parameters) * inverse_mass)

    def gradient(s: Array) -> Array:
        return (s - held) / inverse_mass - potential.force(parameters, s, precision, SOFTNESS, mask)

    def contrast(s: Pair, span: Array) -> tuple[Pair, BlockContrast]:
        forces, by_potential = potential.contrast(parameters, s, span, precision, SOFTNESS, mask)
        stiffness = 1 / inverse_mass
        slopes = Pair(stiffness * (s.mean - held) - forces.mean, stiffness * s.slope - forces.slope)
        by_mass = -jnp.sum((s.mean - s_in) * s.slope, (0, 1)) / hamiltonian.inverse_mass**2
        return slopes, BlockContrast(-s.slope / inverse_mass, -s.slope, Hamiltonian(by_potential, by_mass))

    return Landscape(gradient, contrast, lambda s: preconditioner * s)


def _descend(
    gradient: Callable[[Any], Any],
    start: Any,
    precondition: Callable[[Any], Any],
    descent: Descent,
    residual: Callable[[Any, Any], Array],
) -> tuple[Any, Array]:
    """The descent, for a state or a pair of states."""

    def step(moving, _):
        s, v = moving
        update = precondition(gradient(s))
        v = jax.tree.map(lambda v, u: descent.momentum * v - descent.rate * u, v, update)
        return (jax.tree.map(jnp.add, s, v), v), residual(update, s)

    (s, _), residuals = lax.scan(step, (start, jax.tree.map(jnp.zeros_like, start)), length=descent.steps)
    return s, residuals


def _ratio(x: Any, y: Any) -> Array:
    """`‖x‖ / ‖y‖`, and 0 where both vanish."""
    numerator, denominator = (
        jax.tree.reduce(jnp.add, jax.tree.map(lambda leaf: jnp.sum(leaf * leaf), tree)) for tree in (x, y)
    )
    return jnp.sqrt(numerator / jnp.maximum(denominator, jnp.finfo(denominator.dtype).tiny))
