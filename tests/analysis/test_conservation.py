"""Conservation by flows, compared with closed forms and automatic differentiation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax.analysis import conservation
from lior_jax.physics.hamiltonian import energy, system
from lior_jax.physics.integrators import VELOCITY_VERLET
from tests.oracles import POTENTIALS, normal, random_hamiltonian, small_config, trained_looking

H, STEPS, D = 0.3, 5, 4


@pytest.fixture
def start(float64):
    rng = np.random.default_rng(0)
    return normal(rng, 2, 3, D), normal(rng, 2, 3, D)


def verlet(hamiltonian, step_size):
    return conservation.step_of(system(POTENTIALS["gated"], hamiltonian), VELOCITY_VERLET, step_size)


def energy_of(hamiltonian):
    return partial(energy, POTENTIALS["gated"], hamiltonian)


def damped(step, rate):
    """A step followed by friction, which shrinks phase space by `e^{−rate d}`."""

    def run(s, p):
        s, p = step(s, p)
        return s, jnp.exp(-rate) * p

    return run


def exact_jacobian(flow, s, p):
    """`[B, L, 2d, 2d]` by automatic differentiation, one position at a time."""

    def at(s, p):
        def packed(x):
            return jnp.concatenate([part[0, 0] for part in flow(*(part[None, None] for part in jnp.split(x, 2)))])

        return jax.jacobian(packed)(jnp.concatenate([s, p]))

    return jax.vmap(jax.vmap(at))(s, p)


def test_jacobian_is_that_of_automatic_differentiation(start):
    step = verlet(random_hamiltonian(D, 6), H)
    expected = jax.jit(partial(exact_jacobian, step))(*start)
    np.testing.assert_allclose(jax.jit(partial(conservation.jacobian, step))(*start), expected, atol=1e-9)


def narrow(tree):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float32), tree)


def test_all_is_measured_in_float64():
    """Whatever the types and the mode: a float32 Jacobian of this stiff flow has nothing to do with the flow's own."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        wide = random_hamiltonian(D, 6), normal(rng, 1, 2, D, scale=0.1), normal(rng, 1, 2, D)
    hamiltonian, s, p = narrow(wide)
    step, back = (verlet(hamiltonian, h) for h in (H, -H))
    kept = conservation.measure(step, back, energy_of(hamiltonian), s, p, STEPS)
    assert all(x.dtype == jnp.float64 for x in kept)
    np.testing.assert_allclose(kept.volume, 1, atol=1e-5)
    assert kept.symplectic_error.max() < 3e-4
    assert kept.reversibility.max() < 1e-13
    by_float32 = conservation.jacobian(conservation._repeat(step, STEPS), s, p)
    assert conservation.symplectic_error(by_float32).max() > 1e-2


def test_a_symplectic_flow_keeps_volume_and_finds_its_way_back(start):
    hamiltonian = random_hamiltonian(D, 6)
    step, back = (verlet(hamiltonian, h) for h in (H, -H))
    kept = conservation.measure(step, back, energy_of(hamiltonian), *start, STEPS)
    assert kept.energy.shape == kept.norm.shape == (STEPS + 1, 2, 3)
    np.testing.assert_allclose(kept.volume, 1, atol=1e-8)
    assert kept.symplectic_error.max() < 1e-8
    assert kept.reversibility.max() < 1e-13
    np.testing.assert_allclose(kept.energy[0], energy(POTENTIALS["gated"], hamiltonian, *start), rtol=1e-12)
    np.testing.assert_allclose(kept.norm[0], np.linalg.norm(start[0], axis=-1), rtol=1e-12)


def test_energy_is_kept_to_the_order_of_the_step(start):
    """Störmer–Verlet is of order two: half the step, a quarter of the error."""
    hamiltonian = random_hamiltonian(D, 6)

    def error(h, steps):
        path = conservation.path(verlet(hamiltonian, h), *start, steps)
        series = np.asarray(jax.vmap(energy_of(hamiltonian))(*path))
        return np.abs(series - series[0]).max()

    coarse, fine = error(0.02, 20), error(0.01, 40)
    assert 3.5 < coarse / fine < 4.5


def test_friction_shrinks_volume_by_its_rate(start):
    rate = 0.1
    hamiltonian = random_hamiltonian(D, 6)
    step = damped(verlet(hamiltonian, H), rate)
    kept = conservation.measure(step, verlet(hamiltonian, -H), energy_of(hamiltonian), *start, STEPS)
    np.testing.assert_allclose(kept.volume, np.exp(-rate * D * STEPS), rtol=1e-7)
    assert kept.symplectic_error.min() > 0.1
    assert kept.reversibility.min() > 0.01


def test_the_way_back_is_measured_against_state_and_momentum(start):
    """A flow that stretches both, and a way back that does nothing: all in closed form."""
    kept = conservation.measure(
        lambda s, p: (1.1 * s, 1.3 * p), lambda s, p: (s, p), lambda s, p: jnp.sum(s * p, -1), *start, 2
    )
    s, p = (np.linalg.norm(x, axis=-1) for x in start)
    np.testing.assert_allclose(kept.reversibility, np.hypot(0.21 * s, 0.69 * p) / np.hypot(s, p), rtol=1e-10)
    np.testing.assert_allclose(kept.volume, (1.1 * 1.3) ** (2 * D), rtol=1e-9)
    np.testing.assert_allclose(kept.energy[1], 1.43 * kept.energy[0], rtol=1e-12)


def test_rotation_keeps_energy_and_norm_of_the_pair(start):
    """A turn in every plane `(s_i, p_i)`: the exact flow of a harmonic oscillator of unit frequency."""

    def turn(angle):
        return lambda s, p: (jnp.cos(angle) * s + jnp.sin(angle) * p, jnp.cos(angle) * p - jnp.sin(angle) * s)

    kept = conservation.measure(turn(H), turn(-H), lambda s, p: 0.5 * jnp.sum(s * s + p * p, -1), *start, STEPS)
    np.testing.assert_allclose(kept.energy, np.broadcast_to(kept.energy[0], kept.energy.shape), rtol=1e-12)
    s, p = start
    np.testing.assert_allclose(
        kept.norm[-1], np.linalg.norm(np.cos(STEPS * H) * s + np.sin(STEPS * H) * p, axis=-1), rtol=1e-12
    )
    np.testing.assert_allclose(kept.volume, 1, atol=1e-9)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_blocks_of_a_model_are_symplectic(precision):
    config = small_config(flow__steps=2, flow__step_size=0.5, precision=precision).model
    tokens = np.arange(5, dtype=np.int32)[None]
    params = trained_looking(config)
    kept = conservation.of_blocks(params, tokens, config)
    assert all(x.dtype == jnp.float64 for x in kept)
    assert kept.volume.shape == (config.blocks, 1, 5)
    assert kept.energy.shape == (config.blocks, config.flow.steps + 1, 1, 5)
    np.testing.assert_allclose(kept.volume, 1, atol=1e-7)
    assert kept.symplectic_error.max() < 1e-7
    assert kept.reversibility.max() < 1e-13
    # The first block's flow starts from the embedded tokens.
    norms = np.linalg.norm(np.asarray(params.embedding, np.float64)[tokens[0]], axis=-1)
    np.testing.assert_allclose(kept.norm[0, 0, 0], norms, rtol=1e-12)
    # The second block's flow starts where the first one ends.
    np.testing.assert_allclose(kept.norm[1, 0], kept.norm[0, -1], rtol=1e-12)
