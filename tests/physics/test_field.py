import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy.linalg import expm
from scipy.special import binom, gamma

from lior_jax.errors import UserError
from lior_jax.physics import field as f
from lior_jax.physics import field_state as fs
from lior_jax.physics import kernel
from lior_jax.physics.field import Constants
from lior_jax.physics.kernel import Poles
from tests.oracles import normal, to_numpy

# No constant is 1, so that none can be left out unseen.
CONSTANTS = Constants(hbar=0.7, mass=1.3, spacing=0.8, dt=0.05, evidence_temperature=2.0)
OPEN = CONSTANTS._replace(evidence_rate=1.5, memory_rate=0.4, memory_length=5, memory_order=0.6)
GRID = (4, 5)
MODES = ["unitary", "symplectic", "dissipative"]

evolve = jax.jit(f.evolve, static_argnames=("constants", "steps", "mode"))


def random_field(nx=GRID[0], ny=GRID[1], d=2, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return normal(rng, nx, ny, d, d, scale=scale) + 1j * normal(rng, nx, ny, d, d, scale=scale)


def random_potential(nx=GRID[0], ny=GRID[1], seed=7, low=0.0, high=2.0):
    return jnp.asarray(np.random.default_rng(seed).uniform(low, high, (nx, ny)))


def no_potential(nx=GRID[0], ny=GRID[1]):
    return jnp.zeros((nx, ny))


def waves(n, spacing):
    """`k` of the Fourier modes of one direction: `2π/L` times the whole numbers nearest to 0."""
    return 2 * np.pi * np.array([j if 2 * j <= n else j - n for j in range(n)]) / (n * spacing)


def plane_wave(modes, nx=GRID[0], ny=GRID[1], d=2, spacing=CONSTANTS.spacing):
    """`e^{i k·x}` times a fixed tensor, and `k²`."""
    kx, ky = waves(nx, spacing)[modes[0]], waves(ny, spacing)[modes[1]]
    x, y = spacing * np.arange(nx), spacing * np.arange(ny)
    wave = np.exp(1j * (kx * x[:, None] + ky * y[None]))
    return jnp.asarray(wave[..., None, None] * np.asarray(random_field(1, 1, d, seed=5))), kx**2 + ky**2


def dense_hamiltonian(potential, constants):
    """`H` as a matrix over the grid's points, its kinetic part through the matrix of the Fourier transform."""
    kinetic = np.zeros((potential.size, potential.size), complex)
    for axis, n in enumerate(potential.shape):
        transform = np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n) / np.sqrt(n)
        second = transform.conj().T @ np.diag(-(waves(n, constants.spacing) ** 2)) @ transform
        factors = [np.eye(m) for m in potential.shape]
        factors[axis] = second
        kinetic += -(constants.hbar**2) / (2 * constants.mass) * np.kron(*factors)
    return kinetic + np.diag(np.asarray(potential, float).ravel())


def apply(matrix, field):
    field = np.asarray(field)
    return (matrix @ field.reshape(len(matrix), -1)).reshape(field.shape)


def relative(actual, expected):
    return np.linalg.norm(np.asarray(actual) - np.asarray(expected)) / np.linalg.norm(np.asarray(expected))


# --- Hamiltonian operator --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modes", [(0, 0), (1, 0), (0, 2), (3, 4), (2, 1)])
def test_laplacian_of_a_plane_wave(modes, float64):
    wave, k2 = plane_wave(modes)
    np.testing.assert_allclose(f.laplacian(wave, CONSTANTS.spacing), -k2 * wave, atol=1e-12)


def test_hamiltonian_is_the_dense_matrix(float64):
    field, potential = random_field(), random_potential()
    matrix = dense_hamiltonian(potential, CONSTANTS)
    np.testing.assert_allclose(matrix, matrix.conj().T, atol=1e-13)
    np.testing.assert_allclose(f.hamiltonian(field, potential, CONSTANTS), apply(matrix, field), atol=1e-12)


def test_hamiltonian_is_hermitian(float64):
    a, b, potential = random_field(), random_field(seed=1), random_potential()
    left = np.vdot(a, f.hamiltonian(b, potential, CONSTANTS))
    right = np.vdot(f.hamiltonian(a, potential, CONSTANTS), b)
    assert abs(left.imag) > 0.1
    np.testing.assert_allclose(left, right, rtol=1e-12)


def test_energies_are_their_formulas(float64):
    field, momentum, potential = random_field(), random_field(seed=1), random_potential()
    area = CONSTANTS.spacing**2
    expected = area * np.vdot(field, apply(dense_hamiltonian(potential, CONSTANTS), field)).real
    kinetic = area * np.sum(np.abs(momentum) ** 2) / (2 * CONSTANTS.mass)
    np.testing.assert_allclose(f.norm(field), np.linalg.norm(field), rtol=1e-13)
    np.testing.assert_allclose(f.energy(field, potential, CONSTANTS), expected, rtol=1e-12)
    np.testing.assert_allclose(f.mechanical_energy(field, momentum, potential, CONSTANTS), kinetic + expected / 2, rtol=1e-12)


# --- unitary mode ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modes", [(1, 0), (3, 2)])
def test_free_plane_wave_turns_by_its_kinetic_energy(modes, float64):
    """`T(t) = e^{−iħk²t/2m} T(0)`, which the split step meets exactly."""
    wave, k2 = plane_wave(modes)
    end, info = evolve(f.begin(wave, CONSTANTS), no_potential(), None, None, CONSTANTS, 30, "unitary")
    level = CONSTANTS.hbar**2 * k2 / (2 * CONSTANTS.mass)
    angle = level * 30 * CONSTANTS.dt / CONSTANTS.hbar
    assert 0.3 < angle % (2 * np.pi) < 6
    np.testing.assert_allclose(end.field, np.exp(-1j * angle) * wave, atol=1e-12)
    np.testing.assert_allclose(info.norm, np.linalg.norm(wave), rtol=1e-12)
    np.testing.assert_allclose(info.energy, level * CONSTANTS.spacing**2 * np.linalg.norm(wave) ** 2, rtol=1e-11)


def test_constant_potential_only_turns_the_phase(float64):
    field, level = random_field(), 1.7
    steps = [f.split_step(field, jnp.full(GRID, v), CONSTANTS) for v in (0.0, level)]
    np.testing.assert_allclose(steps[1], np.exp(-1j * level * CONSTANTS.dt / CONSTANTS.hbar) * steps[0], atol=1e-13)


def test_ground_state_of_the_harmonic_oscillator(float64):
    """`e^{−mωr²/2ħ}` has the energy `ħω` in two dimensions, and turns by `ωt`."""
    n, omega = 20, 0.9
    constants = CONSTANTS._replace(spacing=0.45, dt=0.02)
    x = constants.spacing * (np.arange(n) - n / 2)
    r2 = x[:, None] ** 2 + x[None] ** 2
    field = jnp.asarray(np.exp(-constants.mass * omega * r2 / (2 * constants.hbar))[..., None, None] + 0j)
    potential = jnp.asarray(0.5 * constants.mass * omega**2 * r2)
    f.check(constants, field.shape, float(potential.max()), "unitary")
    end, info = evolve(f.begin(field, constants), potential, None, None, constants, 100, "unitary")
    mean_energy = info.energy[-1] / (constants.spacing * info.norm[-1]) ** 2
    np.testing.assert_allclose(mean_energy, constants.hbar * omega, rtol=1e-4)
    np.testing.assert_allclose(end.field, np.exp(-1j * omega * 100 * constants.dt) * field, atol=1e-3)


def test_split_step_is_unitary_and_reversible(float64):
    """As it is, without the rescaling in `evolve`. Complex conjugation turns time round."""
    start, potential = random_field(), random_potential()

    @jax.jit
    def many(field):
        return lax.scan(lambda x, _: (f.split_step(x, potential, CONSTANTS), None), field, None, length=200)[0]

    end = many(start)
    assert relative(end, start) > 0.5
    np.testing.assert_allclose(np.linalg.norm(end), np.linalg.norm(start), rtol=1e-12)
    np.testing.assert_allclose(many(end.conj()).conj(), start, atol=1e-11)


def test_split_step_has_order_two(float64):
    """Half the step, a quarter of the distance to `e^{−iHt/ħ}`."""
    field, potential, time = random_field(), random_potential(high=3.0), 1.6
    exact = apply(expm(-1j * time / CONSTANTS.hbar * dense_hamiltonian(potential, CONSTANTS)), field)
    errors = []
    for steps in (32, 64, 128):
        constants = CONSTANTS._replace(dt=time / steps)
        end, _ = evolve(f.begin(field, constants), potential, None, None, constants, steps, "unitary")
        errors.append(relative(end.field, exact))
    assert errors[-1] < 3e-3
    assert 3.6 < errors[0] / errors[1] < 4.4, errors
    assert 3.8 < errors[1] / errors[2] < 4.2, errors


def test_closed_unitary_evolution_is_the_split_step(float64):
    """Without sources, and with sources that are all zero."""
    field, potential = random_field(), random_potential()
    state = f.begin(field, CONSTANTS)
    expected = f.split_step(f.split_step(field, potential, CONSTANTS), potential, CONSTANTS)
    for source in (None, jnp.zeros_like(field)):
        end, _ = evolve(state, potential, None, source, CONSTANTS, 2, "unitary")
        np.testing.assert_allclose(end.field, expected, atol=1e-14)


def test_unitary_norm_holds_for_ten_thousand_steps():
    """In float32. Rounding alone would take 2e-4 of it; the energy, which nothing corrects, may lose as much."""
    field, potential = random_field(8, 8).astype(jnp.complex64), random_potential(8, 8).astype(jnp.float32)
    end, info = evolve(f.begin(field, CONSTANTS), potential, None, None, CONSTANTS, 10_000, "unitary")
    assert end.field.dtype == jnp.complex64
    before = np.linalg.norm(np.asarray(field, np.complex128))
    np.testing.assert_allclose(np.linalg.norm(np.asarray(end.field, np.complex128)), before, rtol=1e-6)
    np.testing.assert_allclose(info.norm, before, rtol=1e-5)
    np.testing.assert_allclose(info.energy[-1000:].mean(), info.energy[:1000].mean(), rtol=1e-2)


def test_unitary_energy_is_conserved(float64):
    """Its error oscillates, does not drift, and is of order two in the step."""
    field, potential = random_field(), random_potential()
    amplitudes = []
    for dt, steps in ((0.04, 1000), (0.02, 2000)):
        constants = CONSTANTS._replace(dt=dt)
        _, info = evolve(f.begin(field, constants), potential, None, None, constants, steps, "unitary")
        error = np.asarray(info.energy / f.energy(field, potential, constants) - 1)
        amplitudes.append(np.abs(error).max())
        quarter = steps // 4
        assert abs(error[-quarter:].mean() - error[:quarter].mean()) < 0.1 * amplitudes[-1]
    assert amplitudes[0] < 0.01
    assert 3.5 < amplitudes[0] / amplitudes[1] < 4.5, amplitudes


def test_no_field_stays_no_field():
    end, info = evolve(f.begin(jnp.zeros((4, 5, 2, 2)), CONSTANTS), no_potential(), None, None, CONSTANTS, 3, "unitary")
    assert not end.field.any()
    assert not info.energy.any()


# --- Bayesian operator -----------------------------------------------------------------------------------------------


def test_posterior_is_bayes_rule(float64):
    field, evidence = random_field(scale=2.0), random_field(seed=1)
    keep, take = f.posterior(field, evidence, 1.7)
    w = np.exp(-(np.abs(np.asarray(field - evidence)) ** 2) / 1.7)
    np.testing.assert_allclose(keep, 1 / (1 + w), rtol=1e-12)
    np.testing.assert_allclose(take, w / (1 + w), rtol=1e-12)
    np.testing.assert_allclose(keep + take, 1.0, rtol=1e-14)
    np.testing.assert_allclose(f.bayes(field, evidence, 1.7), (field + w * evidence) / (1 + w), atol=1e-14)


def test_posterior_of_a_known_distance(float64):
    """`|T − E|² = τ ln 3` gives the evidence a third of the field's weight: a quarter of the way to it. At the evidence, both
    have a half, and nothing moves."""
    evidence = random_field()
    displacement = np.sqrt(2.0 * np.log(3.0)) * np.exp(1j * np.angle(random_field(seed=1)))
    keep, take = f.posterior(evidence + displacement, evidence, 2.0)
    np.testing.assert_allclose(keep, 0.75, rtol=1e-12)
    np.testing.assert_allclose(take, 0.25, rtol=1e-12)
    np.testing.assert_allclose(f.bayes(evidence + displacement, evidence, 2.0), evidence + 0.75 * displacement, atol=1e-12)
    np.testing.assert_array_equal(f.posterior(evidence, evidence, 2.0)[1], 0.5)
    np.testing.assert_array_equal(f.bayes(evidence, evidence, 2.0), evidence)


def test_posterior_mean_lies_between(float64):
    field, evidence = random_field(), random_field(seed=1)
    share = np.asarray((f.bayes(field, evidence, 2.0) - field) / (evidence - field))
    np.testing.assert_allclose(share.imag, 0.0, atol=1e-13)
    assert (share.real > 0).all()
    assert (share.real < 0.5).all()


def test_doubtful_evidence_is_hardly_believed():
    """Nor does it overflow where the likelihood is zero in float32."""
    keep, take = f.posterior(jnp.asarray([0j, 0j]), jnp.asarray([6.0 + 0j, 1e4j]), 1.0)
    np.testing.assert_array_equal(keep, 1.0)
    np.testing.assert_allclose(take, [np.exp(-36.0), 0.0], rtol=1e-5)


@pytest.mark.parametrize("mode", ["unitary", "dissipative"])
def test_evidence_alone_draws_the_field_to_it(mode, float64):
    """A field without `H` (constant over the grid, no potential). Near the evidence the distance falls like `e^{−λt/2ħ}`."""
    constants = CONSTANTS._replace(dt=0.01, evidence_rate=1.5)
    evidence, offset = (jnp.broadcast_to(random_field(1, 1, seed=s), (*GRID, 2, 2)) for s in (0, 1))
    near, _ = evolve(f.begin(evidence + 1e-4 * offset, constants), no_potential(), evidence, None, constants, 100, mode)
    decay = np.exp(-1.5 * 1.0 / (2 * constants.hbar))
    np.testing.assert_allclose((near.field - evidence) / (1e-4 * offset), decay, rtol=1e-2 if mode == "dissipative" else 1e-4)

    state, distance = f.begin(evidence + offset, constants), np.abs(offset)
    for _ in range(4):
        state, _ = evolve(state, no_potential(), evidence, None, constants, 250, mode)
        assert (np.abs(state.field - evidence) < 0.5 * distance).all()
        distance = np.abs(state.field - evidence)


def test_evidence_acts_against_the_hamiltonian(float64):
    """At rest in the dissipative mode, `H[T] = λ (B[T] − T) + J`."""
    constants = OPEN._replace(memory_rate=0.0)
    evidence, source, potential = random_field(scale=0.5), random_field(seed=1, scale=0.2), random_potential(low=0.5)
    end, _ = evolve(f.begin(evidence, constants), potential, evidence, source, constants, 2000, "dissipative")
    w = np.exp(-(np.abs(np.asarray(end.field - evidence)) ** 2) / 2.0)
    pull = 1.5 * w / (1 + w) * (evidence - end.field) + source
    assert np.abs(pull).max() > 0.1
    np.testing.assert_allclose(apply(dense_hamiltonian(potential, constants), end.field), pull, atol=1e-10)


# --- memory operator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("length", [1, 2, 12])
def test_memory_weights_are_those_of_the_fractional_integral(order, length):
    k = np.arange(length)
    by_binomial = (-1.0) ** k * binom(-order, k)
    np.testing.assert_allclose(by_binomial, gamma(k + order) / (gamma(order) * gamma(k + 1)), rtol=1e-10)
    weights = f.memory_weights(order, length)
    assert weights.shape == (length,)
    np.testing.assert_allclose(weights, by_binomial / by_binomial.sum(), rtol=1e-10)
    np.testing.assert_allclose(weights.sum(), 1.0)
    assert (weights > 0).all()
    assert (np.diff(weights) < 0).all()


@pytest.mark.parametrize("lag", range(OPEN.memory_length))
def test_memory_of_an_impulse(lag, float64):
    """The weight of its lag: the present field at lag 0, `past[0]` at lag 1."""
    impulse, history = random_field(), np.zeros((5, *GRID, 2, 2), complex)
    history[lag] = impulse
    weight = gamma(lag + 0.6) / (gamma(0.6) * gamma(lag + 1))
    total = sum(gamma(k + 0.6) / (gamma(0.6) * gamma(k + 1)) for k in range(5))
    remembered = f.memory(jnp.asarray(history[0]), jnp.asarray(history[1:]), OPEN)
    np.testing.assert_allclose(remembered, 0.4 * weight / total * impulse, atol=1e-13)


@pytest.mark.parametrize("mode", ["unitary", "dissipative"])
def test_past_is_what_was(mode, float64):
    """The latest first; nothing before the beginning; nothing kept without memory."""
    field, evidence, potential = random_field(), random_field(seed=1), random_potential()
    states = [f.begin(field, OPEN)]
    assert states[0].past.shape == (4, *field.shape)
    for _ in range(3):
        states.append(evolve(states[-1], potential, evidence, None, OPEN, 1, mode)[0])
    for lag in (1, 2, 3):
        np.testing.assert_array_equal(states[-1].past[lag - 1], states[-1 - lag].field)
    assert not states[-1].past[3].any()
    together, _ = evolve(states[0], potential, evidence, None, OPEN, 3, mode)
    np.testing.assert_allclose(together.field, states[-1].field, atol=1e-13)
    np.testing.assert_allclose(together.past, states[-1].past, atol=1e-13)
    assert f.begin(field, CONSTANTS).past.shape[0] == 0


@pytest.mark.parametrize("mode", ["unitary", "dissipative"])
def test_memory_alone_damps_by_the_weighted_past(mode, float64):
    """Without `H`: `ħ (T_{n+1} − T_n) / dt = −γ Σ_k w_k T_{n−k}` in the dissipative mode. The unitary mode takes two midpoint
    steps of half the length, the second with `T_n` already at lag 1."""
    start = jnp.broadcast_to(random_field(1, 1), (*GRID, 2, 2))
    constants = CONSTANTS._replace(memory_rate=0.8, memory_length=4, memory_order=0.3)
    w, rate = f.memory_weights(0.3, 4), 0.8 * constants.dt / constants.hbar
    present, past = 1.0, np.zeros(3)

    def half_step(present, past):
        middle = present - rate / 4 * (w[0] * present + w[1:] @ past)
        return present - rate / 2 * (w[0] * middle + w[1:] @ past)

    for _ in range(20):
        pushed = np.array([present, *past[:-1]])
        if mode == "unitary":
            present = half_step(half_step(present, past), pushed)
        else:
            present -= rate * (w[0] * present + w[1:] @ past)
        past = pushed
    assert present < 0.5
    end, _ = evolve(f.begin(start, constants), no_potential(), None, None, constants, 20, mode)
    np.testing.assert_allclose(end.field, present * start, rtol=1e-11)
    np.testing.assert_allclose(end.past, past[:, None, None, None, None] * start[None], rtol=1e-11)


# --- sources ---------------------------------------------------------------------------------------------------------


def test_sources_are_their_sum(float64):
    field, evidence, source = (random_field(seed=s) for s in range(3))
    past = jnp.stack([random_field(seed=s) for s in range(3, 7)])
    pull = 1.5 * (f.bayes(field, evidence, 2.0) - field)
    remembered = f.memory(field, past, OPEN)
    np.testing.assert_allclose(f.sources(field, past, evidence, source, OPEN), pull - remembered + source, atol=1e-13)


def test_constant_source_without_hamiltonian(float64):
    """`T = J t / ħ`; as a force, `T = J t² / 2m` and `P = J t`, which leapfrog meets exactly."""
    source = jnp.broadcast_to(random_field(1, 1), (*GRID, 2, 2))
    time = 12 * CONSTANTS.dt
    ends = {
        mode: evolve(f.begin(jnp.zeros_like(source), CONSTANTS), no_potential(), None, source, CONSTANTS, 12, mode)[0]
        for mode in MODES
    }
    for mode in ("unitary", "dissipative"):
        np.testing.assert_allclose(ends[mode].field, source * time / CONSTANTS.hbar, rtol=1e-12)
    np.testing.assert_allclose(ends["symplectic"].momentum, source * time, rtol=1e-12)
    np.testing.assert_allclose(ends["symplectic"].field, source * time**2 / (2 * CONSTANTS.mass), rtol=1e-12)


def test_unitary_steps_with_sources_have_order_two(float64):
    field, evidence, source, potential = random_field(), random_field(seed=1), random_field(seed=2), random_potential()

    def end(steps):
        constants = CONSTANTS._replace(dt=1.0 / steps, evidence_rate=1.5)
        return evolve(f.begin(field, constants), potential, evidence, source, constants, steps, "unitary")[0].field

    reference = end(1024)
    errors = [relative(end(steps), reference) for steps in (32, 64)]
    assert 3.6 < errors[0] / errors[1] < 4.4, errors


# --- symplectic mode -------------------------------------------------------------------------------------------------


def test_symplectic_step_is_kick_drift_kick(float64):
    constants = CONSTANTS._replace(evidence_rate=1.5)
    t, p, evidence, source = (np.asarray(random_field(seed=s)) for s in range(4))
    potential = random_potential()
    matrix = dense_hamiltonian(potential, constants)

    def force(t):
        w = np.exp(-(np.abs(t - evidence) ** 2) / 2.0)
        return -apply(matrix, t) + 1.5 * w / (1 + w) * (evidence - t) + source

    end, info = evolve(
        f.begin(t, constants, p), potential, jnp.asarray(evidence), jnp.asarray(source), constants, 2, "symplectic"
    )
    for _ in range(2):
        p = p + 0.025 * force(t)
        t = t + 0.05 / constants.mass * p
        p = p + 0.025 * force(t)
    np.testing.assert_allclose(end.field, t, atol=1e-12)
    np.testing.assert_allclose(end.momentum, p, atol=1e-12)
    np.testing.assert_allclose(info.norm[-1], np.linalg.norm(t), rtol=1e-12)
    level = 0.8**2 * (np.linalg.norm(p) ** 2 / (2 * constants.mass) + 0.5 * np.vdot(t, apply(matrix, t)).real)
    np.testing.assert_allclose(info.energy[-1], level, rtol=1e-12)


@pytest.mark.parametrize("rate", [0.0, 1.5])
def test_symplectic_flow_is_undone_by_turning_the_momentum(rate, float64):
    constants = CONSTANTS._replace(evidence_rate=rate)
    start = f.begin(random_field(), constants, random_field(seed=1))
    world = random_potential(), random_field(seed=2), random_field(seed=3)
    end, _ = evolve(start, *world, constants, 300, "symplectic")
    back, _ = evolve(end._replace(momentum=-end.momentum), *world, constants, 300, "symplectic")
    assert relative(end.field, start.field) > 0.5
    np.testing.assert_allclose(back.field, start.field, atol=1e-11)
    np.testing.assert_allclose(-back.momentum, start.momentum, atol=1e-11)


def test_symplectic_plane_wave_swings(float64):
    """`T(t) = cos(ωt) T(0)` with `ω = sqrt(λ/m)`, for an eigenvalue `λ` of `H`."""
    wave, k2 = plane_wave((1, 2))
    constants = CONSTANTS._replace(dt=0.01)
    omega = np.sqrt((constants.hbar**2 * k2 / (2 * constants.mass) + 0.6) / constants.mass)
    end, _ = evolve(f.begin(wave, constants), jnp.full(GRID, 0.6), None, None, constants, 200, "symplectic")
    np.testing.assert_allclose(end.field, np.cos(omega * 2.0) * wave, atol=2e-4)
    np.testing.assert_allclose(end.momentum, -constants.mass * omega * np.sin(omega * 2.0) * wave, atol=2e-4)


def test_symplectic_energy_does_not_drift(float64):
    """Its error oscillates, and half the step makes it a quarter."""
    start, potential = f.begin(random_field(), CONSTANTS, random_field(seed=1)), random_potential()
    amplitudes = []
    for dt, steps in ((0.1, 1500), (0.05, 3000)):
        constants = CONSTANTS._replace(dt=dt)
        _, info = evolve(start, potential, None, None, constants, steps, "symplectic")
        error = np.asarray(info.energy / f.mechanical_energy(start.field, start.momentum, potential, constants) - 1)
        amplitudes.append(np.abs(error).max())
        quarter = steps // 4
        assert abs(error[-quarter:].mean() - error[:quarter].mean()) < 0.1 * amplitudes[-1]
    assert amplitudes[0] < 0.02
    assert 3.5 < amplitudes[0] / amplitudes[1] < 4.5, amplitudes


# --- dissipative mode ------------------------------------------------------------------------------------------------


def test_dissipative_plane_wave_decays(float64):
    """By `1 − dt λ/ħ` at each step, `λ` being its eigenvalue."""
    wave, k2 = plane_wave((1, 2))
    level = CONSTANTS.hbar**2 * k2 / (2 * CONSTANTS.mass) + 0.6
    end, info = evolve(f.begin(wave, CONSTANTS), jnp.full(GRID, 0.6), None, None, CONSTANTS, 10, "dissipative")
    factor = 1 - CONSTANTS.dt * level / CONSTANTS.hbar
    np.testing.assert_allclose(end.field, factor**10 * wave, rtol=1e-11)
    np.testing.assert_allclose(info.norm, factor ** np.arange(1, 11) * np.linalg.norm(wave), rtol=1e-11)


@pytest.mark.parametrize("low", [0.0, -3.0])
@pytest.mark.parametrize("share", [0.3, 0.999])
def test_dissipative_energy_never_rises(low, share, float64):
    """Up to the longest step that is allowed, and where `H` has negative eigenvalues and the field grows."""
    field, potential = random_field(), random_potential(low=low)
    largest = np.linalg.eigvalsh(dense_hamiltonian(potential, CONSTANTS))[-1]
    constants = CONSTANTS._replace(dt=share * 2 * CONSTANTS.hbar / largest)
    _, info = evolve(f.begin(field, constants), potential, None, None, constants, 60, "dissipative")
    energies = np.concatenate([[f.energy(field, potential, constants)], info.energy])
    assert (np.diff(energies) <= 1e-12 * energies[0]).all()
    assert energies[-1] < (0.9 * energies[0] if low == 0 else 0)


def test_dissipative_flow_ends_in_the_ground_state(float64):
    field, potential = random_field(), random_potential(high=4.0)
    levels, states = np.linalg.eigh(dense_hamiltonian(potential, CONSTANTS))
    assert levels[1] - levels[0] > 0.1
    end, info = evolve(f.begin(field, CONSTANTS), potential, None, None, CONSTANTS, 3000, "dissipative")
    direction = np.asarray(end.field).reshape(20, -1) / np.linalg.norm(end.field)
    np.testing.assert_allclose(np.linalg.norm(states[:, 0].conj() @ direction), 1.0, rtol=1e-10)
    np.testing.assert_allclose(info.energy[-1] / (CONSTANTS.spacing * info.norm[-1]) ** 2, levels[0], rtol=1e-10)


# --- what evolve and check refuse ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_vmap_of_evolve_is_each_by_itself(mode):
    constants = OPEN._replace(memory_rate=0.0) if mode == "symplectic" else OPEN
    world = random_potential(), random_field(seed=2), random_field(seed=3)
    states = [f.begin(random_field(seed=s), constants, random_field(seed=s + 4)) for s in range(2)]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *states)
    together, info = jax.vmap(lambda state: f.evolve(state, *world, constants, 3, mode))(batch)
    assert info.norm.shape == info.energy.shape == (2, 3)
    for index, state in enumerate(states):
        alone, _ = evolve(state, *world, constants, 3, mode)
        assert alone.field.dtype == jnp.complex64
        np.testing.assert_allclose(together.field[index], alone.field, atol=1e-5)
        np.testing.assert_allclose(together.momentum[index], alone.momentum, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hbar": 0.0}, "hbar is 0.0.*positive"),
        ({"mass": -1.0}, "mass is -1.0.*positive"),
        ({"spacing": np.inf}, "spacing is inf.*finite"),
        ({"dt": 0.0}, "dt is 0.0.*positive"),
        ({"dt": np.nan}, "dt is nan.*positive"),
        ({"evidence_temperature": 0.0}, "evidence_temperature is 0.0.*positive"),
        ({"evidence_rate": -0.1}, "evidence_rate is -0.1.*at least 0"),
        ({"memory_rate": -0.1}, "memory_rate is -0.1.*at least 0"),
        ({"memory_order": 0.0}, "memory_order is 0.0.*between 0 and 1"),
        ({"memory_order": 1.0}, "memory_order is 1.0.*between 0 and 1"),
        ({"memory_length": 0}, "memory_length is 0.*whole number"),
        ({"memory_length": 2.5}, "memory_length is 2.5.*whole number"),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_meaningless_settings_are_refused(changes, words, mode):
    with pytest.raises(UserError, match=words):
        f.check(CONSTANTS._replace(**changes), (4, 5, 2, 2), 1.0, mode)


@pytest.mark.parametrize("shape", [(4, 5, 2), (4, 5, 2, 3), (4, 5, 2, 2, 1), (4, 0, 2, 2), ()])
def test_fields_of_another_shape_are_refused(shape):
    with pytest.raises(UserError, match=re.escape(f"[Nx, Ny, D, D], not {list(shape)}")):
        f.check(CONSTANTS, shape, 1.0, "unitary")


def test_other_bad_calls_are_refused():
    shape = (4, 5, 2, 2)
    with pytest.raises(UserError, match=r"no mode 'leapfrog'.*unitary, symplectic, dissipative"):
        f.check(CONSTANTS, shape, 1.0, "leapfrog")
    with pytest.raises(UserError, match=r"potential_bound is -1.0.*at least 0"):
        f.check(CONSTANTS, shape, -1.0, "unitary")
    with pytest.raises(UserError, match=r"symplectic mode is reversible.*set memory_rate to 0"):
        f.check(OPEN, shape, 1.0, "symplectic")


def test_evolve_refuses_what_does_not_fit():
    field, potential = random_field(), random_potential()
    state = f.begin(field, CONSTANTS)

    def run(state=state, potential=potential, evidence=None, source=None, constants=CONSTANTS, mode="unitary"):
        f.evolve(state, potential, evidence, source, constants, 1, mode)

    with pytest.raises(UserError, match=r"potential is float32 of the shape \[5, 4\].*\[4, 5\]"):
        run(potential=potential.T)
    with pytest.raises(UserError, match=r"potential is complex64.*must be real"):
        run(potential=potential + 0j)
    with pytest.raises(UserError, match=r"evidence has the shape \[4, 5, 1, 1\].*that of the field"):
        run(evidence=field[..., :1, :1])
    with pytest.raises(UserError, match=r"source has the shape \[2, 2\].*that of the field"):
        run(source=field[0, 0])
    with pytest.raises(UserError, match=r"momentum has the shape \[1\].*that of the field"):
        run(state=f.begin(field, CONSTANTS, momentum=jnp.zeros(1)))
    with pytest.raises(UserError, match="there is no evidence"):
        run(constants=CONSTANTS._replace(evidence_rate=1.0))
    with pytest.raises(UserError, match="begun with another memory"):
        run(constants=CONSTANTS._replace(memory_rate=0.1))
    with pytest.raises(UserError, match="no mode"):
        run(mode="backwards")
    with pytest.raises(UserError, match="dt = 3 is too long"):
        run(constants=CONSTANTS._replace(dt=3.0), mode="dissipative")


@pytest.mark.parametrize("potential_bound", [0.0, 3.0])
@pytest.mark.parametrize(
    ("mode", "changes", "words"),
    [
        ("unitary", {"evidence_rate": 3.0}, "overshoot|phase by more than π"),
        ("unitary", {"memory_rate": 3.0}, "overshoot|phase by more than π"),
        ("dissipative", {}, "unstable"),
        ("dissipative", {"evidence_rate": 3.0, "memory_rate": 1.0}, "unstable"),
        ("symplectic", {}, "leapfrog would be unstable"),
        ("symplectic", {"evidence_rate": 3.0}, "leapfrog would be unstable"),
    ],
)
def test_too_long_a_step_is_refused_with_the_longest(mode, changes, words, potential_bound):
    """The formulas of `check`; and the figure in the message may be used as it is printed."""
    shape, constants = (4, 5, 2, 2), CONSTANTS._replace(dt=50.0, memory_order=0.5, memory_length=3, **changes)
    with pytest.raises(UserError, match=words) as refusal:
        f.check(constants, shape, potential_bound, mode)
    longest = float(re.search(r"at most (\S+)\.$", str(refusal.value)).group(1))

    k2 = (np.pi / 0.8) ** 2 + (2 * np.pi * 2 / (5 * 0.8)) ** 2  # the shortest waves of 4 and of 5 points
    largest = 0.7**2 * k2 / (2 * 1.3) + potential_bound
    mean_lag = (0.5 + 2 * 0.375) / 1.875  # weights 1, 1/2, 3/8
    exchange = constants.evidence_rate + constants.memory_rate * (1 + mean_lag)
    expected = {
        "unitary": min(0.7 / max(exchange, 1e-9), np.pi * 0.7 / max(potential_bound, 1e-9)),
        "dissipative": 0.7 / (largest / 2 + exchange),
        "symplectic": 2 / np.sqrt((largest + constants.evidence_rate) / 1.3),
    }
    np.testing.assert_allclose(longest, expected[mode], rtol=1e-5)
    f.check(constants._replace(dt=longest), shape, potential_bound, mode)
    with pytest.raises(UserError, match="too long"):
        f.check(constants._replace(dt=1.001 * longest), shape, potential_bound, mode)


def test_unitary_step_is_held_by_the_phase_of_the_potential():
    f.check(CONSTANTS._replace(dt=1e6), (4, 5, 2, 2), 0.0, "unitary")
    f.check(CONSTANTS._replace(dt=0.99 * np.pi * 0.7 / 5), (4, 5, 2, 2), 5.0, "unitary")
    with pytest.raises(UserError, match="potential would turn a phase by more than π"):
        f.check(CONSTANTS._replace(dt=1.01 * np.pi * 0.7 / 5), (4, 5, 2, 2), 5.0, "unitary")


@pytest.mark.parametrize("mode", ["symplectic", "dissipative"])
@pytest.mark.parametrize(("share", "grows"), [(0.99, False), (1.02, True)])
def test_limit_of_the_step_is_where_the_shortest_wave_grows(mode, share, grows, float64):
    wave, k2 = plane_wave((2, 2))
    largest = 0.7**2 * k2 / (2 * 1.3) + 1.0
    longest = 2 * 0.7 / largest if mode == "dissipative" else 2 / np.sqrt(largest / 1.3)
    constants = CONSTANTS._replace(dt=share * longest)
    # `evolve` sees no bound of the potential, so it does not refuse.
    _, info = evolve(f.begin(wave, constants), jnp.ones(GRID), None, None, constants, 200, mode)
    assert (info.norm[-20:].max() > 100 * info.norm[0]) == grows
    if grows:
        with pytest.raises(UserError, match="unstable"):
            f.check(constants, (4, 5, 2, 2), 1.0, mode)


def test_longest_step_of_the_memory_is_stable(float64):
    """With nothing but its memory, a field dies out at the longest step, and swings up at four times that."""
    constants, weights = CONSTANTS._replace(memory_rate=1.0, memory_order=0.9, memory_length=8), f.memory_weights(0.9, 8)
    longest = 0.7 / (1 + float(weights @ np.arange(8)))
    state = f.begin(jnp.ones((*GRID, 2, 2)), constants)
    for mode in ("unitary", "dissipative"):
        free = constants._replace(dt=longest, mass=1e6)  # so heavy that `H` is next to nothing
        end, _ = evolve(state, no_potential(), None, None, free, 150, mode)
        assert np.abs(end.field).max() < 1e-3
        with pytest.raises(UserError, match="too long"):
            f.check(free._replace(dt=4 * longest), (4, 5, 2, 2), 0.0, mode)

    history = np.eye(8)[0]
    for _ in range(600):
        history = np.concatenate([[history[0] - 4 * longest / 0.7 * weights @ history], history[:-1]])
    assert np.abs(history).max() > 1e3


# --- field state of a prompt -----------------------------------------------------------------------------------------

B, L, H, M, V, P = 2, 13, 3, 4, 5, 3


def prompt(length=L, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(normal(rng, B, length, H, width) for width in (M, M, V))


def random_poles(seed=1):
    rng = np.random.default_rng(seed)
    weight = normal(rng, H, P) + 1j * normal(rng, H, P)
    return Poles(weight, jnp.asarray(rng.uniform(0.05, 1.0, (H, P))) + 1j * normal(rng, H, P))


def dense_encode(queries, keys, values, system):
    """`y_i = Σ_{j≤i} K(i − j) v_j ⟨k_j, q_i⟩`, pair by pair, and the field `T` at the end `[B, H, v, m]`."""
    queries, keys, values = to_numpy((queries, keys, values))
    weight, rate = (np.asarray(x, np.complex128) for x in system)
    read, end = np.zeros(values.shape), np.zeros((B, H, V, M))
    for b in range(values.shape[0]):
        for h in range(H):
            for i in range(values.shape[1]):
                field = np.zeros((V, M))
                for j in range(i + 1):
                    k = np.sum(weight[h] * np.exp(-rate[h] * (i - j))).real
                    field += k * np.outer(values[b, j, h], keys[b, j, h])
                read[b, i, h], end[b, h] = field @ queries[b, i, h], field
    return read, end


def by_lag(system, length):
    lags = np.arange(length)
    weight, rate = (np.asarray(x, np.complex128)[..., None] for x in system)
    return jnp.asarray(np.sum(weight * np.exp(-rate * lags), 1).real)


def step_through(system, state, queries, keys, values):
    along = tuple(x.swapaxes(0, 1) for x in (queries, keys, values))
    state, read = lax.scan(lambda state, x: fs.encode_step(system, state, *x), state, along)
    return state, read.swapaxes(0, 1)


chunked = jax.jit(fs.encode_chunked, static_argnames=("chunk", "precision"))
stepped = jax.jit(step_through)


def test_encode_is_its_formula(float64):
    inputs, system = prompt(), random_poles()
    expected, _ = dense_encode(*inputs, system)
    assert relative(fs.encode(*inputs, by_lag(system, L)), expected) < 1e-12


@pytest.mark.parametrize("chunk", [1, 4, 12, 13, 20])
def test_encode_chunked_is_its_formula(chunk, float64):
    """Chunks that divide the length, that leave a rest, and that are longer than the prompt."""
    inputs, system = prompt(), random_poles()
    expected, field = dense_encode(*inputs, system)
    state, read = chunked(*inputs, system, chunk)
    assert state.shape == (B, H, P, V, M)
    assert relative(read, expected) < 1e-12
    assert relative(jnp.einsum("hp,bhpvm->bhvm", system.weight, state).real, field) < 1e-12


def test_encode_step_is_its_formula(float64):
    inputs, system = prompt(), random_poles()
    state, read = stepped(system, fs.initial_state(system, inputs[1][:, 0], inputs[2][:, 0]), *inputs)
    assert relative(read, dense_encode(*inputs, system)[0]) < 1e-12
    assert relative(state, chunked(*inputs, system, 5)[0]) < 1e-12


def test_going_on_from_a_state_is_the_whole(float64):
    """Chunks, then steps, then chunks of another length."""
    inputs, system = prompt(), random_poles()
    parts = [tuple(x[:, cut] for x in inputs) for cut in (slice(0, 6), slice(6, 8), slice(8, L))]
    state, first = chunked(*parts[0], system, 4)
    state, second = stepped(system, state, *parts[1])
    state, third = chunked(*parts[2], system, 3, state)
    whole_state, whole = chunked(*inputs, system, L)
    assert relative(jnp.concatenate([first, second, third], 1), whole) < 1e-12
    assert relative(state, whole_state) < 1e-12


def test_encode_forms_agree_in_float32():
    """With the LIoR kernel itself, over a longer prompt."""
    rng = np.random.default_rng(3)
    parameters = kernel.Kernel(normal(rng, H, 3), normal(rng, H, 3) - 2, normal(rng, H), normal(rng, H), normal(rng, H))
    system, inputs = kernel.poles(parameters), prompt(length=50)
    assert system.rate.dtype == jnp.complex64
    expected, _ = dense_encode(*inputs, system)
    start = fs.initial_state(system, inputs[1][:, 0], inputs[2][:, 0])
    reads = [
        fs.encode(*inputs, kernel.values(parameters, 50)),
        chunked(*inputs, system, 16)[1],
        stepped(system, start, *inputs)[1],
    ]
    for read in reads:
        assert read.dtype == jnp.float32
        assert relative(read, expected) < 1e-5


def test_encode_with_bfloat16_products():
    inputs, system = prompt(), random_poles()
    exact = chunked(*inputs, system, 4)[1]
    for read in (fs.encode(*inputs, by_lag(system, L), "bfloat16"), chunked(*inputs, system, 4, precision="bfloat16")[1]):
        assert read.dtype == jnp.float32
        assert 1e-5 < relative(read, exact) < 2e-2


def test_encode_sees_nothing_later(float64):
    """Bit for bit, at every position."""
    inputs, system = prompt(), random_poles()
    forms = [
        jax.jit(lambda q, k, v: fs.encode(q, k, v, by_lag(system, L))),
        lambda q, k, v: chunked(q, k, v, system, 4)[1],
    ]
    for form in forms:
        before = form(*inputs)
        for position in range(1, L):
            after = form(*(x.at[:, position].add(1.0) for x in inputs))
            np.testing.assert_array_equal(after[:, :position], before[:, :position])
            assert (np.abs(after[:, position] - before[:, position]) > 0).all()


def test_chunk_must_have_a_position():
    with pytest.raises(UserError, match=r"chunk is 0.*at least 1"):
        fs.encode_chunked(*prompt(), random_poles(), 0)
