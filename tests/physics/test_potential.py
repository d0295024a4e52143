"""Every potential: energy, force, contrast, mask and restraint, against closed forms and autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax.physics import relaxation
from lior_jax.physics.pair import Pair
from lior_jax.physics.potential import gated, hopfield
from lior_jax.physics.relaxation import SOFTNESS, Descent
from lior_jax.settings import RelaxationConfig
from tests import oracles
from tests.oracles import (
    POTENTIALS,
    assert_trees_close,
    check_adjoint,
    normal,
    random_hamiltonian,
    random_like,
    rms_hat,
    to64,
)

SHAPES = [(2, 3, 5, 7), (1, 1, 2, 1), (2, 2, 6, 3)]  # B, L, d, M
SOFT = {"direction": oracles.RMS_EPSILON, "soft": SOFTNESS}

every_potential = pytest.mark.parametrize("name", POTENTIALS)
every_shape = pytest.mark.parametrize(("batch", "length", "d", "units"), SHAPES)
both_softnesses = pytest.mark.parametrize("softness", SOFT.values(), ids=SOFT)


def parameters(name, d, units, seed=0):
    return random_hamiltonian(d, units, seed, name).potential


def state(batch, length, d, seed=0, scale=1.0):
    return normal(np.random.default_rng(seed), batch, length, d, scale=scale)


def nudged(batch, length, d, seed=0):
    """A pair with spans that are not small, and differ from position to position."""
    rng = np.random.default_rng(seed)
    s = Pair(normal(rng, batch, length, d), normal(rng, batch, length, d))
    return s, jnp.asarray(rng.uniform(0.05, 1.0, (batch, length, 1)))


def total(name, own, s, softness=oracles.RMS_EPSILON, mask=None):
    return jnp.sum(POTENTIALS[name].energy(own, s, softness, mask))


# --- energy and force ------------------------------------------------------------------------------------------------


@both_softnesses
@every_shape
@every_potential
def test_energy_is_its_formula(name, batch, length, d, units, softness, float64):
    own, s = parameters(name, d, units), state(batch, length, d)
    expected = oracles.dense_potential(own, np.asarray(s), softness)
    np.testing.assert_allclose(POTENTIALS[name].energy(own, s, softness), expected, atol=1e-12)


@both_softnesses
@every_shape
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@every_potential
def test_force_is_the_negative_gradient_of_the_energy(name, batch, length, d, units, scale, softness, float64):
    own, s = parameters(name, d, units), state(batch, length, d, scale=scale)
    gradient = jax.jit(jax.grad(total, argnums=2), static_argnums=(0, 3))(name, own, s, softness)
    force = POTENTIALS[name].force(own, s, "float32", softness)
    np.testing.assert_allclose(force, -gradient, rtol=1e-9, atol=1e-12 / scale)
    np.testing.assert_allclose(oracles.dense_force(own, np.asarray(s), softness), -gradient, rtol=1e-9, atol=1e-12 / scale)


@every_potential
def test_jacobian_of_the_force_is_symmetric(name, float64):
    """What the echo rests on: the response to a push is the adjoint."""
    own = parameters(name, 6, 8)
    jacobian = np.asarray(jax.jit(jax.jacfwd(lambda s: POTENTIALS[name].force(own, s)))(state(1, 1, 6)[0, 0]))
    assert np.abs(jacobian).max() > 0.1
    np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-13)


@every_potential
def test_without_curvature_only_the_direction_is_seen(name, float64):
    """The same at every length of `s`, so the force is tangential and falls with the length."""
    own, potential = parameters(name, 5, 7)._replace(curvature=jnp.asarray(0.0)), POTENTIALS[name]
    s = state(2, 3, 5, scale=30.0)
    np.testing.assert_allclose(potential.energy(own, 5 * s), potential.energy(own, s), rtol=1e-5)
    np.testing.assert_allclose(5 * potential.force(own, 5 * s), potential.force(own, s), rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(s * potential.force(own, s), -1), 0.0, atol=1e-6)


@every_potential
def test_stiffness_is_the_curvature_that_is_left_far_out(name, float64):
    own, s = parameters(name, 5, 7), state(1, 1, 5, scale=1e4)[0, 0]
    curvature = jax.hessian(lambda s: POTENTIALS[name].energy(own, s))(s)
    np.testing.assert_allclose(curvature, np.eye(5) * POTENTIALS[name].stiffness(own), atol=1e-6)


def test_a_sharp_hopfield_force_draws_to_the_nearest_pattern(float64):
    """And a blunt one to the mean of all."""
    own, s = parameters("hopfield", 5, 7)._replace(curvature=jnp.asarray(0.0)), state(1, 1, 5)
    s_hat = rms_hat(np.asarray(s))
    patterns = np.asarray(own.patterns)
    nearest = patterns[np.argmax(s_hat[0, 0] @ patterns.T)]
    size = np.sqrt(np.mean(np.asarray(s) ** 2))
    for sharpness, pattern in ((1e3, nearest), (1e-9, patterns.mean(0))):
        force = hopfield.force(own._replace(sharpness=jnp.asarray(sharpness)), s)[0, 0]
        tangential = pattern - s_hat[0, 0] * np.mean(pattern * s_hat[0, 0])
        np.testing.assert_allclose(force, tangential / size, rtol=1e-5)


def test_hopfield_energy_and_force_do_not_overflow():
    own, s = parameters("hopfield", 5, 7)._replace(sharpness=jnp.asarray(1e6)), state(2, 3, 5)
    with jax.enable_x64(False):
        own, s = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (own, s))
        for mask in (None, jnp.tile(jnp.asarray([0.0, 1.0] * 3 + [0.0], jnp.float32), (2, 3, 1))):
            found = hopfield.energy(own, s, SOFTNESS, mask), hopfield.force(own, s, "float32", SOFTNESS, mask)
            assert all(np.isfinite(x).all() for x in found)


# --- contrasts -------------------------------------------------------------------------------------------------------


def contrast_oracle(name, own, s, span, softness=oracles.RMS_EPSILON, mask=None):
    """The literal difference of two runs: `[∂V/∂θ(s₊) − ∂V/∂θ(s₋)] / span`, and the two forces."""
    ends = s.mean + 0.5 * span * s.slope, s.mean - 0.5 * span * s.slope
    forces = [-jax.grad(total, argnums=2)(name, own, x, softness, mask) for x in ends]

    def difference(own):
        plus, minus = (POTENTIALS[name].energy(own, x, softness, mask) for x in ends)
        return jnp.sum((plus - minus) / span[..., 0])

    return Pair(0.5 * (forces[0] + forces[1]), (forces[0] - forces[1]) / span), jax.grad(difference)(own)


def contrast(name, own, s, span, softness=oracles.RMS_EPSILON, mask=None):
    return POTENTIALS[name].contrast(own, s, span, "float32", softness, mask)


compiled = {"static_argnums": (0, 4)}


@both_softnesses
@every_shape
@every_potential
def test_contrast_is_the_literal_difference(name, batch, length, d, units, softness, float64):
    own, (s, span) = parameters(name, d, units), nudged(batch, length, d)
    actual, expected = (jax.jit(f, **compiled)(name, own, s, span, softness) for f in (contrast, contrast_oracle))
    assert_trees_close(actual, expected, 1e-10)


@every_potential
def test_contrast_of_a_small_span_is_a_derivative(name, float64):
    """Against the forward derivative along the slope; the remainder is O(span²)."""
    own, (s, _) = parameters(name, 5, 7), nudged(2, 3, 5)
    actual = contrast(name, own, s, jnp.full((2, 3, 1), 1e-4))

    @jax.jit
    def oracle(own, s):
        force, response = jax.jvp(lambda x: POTENTIALS[name].force(own, x), (s.mean,), (s.slope,))
        by_own = jax.grad(total, argnums=1)
        return Pair(force, response), jax.jvp(lambda x: by_own(name, own, x), (s.mean,), (s.slope,))[1]

    assert_trees_close(actual, oracle(own, s), 1e-6)


@every_potential
def test_contrast_does_not_cancel_in_float32(name):
    """Elementwise rounding of 6e-8 over a span of 1e-3 leaves an error of 1e-4, however many positions add up. The same sums
    as `[h₊;−h₋]ᵀ[s₊;s₋]` err by 9e-4 here."""
    batch, length, d, units = 8, 128, 16, 32
    with jax.enable_x64(False):
        own, (s, _) = parameters(name, d, units), nudged(batch, length, d)
        span = jnp.full((batch, length, 1), 1e-3)
        actual = jax.jit(contrast, **compiled)(name, own, s, span)
    with jax.enable_x64(True):
        expected = jax.jit(contrast_oracle, **compiled)(name, *to64((own, s, span)))
    assert_trees_close(actual, expected, 3e-4)


@pytest.mark.parametrize("middle", [0.0, 0.5], ids=["centred", "one-sided"])
@every_potential
def test_contrast_of_kept_units_is_the_contrast(name, middle, float64):
    """Of a pair whose mean is `middle` spans from the free run, to O(span²)."""
    own, (s, _), mask = parameters(name, 5, 7), nudged(2, 3, 5), random_mask(2, 3, 7)
    span, keeping = jnp.full((2, 3, 1), 1e-5), POTENTIALS[name].keeping
    force, kept = keeping.force(own, s.mean, "float32", SOFTNESS, mask)
    np.testing.assert_array_equal(force, POTENTIALS[name].force(own, s.mean, "float32", SOFTNESS, mask))
    pushed = s._replace(mean=s.mean + middle * span * s.slope)
    actual = keeping.contrast(own, pushed, span, kept, middle * span, "float32", SOFTNESS, mask)
    assert_trees_close(actual, contrast(name, own, pushed, span, SOFTNESS, mask), 1e-8)


# --- masks -----------------------------------------------------------------------------------------------------------


def random_mask(batch, length, units, seed=3):
    """Of every position its own; the first one has none left."""
    mask = 1.5 * np.random.default_rng(seed).integers(0, 2, (batch, length, units))
    mask[0, 0] = 0
    return jnp.asarray(mask)


@every_potential
def test_a_mask_multiplies_every_units_term(name, float64):
    """Energy, force and contrast stay those of one potential; of a point without units only the well is left."""
    own, (s, span) = parameters(name, 5, 7), nudged(2, 3, 5)
    mask = random_mask(2, 3, 7)
    energy = POTENTIALS[name].energy(own, s.mean, SOFTNESS, mask)
    with np.errstate(divide="ignore"):
        expected = oracles.dense_potential(own, np.asarray(s.mean), SOFTNESS, np.asarray(mask))
    expected[0, 0] = 0.15 * np.sum(np.asarray(s.mean)[0, 0] ** 2)
    np.testing.assert_allclose(energy, expected, atol=1e-12)
    actual, oracle = (jax.jit(f, **compiled)(name, own, s, span, SOFTNESS, mask) for f in (contrast, contrast_oracle))
    assert_trees_close(actual, oracle, 1e-10)
    force = POTENTIALS[name].force(own, s.mean, "float32", SOFTNESS, mask)
    np.testing.assert_allclose(force, -jax.grad(total, argnums=2)(name, own, s.mean, SOFTNESS, mask), atol=1e-12)
    np.testing.assert_allclose(force[0, 0], -0.3 * s.mean[0, 0], rtol=1e-12)


@every_potential
def test_a_mask_of_ones_masks_nothing(name, float64):
    own, (s, span) = parameters(name, 5, 7), nudged(2, 3, 5)
    ones = jnp.ones((2, 3, 7))
    assert_trees_close(contrast(name, own, s, span, mask=ones), contrast(name, own, s, span), 1e-13)


# --- raw parameters --------------------------------------------------------------------------------------------------


@every_potential
def test_matrices_are_named(name):
    """Those, and no other parameter, have an axis for units and one for the width."""
    own = jax.eval_shape(lambda: POTENTIALS[name].init(jax.random.key(0), 6, 4, 0.5))
    assert {field for field, x in own._asdict().items() if x.shape == (4, 6)} == set(own.MATRICES)
    assert all(x.ndim < 2 for field, x in own._asdict().items() if field not in own.MATRICES)


@every_potential
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_initial_force_has_the_scale_that_was_asked_for(name, scale):
    """Within a small factor, at the sizes of a real model, so that the forces of all blocks add up to order one."""
    potential = POTENTIALS[name]
    raw = potential.init(jax.random.key(0), 128, 256, scale)
    s = jnp.asarray(state(4, 16, 128), jnp.float32)
    size = float(jnp.sqrt(jnp.mean(potential.force(potential.prepare(raw, False), s) ** 2)))
    assert 0.2 * scale < size < 2 * scale


@every_potential
@pytest.mark.parametrize("size", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("relaxes", [False, True], ids=["free", "restrained"])
def test_prepare_adjoint(name, size, relaxes):
    potential = POTENTIALS[name]
    raw = jax.tree.map(lambda x: size * x, random_hamiltonian(5, 7, 0, name).potential)
    check_adjoint(
        lambda raw: potential.prepare(raw, relaxes), lambda raw, c: (potential.prepare_adjoint(raw, relaxes, c),), (raw,), 1e-9
    )


@every_potential
@pytest.mark.parametrize("relaxes", [False, True], ids=["free", "restrained"])
def test_parameters_of_zero_have_a_finite_adjoint(name, relaxes):
    potential = POTENTIALS[name]
    raw = jax.tree.map(jnp.zeros_like, jax.tree.map(jnp.float32, parameters(name, 5, 7)))
    prepared = potential.prepare(raw, relaxes)
    assert all(not getattr(prepared, matrix).any() for matrix in raw.MATRICES)
    assert float(prepared.curvature) == pytest.approx(np.log(2))
    for leaf in jax.tree.leaves(potential.prepare_adjoint(raw, relaxes, random_like(raw))):
        assert np.isfinite(leaf).all()


# --- restraint -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_gates_are_restrained_by_singular_values(size):
    features, gates = (size * np.asarray(x) for x in parameters("gated", 5, 7)[:2])
    w, u = (np.sum(np.linalg.svd(x, compute_uv=False) ** 8) ** 0.125 for x in (features, gates))
    restrained = np.asarray(gated.restrain(jnp.asarray(features, jnp.float32), jnp.asarray(gates, jnp.float32)))
    np.testing.assert_allclose(restrained, gates / (1 + u * (w + w**2 / 3) / 2), rtol=1e-4)
    w, u = (np.linalg.norm(x, 2) for x in (features, restrained))
    assert w * u < 2
    assert w * w * u < 6


@pytest.mark.parametrize("sharpness", [1e-2, 1.0, 1e3])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_patterns_are_restrained_by_the_longest(size, sharpness):
    patterns = size * np.asarray(parameters("hopfield", 5, 7).patterns)
    rho = np.sum(np.linalg.norm(patterns, axis=1) ** 8) ** 0.125
    restrained = np.asarray(hopfield.restrain(jnp.asarray(patterns, jnp.float32), jnp.float32(sharpness)))
    np.testing.assert_allclose(restrained, patterns / np.sqrt(1 + rho**2 * (2 * sharpness + 1 / 5)), rtol=1e-4)
    longest = np.linalg.norm(restrained, axis=1).max()
    assert sharpness * longest**2 < 0.5
    assert longest < np.sqrt(5)


def opposed(name, own):
    """The hardest patterns for a relaxation: two that exclude each other, in every direction."""
    return own._replace(patterns=jnp.concatenate([own.patterns, -own.patterns])) if name == "hopfield" else own


@every_potential
@pytest.mark.parametrize("size", [0.3, 1.0, 3.0, 30.0])
def test_a_dozen_steps_settle_whatever_the_parameters_grow_to(name, size):
    """The default descent, far below the residual at which an estimate is not to be trusted. Without the restraint it fails,
    and without its momentum, by a full step, it has not settled among gated units."""
    defaults, rng = RelaxationConfig(), np.random.default_rng(0)
    heavy = Descent(12, defaults.rate, defaults.momentum)
    ham = random_hamiltonian(5, 7, 0, name)
    own = opposed(name, ham.potential)
    own = own._replace(**{matrix: size * getattr(own, matrix) for matrix in own.MATRICES})
    s_in, push = normal(rng, 2, 3, 5), normal(rng, 2, 3, 5, scale=0.5)

    def last_residual(own, descent=heavy):
        given = ham._replace(potential=own)
        landscape = relaxation.landscape(POTENTIALS[name], given, s_in, push)
        return relaxation.relax(landscape, relaxation.anchor(given, s_in, push), descent)[1][-1]

    raw = own._replace(curvature=jnp.log(jnp.expm1(own.curvature)))
    restrained = POTENTIALS[name].prepare(raw, True)._replace(curvature=own.curvature)
    assert last_residual(restrained) < 3e-4
    if size == 1 and name == "gated":
        assert last_residual(restrained, Descent(12, 1.0, 0.0)) > 1e-3
    if size > 1:
        assert last_residual(own) > 1e-2


def test_restrained_patterns_bend_less_than_the_spring(float64):
    """`∂²V/∂s²` stays within the bounds that the restraint was made for, at states of all sizes and however large patterns and
    sharpness grow."""
    bend = jax.jit(jax.vmap(jax.hessian(lambda own, s: hopfield.energy(own, s, SOFTNESS), argnums=1), (None, 0)))
    for seed in range(3):
        own = opposed("hopfield", parameters("hopfield", 5, 7, seed))
        states = jnp.concatenate([state(1, 50, 5, seed, scale)[0] for scale in (0.03, 0.3, 1.0, 3.0, 30.0)])
        for size in (0.3, 3.0, 100.0):
            raw = jax.tree.map(lambda x, size=size: size * x, own)
            prepared = hopfield.prepare(raw, True)._replace(curvature=jnp.asarray(0.0))
            assert np.abs(np.linalg.eigvalsh(bend(prepared, states))).max() < 0.6, (seed, size)
