"""The kinetic part of a Hamiltonian, and what a flow is given of both parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax.physics import hamiltonian as h
from lior_jax.physics.pair import Pair
from tests import oracles
from tests.oracles import POTENTIALS, assert_trees_close, check_adjoint, normal, random_hamiltonian, random_like

every_potential = pytest.mark.parametrize("name", POTENTIALS)


def random_state(seed=0, d=5):
    return normal(np.random.default_rng(seed), 2, 3, d)


@every_potential
def test_energies_are_their_formulas(name, float64):
    ham, s, p = random_hamiltonian(5, 7, 0, name), random_state(), random_state(1)
    kinetic = 0.5 * np.einsum("bld,d,bld->bl", p, ham.inverse_mass, p)
    np.testing.assert_allclose(h.kinetic(ham, p), kinetic, rtol=1e-12)
    expected = kinetic + oracles.dense_potential(ham.potential, np.asarray(s))
    np.testing.assert_allclose(h.energy(POTENTIALS[name], ham, s, p), expected, atol=1e-12)


def test_velocity_is_the_gradient_of_the_kinetic_energy(float64):
    ham, p = random_hamiltonian(5, 3), random_state()
    gradient = jax.grad(lambda p: jnp.sum(h.kinetic(ham, p)))(p)
    np.testing.assert_allclose(h.velocity(ham, p), gradient, rtol=1e-12)


@every_potential
def test_system_is_hamiltons_equations_and_their_contrasts(name, float64):
    """Force and velocity, and the literal differences `[∂H/∂θ(+) − ∂H/∂θ(−)] / span` of kicks and drifts, with a mask."""
    ham, potential = random_hamiltonian(5, 7, 0, name), POTENTIALS[name]
    rng = np.random.default_rng(3)
    span, mask = jnp.asarray(rng.uniform(0.05, 1.0, (2, 3, 1))), jnp.asarray(rng.integers(1, 3, (2, 3, 7)), jnp.float64)
    s, p = (Pair(random_state(seed), random_state(seed + 1)) for seed in (4, 6))
    system = h.system(potential, ham, mask=mask)

    def energy(ham, s, p):
        return h.kinetic(ham, p) + potential.energy(ham.potential, s, oracles.RMS_EPSILON, mask)

    by_s, by_p = jax.jit(jax.grad(lambda s, p: jnp.sum(energy(ham, s, p)), (0, 1)))(s.mean, p.mean)
    np.testing.assert_allclose(system.force(s.mean), -by_s, rtol=1e-9)
    np.testing.assert_allclose(system.velocity(p.mean), by_p, rtol=1e-9)

    (forces, by_kick), (velocities, by_drift) = system.kick_contrast(s, span), system.drift_contrast(p, span)
    for pair, alone in ((forces, system.force), (velocities, system.velocity)):
        expected = map(alone, (s if pair is forces else p).ends(span))
        assert_trees_close(pair.ends(span), tuple(expected), 1e-11)

    def difference(ham):
        ends = (energy(ham, *end) for end in zip(s.ends(span), p.ends(span), strict=True))
        return jnp.sum((next(ends) - next(ends)) / span[..., 0])

    assert_trees_close(h.Hamiltonian(by_kick, by_drift), jax.jit(jax.grad(difference))(ham), 1e-10)


@every_potential
@pytest.mark.parametrize("relaxes", [False, True], ids=["free", "restrained"])
def test_prepare_adjoint(name, relaxes):
    raw = random_like(random_hamiltonian(5, 7, 0, name))

    def adjoint(raw, cotangent):
        return (h.prepare_adjoint(POTENTIALS[name], raw, relaxes, cotangent),)

    check_adjoint(lambda raw: h.prepare(POTENTIALS[name], raw, relaxes), adjoint, (raw,), tol=1e-9)


@every_potential
def test_initial_mass_is_one(name):
    prepared = h.prepare(POTENTIALS[name], h.init_hamiltonian(POTENTIALS[name], jax.random.key(0), 6, 4, 1.0), False)
    np.testing.assert_allclose(prepared.inverse_mass, np.ones(6), rtol=1e-6)
