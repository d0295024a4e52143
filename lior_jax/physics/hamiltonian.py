"""A block's Hamiltonian `H(s, p) = ½ pᵀ M⁻¹ p + V(s)`, with any potential `V`, shared by all positions.

Source: docs/design.md section 2.6.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lior_jax.physics.flow import System
from lior_jax.physics.numerics import RMS_EPSILON, Precision, like, raw_positive, softplus_adjoint
from lior_jax.physics.pair import Pair
from lior_jax.physics.potential import Potential


class Hamiltonian(NamedTuple):
    """Parameters of the `potential`, and `inverse_mass` `[d]`, the diagonal of M⁻¹ > 0."""

    potential: Any
    inverse_mass: Array


def init_hamiltonian(potential: Potential, key: Array, width: int, units: int, scale: float) -> Hamiltonian:
    """Raw parameters of unit mass (`Potential.init`)."""
    return Hamiltonian(potential.init(key, width, units, scale), raw_positive(1.0, width))


def prepare(potential: Potential, raw: Hamiltonian, relaxes: bool) -> Hamiltonian:
    """Applied parameters from raw ones (`Potential.prepare`)."""
    return Hamiltonian(potential.prepare(raw.potential, relaxes), jax.nn.softplus(raw.inverse_mass))


def prepare_adjoint(potential: Potential, raw: Hamiltonian, relaxes: bool, cotangent: Hamiltonian) -> Hamiltonian:
    """Adjoint of `prepare`."""
    return Hamiltonian(
        potential.prepare_adjoint(raw.potential, relaxes, cotangent.potential),
        softplus_adjoint(raw.inverse_mass, cotangent.inverse_mass),
    )


def kinetic(hamiltonian: Hamiltonian, p: Array) -> Array:
    """`½ pᵀ M⁻¹ p` of every momentum `[..., d]`: `[...]`."""
    return 0.5 * jnp.sum(p * p * like(hamiltonian.inverse_mass, p), -1)


def energy(potential: Potential, hamiltonian: Hamiltonian, s: Array, p: Array) -> Array:
    """`H(s, p)`, conserved by the exact flow, of every point `[..., d]`: `[...]`."""
    return kinetic(hamiltonian, p) + potential.energy(hamiltonian.potential, s)


def velocity(hamiltonian: Hamiltonian, p: Array) -> Array:
    """`∂H/∂p = M⁻¹ p`."""
    return p * like(hamiltonian.inverse_mass, p)


def system(
    potential: Potential, hamiltonian: Hamiltonian, precision: Precision = "float32", mask: Array | None = None
) -> System:
    """The Hamiltonian in the form that `flow` takes, over states `[B, L, d]`; the contrasts of `Hamiltonian` in two parts.

    Args:
        mask: `[B, L, M]`, of the potential's units.
    """
    parameters = hamiltonian.potential

    def drift_contrast(p: Pair, span: Array) -> tuple[Pair, Array]:
        return Pair(*(velocity(hamiltonian, x) for x in p)), jnp.sum(p.mean * p.slope, (0, 1))

    return System(
        force=lambda s: potential.force(parameters, s, precision, RMS_EPSILON, mask),
        velocity=lambda p: velocity(hamiltonian, p),
        kick_contrast=lambda s, span: potential.contrast(parameters, s, span, precision, RMS_EPSILON, mask),
        drift_contrast=drift_contrast,
    )
