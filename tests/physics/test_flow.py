"""Flows and their echoes, for every potential and integrator, against dense forms and autodiff."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax.physics import hamiltonian as h
from lior_jax.physics.flow import echo, flow
from lior_jax.physics.integrators import VELOCITY_VERLET, YOSHIDA4, schedule
from lior_jax.physics.pair import Pair
from tests import oracles
from tests.oracles import POTENTIALS, assert_trees_close, normal, random_hamiltonian
from tests.physics.test_integrators import ALL, TWO_STAGE

every_integrator = pytest.mark.parametrize("coefficients", ALL.values(), ids=ALL)
every_potential = pytest.mark.parametrize("name", POTENTIALS)


def start(batch=2, length=3, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return normal(rng, batch, length, d), normal(rng, batch, length, d)


def system(hamiltonian):
    potential = POTENTIALS[type(hamiltonian.potential).__name__.lower()]
    return h.system(potential, hamiltonian)


def run(hamiltonian, s, p, times):
    """Schedules hold arrays, so they cannot be static arguments: one compilation for each call."""
    return jax.jit(lambda hamiltonian, *start: flow(system(hamiltonian), *start, times)[:2])(hamiltonian, s, p)


# --- flows -----------------------------------------------------------------------------------------------------------


@every_potential
@pytest.mark.parametrize("steps", [1, 3])
def test_flow_is_kick_drift_kick(steps, name, float64):
    ham, (s, p) = random_hamiltonian(5, 7, 0, name), start()
    result = run(ham, s, p, schedule(VELOCITY_VERLET, steps, 0.3))
    s, p, inverse_mass = (np.asarray(x) for x in (s, p, ham.inverse_mass))
    for _ in range(steps):
        p = p + 0.15 * oracles.dense_force(ham.potential, s)
        s = s + 0.3 * inverse_mass * p
        p = p + 0.15 * oracles.dense_force(ham.potential, s)
    np.testing.assert_allclose(result[0], s, atol=1e-12)
    np.testing.assert_allclose(result[1], p, atol=1e-12)


def test_final_kick_moves_only_the_momentum(float64):
    ham, (s, p) = random_hamiltonian(5, 7), start()
    (s_with, p_with), (s_without, p_without) = (
        run(ham, s, p, schedule(VELOCITY_VERLET, 2, 0.3, final_kick=x)) for x in (True, False)
    )
    np.testing.assert_allclose(s_with, s_without, rtol=1e-14)
    np.testing.assert_allclose(p_with - p_without, 0.15 * oracles.dense_force(ham.potential, np.asarray(s_with)), atol=1e-12)


def test_positions_do_not_meet(float64):
    ham, (s, p) = random_hamiltonian(5, 7), start()
    times = schedule(VELOCITY_VERLET, 2, 0.3)
    together, alone = run(ham, s, p, times), run(ham, s[:1, 1:2], p[:1, 1:2], times)
    assert_trees_close(alone, jax.tree.map(lambda x: x[:1, 1:2], together), 1e-13)


@every_integrator
def test_time_reversal(coefficients, float64):
    """Turn the momentum round, flow again: back at the start, the momentum reversed."""
    ham, (s, p) = random_hamiltonian(5, 7), start()
    times = schedule(coefficients, 5, 0.4)
    s_end, p_end = run(ham, s, p, times)
    s_back, p_back = run(ham, s_end, -p_end, times)
    assert np.abs(s_end - s).max() > 0.5
    np.testing.assert_allclose(s_back, s, atol=1e-10)
    np.testing.assert_allclose(-p_back, p, atol=1e-10)


@every_potential
@pytest.mark.parametrize(("coefficients", "order"), [(VELOCITY_VERLET, 2), (YOSHIDA4, 4)], ids=["verlet", "yoshida4"])
def test_order(coefficients, order, name, float64):
    """Half the step, a quarter or a sixteenth of the error."""
    ham, (s, p) = random_hamiltonian(5, 7, 0, name), start()

    def end(steps):
        return np.concatenate(run(ham, s, p, schedule(coefficients, steps, 1.0 / steps)))

    reference = end(1024)
    errors = [np.linalg.norm(end(steps) - reference) for steps in (16, 32, 64)]
    for coarse, fine in pairwise(errors):
        assert 0.85 * 2**order < coarse / fine < 1.15 * 2**order, errors


def test_energy_does_not_drift(float64):
    """1000 steps: the error of the energy oscillates, and its means over the first and the last quarter agree."""
    ham, (s, p) = random_hamiltonian(5, 7), start(batch=3)
    times = schedule(VELOCITY_VERLET, 5, 0.02)
    few_steps = jax.jit(lambda s, p: flow(system(ham), s, p, times)[:2])
    measure = jax.jit(lambda s, p: h.energy(POTENTIALS["gated"], ham, s, p))
    energies = [measure(s, p)]
    for _ in range(200):
        s, p = few_steps(s, p)
        energies.append(measure(s, p))
    energies = np.stack(energies)
    error = energies - energies[0]
    amplitude = np.abs(error).max(0)
    trend = np.abs(error[-50:].mean(0) - error[:50].mean(0))
    assert amplitude.max() < 0.02
    assert (trend < 0.1 * amplitude).all()


@every_potential
@every_integrator
@pytest.mark.parametrize("final_kick", [True, False])
def test_flow_is_symplectic(final_kick, coefficients, name, float64):
    """`JᵀΩJ = Ω` for the Jacobian of one position's flow."""
    d = 4
    ham, times = random_hamiltonian(d, 6, 0, name), schedule(coefficients, 3, 0.5, final_kick)

    def map_(z):
        s, p, _ = flow(system(ham), z[None, None, :d], z[None, None, d:], times)
        return jnp.concatenate([s[0, 0], p[0, 0]])

    jacobian = np.asarray(jax.jit(jax.jacfwd(map_))(normal(np.random.default_rng(1), 2 * d)))
    omega = np.block([[np.zeros((d, d)), np.eye(d)], [-np.eye(d), np.zeros((d, d))]])
    assert np.abs(jacobian - np.eye(2 * d)).max() > 0.5
    np.testing.assert_allclose(jacobian.T @ omega @ jacobian, omega, atol=1e-12)


@pytest.mark.parametrize("final_kick", [True, False])
def test_what_is_observed_is_summed_over_the_drifts(final_kick, float64):
    """Of the states before and after each of them; the kicks are not seen. It changes nothing of the flow."""
    ham, (s, p) = random_hamiltonian(5, 7), start()
    times = schedule(TWO_STAGE, 2, 0.4, final_kick)

    def observe(before, after):
        return {"ends": jnp.sum(before * after**2), "move": after - before}

    *ends, observed = jax.jit(lambda *args: flow(system(ham), *args, times, observe))(s, p)
    assert_trees_close(tuple(ends), run(ham, s, p, times), 1e-14)
    assert flow(system(ham), s, p, times)[2] is None

    x, expected = np.asarray(s), 0.0
    p = np.asarray(p)
    for kick, drift in zip(times.kicks, times.drifts, strict=True):
        p = p + kick * oracles.dense_force(ham.potential, x)
        before, x = x, x + drift * np.asarray(ham.inverse_mass) * p
        expected += np.sum(before * x**2)
    np.testing.assert_allclose(observed["ends"], expected, rtol=1e-12)
    np.testing.assert_allclose(observed["move"], x - np.asarray(s), atol=1e-12)


# --- echo ------------------------------------------------------------------------------------------------------------


def echo_of(ham, s, p, times, c_s, c_p, size, source=None):
    """Free run, push, echo. Returns the start as rebuilt, the cotangents of the Hamiltonian and of the start, and what the
    source adds up."""

    @jax.jit
    def rollout(ham, s, p, span):
        s_end, p_end, _ = flow(system(ham), s, p, times)
        return echo(system(ham), Pair(s_end, -c_p), Pair(p_end, c_s), span, times, source=source)

    # Every position has its own span.
    span = size * jnp.asarray(np.random.default_rng(9).uniform(0.5, 2.0, (*s.shape[:2], 1)))
    s_pair, p_pair, contrast, others = rollout(ham, s, p, span)
    return (s_pair.mean, p_pair.mean), (h.Hamiltonian(*contrast), p_pair.slope, -s_pair.slope), others


def echo_case(times, name="gated"):
    ham, (s, p), (c_s, c_p) = random_hamiltonian(5, 7, 0, name), start(), start(seed=1)
    expected = jax.jit(lambda *args: jax.vjp(lambda ham, *start: flow(system(ham), *start, times)[:2], *args)[1]((c_s, c_p)))(
        ham, s, p
    )
    return ham, s, p, c_s, c_p, expected


@every_potential
@pytest.mark.parametrize("final_kick", [True, False])
@pytest.mark.parametrize(
    ("coefficients", "steps"), [(VELOCITY_VERLET, 1), (VELOCITY_VERLET, 3), (TWO_STAGE, 2), (YOSHIDA4, 1), (YOSHIDA4, 2)]
)
def test_echo_is_the_adjoint_of_the_flow(coefficients, steps, final_kick, name, float64):
    times = schedule(coefficients, steps, 0.4, final_kick)
    ham, s, p, c_s, c_p, expected = echo_case(times, name)
    rebuilt, actual, others = echo_of(ham, s, p, times, c_s, c_p, 1e-4)
    assert_trees_close(actual, expected, 1e-6)
    assert_trees_close(rebuilt, (s, p), 1e-6)
    assert others is None


def path_cost(weight, before, after):
    """Not symmetric in the ends of a drift, not quadratic, and with a parameter of its own."""
    return jnp.sum(jnp.sin(weight * after) * before + 0.3 * (after - 2 * before) ** 2)


@pytest.mark.parametrize("final_kick", [True, False])
@pytest.mark.parametrize(("coefficients", "steps"), [(VELOCITY_VERLET, 1), (VELOCITY_VERLET, 2), (TWO_STAGE, 3), (YOSHIDA4, 1)])
def test_echo_with_a_source_is_the_adjoint_of_flow_and_path(coefficients, steps, final_kick, float64):
    """A cost of the end plus a cost of every drift: state, momentum, masses, potential, and the source's own parameter."""
    times = schedule(coefficients, steps, 0.4, final_kick)
    ham, (s, p), (c_s, c_p) = random_hamiltonian(5, 7), start(), start(seed=1)
    weight = normal(np.random.default_rng(2), 1, 1, 5)

    def cost(ham, s, p, weight):
        s, p, path = flow(system(ham), s, p, times, observe=lambda *ends: path_cost(weight, *ends))
        return jnp.sum(c_s * s + c_p * p) + path

    def source(before, after):
        c_weight, c_before, c_after = jax.grad(path_cost, (0, 1, 2))(weight, before, after)
        return c_before, c_after, {"weight": c_weight}

    *expected, c_weight = jax.jit(jax.grad(cost, (0, 1, 2, 3)))(ham, s, p, weight)
    rebuilt, actual, others = echo_of(ham, s, p, times, c_s, c_p, 1e-4, source)
    assert_trees_close(actual, tuple(expected), 1e-6)
    assert_trees_close(others, {"weight": c_weight}, 1e-6)
    assert_trees_close(rebuilt, (s, p), 1e-6)


def test_a_path_alone_has_an_adjoint(float64):
    """Without any push at the end. The span is then only the scale of the pushes on the way."""
    times = schedule(VELOCITY_VERLET, 2, 0.4, final_kick=False)
    ham, (s, p) = random_hamiltonian(5, 7), start()
    zero, one = jnp.zeros_like(s), jnp.ones((1, 1, 5))

    def cost(ham, s, p):
        return flow(system(ham), s, p, times, observe=lambda *ends: path_cost(one, *ends))[2]

    expected = jax.jit(jax.grad(cost, (0, 1, 2)))(ham, s, p)
    source = jax.grad(path_cost, (1, 2))
    _, actual, _ = echo_of(ham, s, p, times, zero, zero, 1e-4, lambda *ends: (*source(one, *ends), None))
    assert_trees_close(actual, expected, 1e-6)


def test_echo_has_order_two_in_the_span(float64):
    """Centred: half the span, a quarter of the error."""
    times = schedule(VELOCITY_VERLET, 2, 0.4)
    ham, s, p, c_s, c_p, expected = echo_case(times)
    errors = []
    for size in (0.02, 0.01):
        _, actual, _ = echo_of(ham, s, p, times, c_s, c_p, size)
        errors.append(oracles.whole_agreement(actual, expected).relative_error)
    assert 3.6 < errors[0] / errors[1] < 4.4, errors


def test_echo_undoes_the_flow_exactly(float64):
    """Without a push the echo is the inverse of the flow, however long: a block without stored input relies on this."""
    times = schedule(VELOCITY_VERLET, 6, 0.4, final_kick=False)
    ham, (s, p) = random_hamiltonian(5, 7), start()
    zero = jnp.zeros_like(s)
    rebuilt, (contrast, *cotangents), _ = echo_of(ham, s, p, times, zero, zero, 1e-3)
    assert_trees_close(rebuilt, (s, p), 1e-12)
    # Not exactly zero: the compiler may round the two runs differently, and 1e-16 over the span is 1e-13.
    assert max(np.abs(x).max() for x in jax.tree.leaves((contrast, cotangents))) < 1e-10


def test_echo_is_linear_in_the_push(float64):
    times = schedule(VELOCITY_VERLET, 2, 0.4)
    ham, s, p, c_s, c_p, _ = echo_case(times)
    _, once, _ = echo_of(ham, s, p, times, c_s, c_p, 1e-4)
    _, twice, _ = echo_of(ham, s, p, times, -2 * c_s, -2 * c_p, 1e-4)
    assert_trees_close(twice, jax.tree.map(lambda x: -2 * x, once), 1e-6)
