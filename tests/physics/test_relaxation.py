"""Energy, relaxation and contrasts against autodiff, dense linear algebra and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax.physics import relaxation
from lior_jax.physics.pair import Pair
from lior_jax.physics.relaxation import SOFTNESS, Descent
from tests import oracles
from tests.oracles import POTENTIALS, assert_trees_close, normal, random_hamiltonian, to64

FLOW, HEAVY = Descent(60, 0.6, 0.0), Descent(60, 0.85, 0.15)
WIDTH, UNITS = 5, 7

every_potential = pytest.mark.parametrize("name", POTENTIALS)


def well(seed=0, name="gated"):
    """A potential that the spring holds, and a block's input and kick."""
    rng = np.random.default_rng(seed)
    ham = random_hamiltonian(WIDTH, UNITS, seed, name)
    restrained = POTENTIALS[name].prepare(ham.potential, True)._replace(curvature=ham.potential.curvature)
    return ham._replace(potential=restrained), normal(rng, 2, 3, WIDTH), normal(rng, 2, 3, WIDTH, scale=0.5)


def potential_of(ham):
    return POTENTIALS[type(ham.potential).__name__.lower()]


def block_energy(ham, s, s_in, push):
    return relaxation.energy(potential_of(ham), ham, s, s_in, push)


def slope_of_energy(ham, s, s_in, push):
    return jax.grad(lambda s: jnp.sum(block_energy(ham, s, s_in, push)))(s)


def relax(ham, s_in, push, descent):
    landscape = relaxation.landscape(potential_of(ham), ham, s_in, push)
    return relaxation.relax(landscape, relaxation.anchor(ham, s_in, push), descent)


# --- the energy ------------------------------------------------------------------------------------------------------


@every_potential
def test_energy_is_its_formula(name, float64):
    """`½ Σ M (s − s_in − f / M)²` and the potential of the soft direction."""
    ham, s_in, push = well(name=name)
    s = normal(np.random.default_rng(1), 2, 3, WIDTH)
    mass, (s_in_, push_) = 1 / np.asarray(ham.inverse_mass), (np.asarray(s_in), np.asarray(push))
    expected = 0.5 * np.sum(mass * (np.asarray(s) - s_in_ - push_ / mass) ** 2, -1) + oracles.dense_potential(
        ham.potential, np.asarray(s), SOFTNESS
    )
    np.testing.assert_allclose(block_energy(ham, s, s_in, push), expected, rtol=1e-12)


@every_potential
def test_energy_is_bounded_below(name, float64):
    """The potential stays within a band however far the state goes, and the spring outgrows it."""
    ham, s_in, push = well(name=name)
    larger = {matrix: 50 * getattr(ham.potential, matrix) for matrix in ham.potential.MATRICES}
    ham = ham._replace(potential=ham.potential._replace(**larger))
    far = block_energy(ham, jnp.stack([10.0**k * s_in for k in range(2, 6)]), s_in[None], push[None])
    assert (np.diff(far, axis=0) > 0).all()
    assert (far[-1] > 0).all()


# --- relaxing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("descent", [FLOW, HEAVY], ids=["flow", "heavy_ball"])
@every_potential
def test_relaxation_ends_in_a_minimum(name, descent, float64):
    """No slope is left, and every direction goes up."""
    ham, s_in, push = well(name=name)
    s, residuals = relax(ham, s_in, push, descent)
    assert np.abs(slope_of_energy(ham, s, s_in, push)).max() < 1e-9
    curvature = jax.jit(jax.vmap(jax.hessian(block_energy, argnums=1), (None, 0, 0, 0)))
    flat = [x.reshape(-1, WIDTH) for x in (s, s_in, push)]
    assert (np.linalg.eigvalsh(curvature(ham, *flat)) > 0.1).all()
    assert residuals.shape == (descent.steps,)


def test_gradient_flow_never_climbs(float64):
    """From the anchor down, step after step; and it moves."""
    ham, s_in, push = well()
    energies = [block_energy(ham, relax(ham, s_in, push, FLOW._replace(steps=steps))[0], s_in, push) for steps in range(1, 8)]
    assert (np.diff(energies, axis=0) < 1e-12).all()
    start = block_energy(ham, relaxation.anchor(ham, s_in, push), s_in, push)
    assert (energies[0] < start - 1e-3).all()


def test_without_a_potential_the_anchor_is_the_minimum_and_curvature_draws_it_to_zero(float64):
    """In one step of rate 1: the preconditioner is the whole inverse curvature. `M (s − a) + κ s = 0`."""
    ham, s_in, push = well()
    ham = ham._replace(potential=ham.potential._replace(gates=jnp.zeros_like(ham.potential.gates)))
    s, _ = relax(ham, s_in, push, Descent(1, 1.0, 0.0))
    mass = 1 / np.asarray(ham.inverse_mass)
    expected = (mass * np.asarray(s_in) + np.asarray(push)) / (mass + np.asarray(ham.potential.curvature))
    np.testing.assert_allclose(s, expected, rtol=1e-12)


def test_residual_is_the_relative_size_of_the_preconditioned_slope(float64):
    ham, s_in, push = well()
    for steps in (1, 4):
        _, residuals = relax(ham, s_in, push, HEAVY._replace(steps=steps))
        before, _ = relax(ham, s_in, push, HEAVY._replace(steps=steps - 1))
        update = np.asarray(slope_of_energy(ham, before, s_in, push)) / (
            1 / np.asarray(ham.inverse_mass) + float(ham.potential.curvature)
        )
        np.testing.assert_allclose(residuals[-1], np.linalg.norm(update) / np.linalg.norm(before), rtol=1e-9)


def test_positions_relax_by_themselves(float64):
    """Any leading shape: one position alone does what it does among the others."""
    ham, s_in, push = well()
    together, _ = relax(ham, s_in, push, HEAVY)
    alone, _ = relax(ham, s_in[1, 2], push[1, 2], HEAVY)
    np.testing.assert_allclose(alone, together[1, 2], rtol=1e-12)


# --- nudged ----------------------------------------------------------------------------------------------------------


SIDES = {"centred": (1.0, -1.0), "one_sided": (1.0, 0.0), "minus": (-1.0, 0.0)}


def cost(s):
    """Something that pulls differently at every state."""
    return 0.1 * jnp.sum(s**4, -1) + jnp.sum(jnp.sin(s), -1)


@pytest.mark.parametrize("anew", [False, True], ids=["held_fast", "anew"])
@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
@every_potential
def test_both_ends_are_minima_of_the_nudged_energy(name, sides, anew, float64):
    """`∂E/∂s + β ε ∂C/∂s = 0` at each, at nudges that are not small and differ from position to position."""
    ham, s_in, push = well(name=name)
    free, _ = relax(ham, s_in, push, HEAVY)
    epsilon = jnp.asarray(np.random.default_rng(3).uniform(0.05, 0.3, (2, 3, 1)))
    linear = jax.grad(lambda s: jnp.sum(cost(s)))
    pull = linear if anew else lambda s: linear(free)
    sides = tuple(jnp.full((2, 1, 1), side) for side in sides)
    landscape = relaxation.landscape(potential_of(ham), ham, s_in, push)
    pair, residuals = jax.jit(lambda: relaxation.relax_pair(landscape, free, pull, sides, epsilon, HEAVY._replace(steps=100)))()
    ends = pair.ends((sides[0] - sides[1]) * epsilon)
    for side, end in zip(sides, ends, strict=True):
        rest = slope_of_energy(ham, end, s_in, push) + side * epsilon * pull(end)
        assert np.abs(rest).max() < 1e-9
        moved = np.abs(end - free).max()
        assert moved > 1e-2 or not np.any(side)
    assert residuals[-1] < 1e-9 < residuals[0]


def test_slope_of_a_small_nudge_solves_the_linear_system(float64):
    """`H δ = −λ` with the Hessian of the energy."""
    ham, s_in, push = well()
    free, _ = relax(ham, s_in, push, HEAVY._replace(steps=200))
    pull = normal(np.random.default_rng(4), 2, 3, WIDTH)
    sides, epsilon = (jnp.ones((2, 1, 1)), -jnp.ones((2, 1, 1))), jnp.full((2, 3, 1), 1e-4)
    landscape = relaxation.landscape(potential_of(ham), ham, s_in, push)
    pair, _ = relaxation.relax_pair(landscape, free, lambda s: pull, sides, epsilon, HEAVY._replace(steps=200))
    flat = [x.reshape(-1, WIDTH) for x in (free, s_in, push)]
    hessian = jax.vmap(jax.hessian(block_energy, argnums=1), (None, 0, 0, 0))(ham, *flat)
    expected = -np.linalg.solve(hessian, pull.reshape(-1, WIDTH, 1))[..., 0]
    np.testing.assert_allclose(pair.slope.reshape(-1, WIDTH), expected, rtol=1e-5, atol=1e-6)


def contrast_oracle(ham, pair, s_in, push, span):
    """The literal differences of the energy's derivatives at both ends: by the state, and by all that the energy depends on."""

    def difference(ham, s_in, push):
        plus, minus = (block_energy(ham, s, s_in, push) for s in pair.ends(span))
        return jnp.sum((plus - minus) / span[..., 0])

    by_ham, by_input, by_push = jax.grad(difference, argnums=(0, 1, 2))(ham, s_in, push)
    slopes = tuple(slope_of_energy(ham, s, s_in, push) for s in pair.ends(span))
    return slopes, relaxation.BlockContrast(by_input, by_push, by_ham)


def contrast(ham, pair, s_in, push, span):
    slopes, local = relaxation.landscape(potential_of(ham), ham, s_in, push).contrast(pair, span)
    return slopes.ends(span), local


@every_potential
def test_contrast_is_the_literal_difference(name, float64):
    """Of the energy's derivatives by state, input, kick and all parameters, at spans that are not small."""
    ham, s_in, push = well(name=name)
    rng = np.random.default_rng(5)
    pair, span = Pair(normal(rng, 2, 3, WIDTH), normal(rng, 2, 3, WIDTH)), jnp.asarray(rng.uniform(0.05, 1.0, (2, 3, 1)))
    actual = contrast(ham, pair, s_in, push, span)
    assert_trees_close(actual, contrast_oracle(ham, pair, s_in, push, span), 1e-10)


@every_potential
def test_contrast_does_not_cancel_in_float32(name):
    """Over a span of 1e-3, where rounding of 6e-8 leaves an error of 1e-4 in the elementwise functions and adds none."""
    shape = 8, 64, WIDTH
    with jax.enable_x64(False):
        ham, rng = well(name=name)[0], np.random.default_rng(6)
        s_in, push, *ends = (normal(rng, *shape) for _ in range(4))
        pair, span = Pair(*ends), jnp.full((*shape[:2], 1), 1e-3)
        actual = contrast(ham, pair, s_in, push, span)
    with jax.enable_x64(True):
        expected = contrast_oracle(*to64((ham, pair, s_in, push, span)))
    assert_trees_close(actual, expected, 3e-4)
