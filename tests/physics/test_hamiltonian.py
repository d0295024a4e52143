import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax.physics import hamiltonian as h
from lior_jax.physics.hamiltonian import Pair
from tests import oracles
from tests.oracles import assert_trees_close, normal, random_hamiltonian, to64

SHAPES = [(2, 3, 5, 7), (1, 1, 2, 1), (2, 2, 6, 3)]  # B, L, d, M


def random_state(batch, length, d, seed=0, scale=1.0):
    return normal(np.random.default_rng(seed), batch, length, d, scale=scale)


def random_pair(batch, length, d, seed=0):
    rng = np.random.default_rng(seed)
    return Pair(normal(rng, batch, length, d), normal(rng, batch, length, d))


def total_potential(hamiltonian, s):
    return jnp.sum(h.potential(hamiltonian, s))


# --- energies and forces ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "length", "d", "units"), SHAPES)
def test_energies_are_their_formulas(batch, length, d, units, float64):
    ham, s, p = random_hamiltonian(d, units), random_state(batch, length, d), random_state(batch, length, d, seed=1)
    potential = oracles.dense_potential(ham, np.asarray(s))
    kinetic = 0.5 * np.einsum("bld,d,bld->bl", p, ham.inverse_mass, p)
    np.testing.assert_allclose(h.potential(ham, s), potential, atol=1e-12)
    np.testing.assert_allclose(h.kinetic(ham, p), kinetic, rtol=1e-12)
    np.testing.assert_allclose(h.energy(ham, s, p), kinetic + potential, atol=1e-12)


@pytest.mark.parametrize(("batch", "length", "d", "units"), SHAPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_force_is_the_negative_gradient_of_the_potential(batch, length, d, units, scale, float64):
    ham, s = random_hamiltonian(d, units), random_state(batch, length, d, scale=scale)
    gradient = jax.jit(jax.grad(total_potential, argnums=1))(ham, s)
    np.testing.assert_allclose(h.force(ham, s), -gradient, rtol=1e-9, atol=1e-12 / scale)
    np.testing.assert_allclose(oracles.dense_force(ham, np.asarray(s)), -gradient, rtol=1e-9, atol=1e-12 / scale)


def test_velocity_is_the_gradient_of_the_kinetic_energy(float64):
    ham, p = random_hamiltonian(5, 3), random_state(2, 3, 5)
    gradient = jax.grad(lambda p: jnp.sum(h.kinetic(ham, p)))(p)
    np.testing.assert_allclose(h.velocity(ham, p), gradient, rtol=1e-12)


def test_jacobian_of_the_force_is_symmetric(float64):
    """What the echo rests on: the response to a push is the adjoint."""
    ham = random_hamiltonian(6, 8)
    jacobian = np.asarray(jax.jit(jax.jacfwd(lambda s: h.force(ham, s)))(random_state(1, 1, 6)[0, 0]))
    assert np.abs(jacobian).max() > 0.1
    np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-13)


def test_potential_sees_only_the_direction(float64):
    """Without curvature: the same at every length of `s`, so the force is tangential and falls with the length."""
    ham = random_hamiltonian(5, 7)._replace(curvature=jnp.asarray(0.0))
    s = random_state(2, 3, 5, scale=30.0)
    np.testing.assert_allclose(h.potential(ham, 5 * s), h.potential(ham, s), rtol=1e-5)
    np.testing.assert_allclose(5 * h.force(ham, 5 * s), h.force(ham, s), rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(s * h.force(ham, s), -1), 0.0, atol=1e-6)


# --- contrasts -------------------------------------------------------------------------------------------------------


def kick_oracle(ham, s, span):
    """The literal difference of two runs: `[∂V/∂θ(s₊) − ∂V/∂θ(s₋)] / span`, and the two forces."""
    s_plus, s_minus = s.mean + 0.5 * span * s.slope, s.mean - 0.5 * span * s.slope
    forces = [-jax.grad(total_potential, argnums=1)(ham, x) for x in (s_plus, s_minus)]

    def difference(ham):
        return jnp.sum((h.potential(ham, s_plus) - h.potential(ham, s_minus)) / span[..., 0])

    return Pair(0.5 * (forces[0] + forces[1]), (forces[0] - forces[1]) / span), jax.grad(difference)(ham)


@pytest.mark.parametrize(("batch", "length", "d", "units"), SHAPES)
def test_kick_contrast_is_the_literal_difference(batch, length, d, units, float64):
    """At spans that are not small, and differ from position to position."""
    ham, s = random_hamiltonian(d, units), random_pair(batch, length, d)
    span = jnp.asarray(np.random.default_rng(2).uniform(0.05, 1.0, (batch, length, 1)))
    forces, contrast = jax.jit(h.kick_contrast, static_argnums=3)(ham, s, span, "float32")
    expected_forces, expected = jax.jit(kick_oracle)(ham, s, span)
    assert_trees_close(forces, expected_forces, 1e-11)
    assert_trees_close(contrast, expected, 1e-11)
    assert not contrast.inverse_mass.any()


def test_kick_contrast_of_a_small_span_is_a_derivative(float64):
    """Against the forward derivative along the slope; the remainder is O(span²)."""
    ham, s = random_hamiltonian(5, 7), random_pair(2, 3, 5)
    forces, contrast = h.kick_contrast(ham, s, jnp.full((2, 3, 1), 1e-4), "float32")

    @jax.jit
    def oracle(ham, s):
        force, response = jax.jvp(lambda x: h.force(ham, x), (s.mean,), (s.slope,))
        gradient = jax.grad(total_potential)
        return Pair(force, response), jax.jvp(lambda x: gradient(ham, x), (s.mean,), (s.slope,))[1]

    expected_forces, expected = oracle(ham, s)
    assert_trees_close(forces, expected_forces, 1e-6)
    assert_trees_close(contrast, expected, 1e-6)


def test_kick_contrast_does_not_cancel_in_float32():
    """Elementwise rounding of 6e-8 over a span of 1e-3 leaves an error of 1e-4, however many positions add up. The same sums
    as `[h₊;−h₋]ᵀ[s₊;s₋]` err by 9e-4 here."""
    batch, length, d, units = 8, 128, 16, 32
    with jax.enable_x64(False):
        ham, s = random_hamiltonian(d, units), random_pair(batch, length, d)
        span = jnp.full((batch, length, 1), 1e-3)
        forces, contrast = jax.jit(h.kick_contrast, static_argnums=3)(ham, s, span, "float32")
    with jax.enable_x64(True):
        expected_forces, expected = jax.jit(kick_oracle)(*to64((ham, s, span)))
    assert_trees_close(forces, expected_forces, 3e-4)
    assert_trees_close(contrast, expected, 3e-4)


def test_drift_contrast_is_the_literal_difference(float64):
    ham, p = random_hamiltonian(5, 3), random_pair(2, 3, 5)
    span = jnp.asarray(np.random.default_rng(3).uniform(0.05, 1.0, (2, 3, 1)))

    def difference(inverse_mass):
        plus, minus = (h.kinetic(ham._replace(inverse_mass=inverse_mass), x) for x in p.ends(span))
        return jnp.sum((plus - minus) / span[..., 0])

    np.testing.assert_allclose(h.drift_contrast(p), jax.grad(difference)(ham.inverse_mass), rtol=1e-10)


def test_pair_round_trip(float64):
    plus, minus = random_state(2, 3, 5), random_state(2, 3, 5, seed=1)
    span = jnp.asarray(np.random.default_rng(4).uniform(0.05, 1.0, (2, 3, 1)))
    for actual, expected in zip(h.pair(plus, minus, span).ends(span), (plus, minus), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-13)
