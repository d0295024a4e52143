"""The echo and the equilibrium estimate of systems that are no language model, beside automatic differentiation."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax.learning import echo_gradient, energy_landscape, equilibrium_gradient, separable_system
from lior_jax.physics.flow import System, flow
from lior_jax.physics.integrators import VELOCITY_VERLET, YOSHIDA4, schedule
from lior_jax.physics.pair import Pair
from lior_jax.physics.relaxation import Descent
from tests import oracles
from tests.oracles import assert_trees_close, normal

INTEGRATORS = pytest.mark.parametrize("coefficients", [VELOCITY_VERLET, YOSHIDA4], ids=["verlet", "yoshida4"])


# --- a system over a tree: two groups of particles that feel each other, with learned potentials, couplings and masses ----


def potential(theta, s):
    a, b = s["a"], s["b"]
    return 0.5 * jnp.sum(theta["stiff"] * a * a) - jnp.sum(theta["well"] * jnp.cos(b)) + theta["tie"] * jnp.sum(a) * jnp.sum(b)


def kinetic(theta, p):
    return 0.5 * jnp.sum(theta["inverse"]["a"] * p["a"] ** 2) + jnp.sum(jnp.cosh(theta["inverse"]["b"] * p["b"]))


def force(theta, s):
    a, b = s["a"], s["b"]
    return {
        "a": -theta["stiff"] * a - theta["tie"] * jnp.sum(b),
        "b": -theta["well"] * jnp.sin(b) - theta["tie"] * jnp.sum(a),
    }


def velocity(theta, p):
    inverse = theta["inverse"]
    return {"a": inverse["a"] * p["a"], "b": inverse["b"] * jnp.sinh(inverse["b"] * p["b"])}


def potential_statistic(theta, s):
    own = {"stiff": 0.5 * s["a"] ** 2, "well": -jnp.cos(s["b"]), "tie": jnp.sum(s["a"]) * jnp.sum(s["b"])}
    return own | {"inverse": jax.tree.map(jnp.zeros_like, theta["inverse"])}


def kinetic_statistic(theta, p):
    still = jax.tree.map(jnp.zeros_like, theta)
    return still | {"inverse": {"a": 0.5 * p["a"] ** 2, "b": p["b"] * jnp.sinh(theta["inverse"]["b"] * p["b"])}}


def system(theta):
    return separable_system(theta, force, velocity, potential_statistic, kinetic_statistic)


def case(seed=0):
    """Parameters, start, and what costs need."""
    rng = np.random.default_rng(seed)
    s, p, goal = ({"a": normal(rng, 3), "b": normal(rng, 2, 2)} for _ in range(3))
    inverse = {"a": jnp.exp(0.3 * normal(rng, 3)), "b": jnp.exp(0.3 * normal(rng, 2, 2))}
    theta = {"stiff": jnp.exp(0.3 * normal(rng, 3)), "well": normal(rng, 2, 2), "tie": jnp.array(0.3), "inverse": inverse}
    return theta, s, p, goal


def end_cost(goal):
    """Of state and momentum, neither quadratic nor a sum over both."""

    def cost(s, p):
        far = sum(jnp.sum(jnp.cosh(s[key] - goal[key])) for key in s)
        return far * (1 + jnp.sum(p["a"] ** 2)) + jnp.sum(jnp.sin(p["b"]))

    return cost


def path_cost(before, after, target, weight):
    """With the drift's own target, and not symmetric in the drift's ends."""
    return weight * jnp.sum((after["a"] - target) ** 2) + jnp.sum(jnp.sin(before["b"]) * after["b"])


def with_adjoint(cost, count):
    """Test costs are differentiated; users write theirs by hand."""
    return jax.value_and_grad(cost, tuple(range(count)))


def along(times, seed=1):
    rng = np.random.default_rng(seed)
    return normal(rng, len(times.drifts), 3), jnp.asarray(rng.uniform(0, 1, len(times.drifts)))


def echo_and_autodiff(coefficients, final_kick=True, end=True, path=True, nudge_size=1e-4, sides="centred", steps=3):
    theta, s, p, goal = case()
    times = schedule(coefficients, steps, 0.2, final_kick)
    given = along(times) if path else ()
    at_end = end_cost(goal)

    def cost(theta, s, p):
        observe = path_cost if path else lambda before, after: jnp.zeros(())
        s, p, by_path = flow(system(theta), s, p, times, observe, given)
        return by_path + (at_end(s, p) if end else 0.0)

    @jax.jit
    def run(theta, s, p):
        costs = with_adjoint(at_end, 2) if end else None, with_adjoint(path_cost, 2) if path else None
        return echo_gradient(system(theta), s, p, times, *costs, given, nudge_size, sides)

    return run(theta, s, p), jax.jit(jax.value_and_grad(cost, (0, 1, 2)))(theta, s, p)


@INTEGRATORS
@pytest.mark.parametrize("final_kick", [True, False])
@pytest.mark.parametrize(("end", "path"), [(True, False), (False, True), (True, True)])
def test_echo_is_the_gradient(coefficients, final_kick, end, path, float64):
    """Per leaf: parameters of potential and kinetic energy, and both halves of the start."""
    found, (cost, expected) = echo_and_autodiff(coefficients, final_kick, end, path)
    assert_trees_close((found.gradient, found.c_s, found.c_p), expected, 1e-6)
    np.testing.assert_allclose(found.cost, cost, rtol=1e-12)
    assert found.reversibility < 1e-6
    assert jax.tree.map(jnp.shape, found.gradient) == jax.tree.map(jnp.shape, expected[0])


@pytest.mark.parametrize(("sides", "order"), [("centred", 2), ("one_sided", 1)])
def test_error_of_the_echo_has_the_order_of_its_sides(sides, order, float64):
    errors = []
    for size in (2e-3, 1e-3):
        found, (_, expected) = echo_and_autodiff(VELOCITY_VERLET, nudge_size=size, sides=sides)
        errors.append(oracles.whole_agreement((found.gradient, found.c_s, found.c_p), expected).relative_error)
        assert found.reversibility < (1e-12 if sides == "one_sided" else 10 * size**2)
    assert abs(errors[0] / errors[1] - 2**order) < 0.2 * 2**order, errors


def test_all_pushes_together_are_the_share_of_the_state(float64):
    """At the end alone it is exactly that share; a path shares it among its drifts."""
    theta, s, p, goal = case()
    times = schedule(VELOCITY_VERLET, 3, 0.2)
    ends = flow(system(theta), s, p, times)[:2]
    size, pulls = (
        np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree)))
        for tree in (ends, jax.grad(end_cost(goal), (0, 1))(*ends))
    )
    size = max(size, np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves((s, p)))))
    alone, _ = echo_and_autodiff(VELOCITY_VERLET, path=False, nudge_size=1e-3)
    np.testing.assert_allclose(alone.nudge * pulls, 1e-3 * size, rtol=1e-10)
    both, _ = echo_and_autodiff(VELOCITY_VERLET, nudge_size=1e-3)
    assert both.nudge < alone.nudge


def test_a_cost_that_is_met_has_no_gradient_and_nothing_breaks(float64):
    theta, s, p, _ = case()
    s, p = (jax.tree.map(jnp.zeros_like, x) for x in (s, p))
    found = echo_gradient(system(theta), s, p, schedule(YOSHIDA4, 2, 0.2), lambda s, p: (jnp.zeros(()), (s, p)))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    assert all(np.all(x == 0) for x in jax.tree.leaves((found.gradient, found.c_s, found.c_p)))


def test_echo_needs_a_cost():
    theta, s, p, _ = case()
    with pytest.raises(ValueError, match="cost of the end, of the path"):
        echo_gradient(system(theta), s, p, schedule(VELOCITY_VERLET, 1, 0.1))


def test_contrasts_of_means_and_slopes_survive_a_tiny_nudge_in_single_precision():
    """A `System` that is linear, and contrasted without any difference, needs no care about ε."""
    stiffness, s, p = jnp.array([0.7, 1.3]), jnp.array([1.0, -0.4]), jnp.array([0.2, 0.5])
    times = schedule(VELOCITY_VERLET, 4, 0.3)

    def linear(stiffness):
        return System(
            lambda s: -stiffness * s,
            lambda p: p,
            lambda s, span: (Pair(-stiffness * s.mean, -stiffness * s.slope), s.mean * s.slope),
            lambda p, span: (p, jnp.zeros_like(p.mean)),
        )

    def cost(stiffness):
        return 0.5 * jnp.sum(flow(linear(stiffness), s, p, times)[0] ** 2)

    def at_end(s, p):
        return 0.5 * jnp.sum(s**2), (s, jnp.zeros_like(p))

    found = echo_gradient(linear(stiffness), s, p, times, at_end, nudge_size=1e-7)
    np.testing.assert_allclose(found.gradient, jax.grad(cost)(stiffness), rtol=1e-5)


def test_one_system_of_a_batch_is_the_system_by_itself(float64):
    theta, s, p, goal = case()
    times, at_end = schedule(VELOCITY_VERLET, 3, 0.2), with_adjoint(end_cost(goal), 2)

    def run(s, p):
        return echo_gradient(system(theta), s, p, times, at_end)

    two = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), (s, p))
    assert_trees_close(jax.tree.map(lambda x: x[0], jax.vmap(run)(*two))[:4], run(s, p)[:4], 1e-7)


# --- an energy over a tree --------------------------------------------------------------------------------------------


def energy(theta, s):
    """Strongly convex: a spring of unit stiffness beside what is learned."""
    spring = 0.5 * (jnp.sum((s["a"] - theta["rest"]) ** 2) + jnp.sum(s["b"] ** 2))
    return spring + theta["tie"] * jnp.sum(s["a"]) * jnp.tanh(jnp.sum(s["b"])) + 0.3 * jnp.sum(theta["well"] * jnp.cos(s["b"]))


def energy_gradient(theta, s):
    x, y = jnp.sum(s["a"]), jnp.tanh(jnp.sum(s["b"]))
    return {
        "a": s["a"] - theta["rest"] + theta["tie"] * y,
        "b": s["b"] + theta["tie"] * x * (1 - y * y) - 0.3 * theta["well"] * jnp.sin(s["b"]),
    }


def statistic(theta, s):
    tie = jnp.sum(s["a"]) * jnp.tanh(jnp.sum(s["b"]))
    return {"rest": theta["rest"] - s["a"], "tie": tie, "well": 0.3 * jnp.cos(s["b"])}


def relaxed_case():
    rng = np.random.default_rng(3)
    theta = {"rest": normal(rng, 3), "tie": jnp.array(0.2), "well": normal(rng, 2, 2)}
    start, goal = ({"a": normal(rng, 3), "b": normal(rng, 2, 2)} for _ in range(2))
    return theta, start, goal


def equilibrium(nudge_size=1e-4, sides="centred", steps=200, precondition=lambda s: s):
    theta, start, goal = relaxed_case()
    at_minimum = jax.value_and_grad(lambda s: end_cost(goal)(s, s))

    @jax.jit
    def run(theta):
        landscape = energy_landscape(theta, energy_gradient, statistic, precondition)
        return equilibrium_gradient(landscape, start, Descent(steps, 0.3, 0.5), at_minimum, nudge_size, sides)

    return run(theta)


def by_implicit_differentiation(s):
    """The gradient `−(∂²E/∂θ∂s) (∂²E/∂s²)⁻¹ ∂C/∂s` of the cost at the minimum `s`: dense, and from the energy alone."""
    theta, _, goal = relaxed_case()
    flat, unflatten = jax.flatten_util.ravel_pytree(s)
    pull = jax.flatten_util.ravel_pytree(jax.grad(lambda s: end_cost(goal)(s, s))(s))[0]
    response = -jnp.linalg.solve(jax.hessian(lambda x: energy(theta, unflatten(x)))(flat), pull)
    return jax.grad(lambda theta: jax.jvp(lambda x: energy(theta, unflatten(x)), (flat,), (response,))[1])(theta)


def test_equilibrium_is_the_gradient(float64):
    theta, _, goal = relaxed_case()
    found = equilibrium()
    assert max(np.abs(x).max() for x in jax.tree.leaves(jax.grad(energy, 1)(theta, found.state))) < 1e-12
    assert found.residual < 1e-10
    np.testing.assert_allclose(found.cost, end_cost(goal)(found.state, found.state), rtol=1e-12)
    assert_trees_close(found.gradient, by_implicit_differentiation(found.state), 1e-6)
    # Whatever the preconditioner, the minimum and the gradient there are the same.
    assert_trees_close(equilibrium(precondition=lambda s: jax.tree.map(lambda x: 1.5 * x, s)).gradient, found.gradient, 1e-8)


@pytest.mark.parametrize(("sides", "order"), [("centred", 2), ("one_sided", 1)])
def test_error_of_the_equilibrium_has_the_order_of_its_sides(sides, order, float64):
    found = [equilibrium(size, sides) for size in (2e-3, 1e-3)]
    expected = by_implicit_differentiation(found[0].state)
    errors = [oracles.whole_agreement(x.gradient, expected).relative_error for x in found]
    assert abs(errors[0] / errors[1] - 2**order) < 0.2 * 2**order, errors


def test_residual_tells_of_too_few_steps(float64):
    """The free phase settles first; a gradient with a residual is no better than the residual."""
    few = equilibrium(steps=12)
    error = oracles.whole_agreement(few.gradient, by_implicit_differentiation(equilibrium().state)).relative_error
    assert few.residual > 1e-4
    assert error > 1e-5
