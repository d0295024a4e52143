import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lior_jax.physics import action, geometry
from lior_jax.physics.action import LENGTH_EPSILON, RELAXATION_TIME, ActionState, length, length_adjoint
from tests.oracles import check_adjoint, dense_metric, normal, random_metric

step = jax.jit(action.step)


def fresh(order=0.5, *shape):
    """As `action.initial`, in the precision of the test."""
    return ActionState(jnp.zeros(shape), jnp.zeros(shape), order + jnp.zeros(shape))


def steps(costs, dtau, state):
    for cost in costs:
        state = step(jnp.asarray(cost), dtau, state)
    return state


# --- the length of a move --------------------------------------------------------------------------------------------


def test_length_is_the_norm(float64):
    """But for ε, which is the length of no move at all."""
    moves = normal(np.random.default_rng(0), 2, 3, 4)
    np.testing.assert_allclose(length(moves) ** 2, np.linalg.norm(moves, axis=-1) ** 2 + LENGTH_EPSILON, rtol=1e-12)
    np.testing.assert_allclose(length(jnp.zeros((2, 4))), np.sqrt(LENGTH_EPSILON), rtol=1e-12)
    np.testing.assert_allclose(length(1e4 * moves), 1e4 * np.linalg.norm(moves, axis=-1), rtol=1e-6)


def test_length_has_no_direction(float64):
    moves = normal(np.random.default_rng(1), 6, 4)
    axes = np.linalg.qr(np.random.default_rng(2).standard_normal((4, 4)))[0]
    np.testing.assert_allclose(length(-moves), length(moves), rtol=1e-14)
    np.testing.assert_allclose(length(moves @ axes), length(moves), rtol=1e-12)


def test_a_detour_is_longer(float64):
    a, b = normal(np.random.default_rng(3), 2, 8, 4)
    assert (length(a) + length(b) > length(a + b)).all()


def test_whitened_length_is_the_metric_length(float64):
    metric, moves = random_metric(4, 3, 2), normal(np.random.default_rng(4), 5, 4)
    expected = np.sqrt(np.einsum("km,mn,kn->k", moves, dense_metric(metric), moves) + LENGTH_EPSILON)
    np.testing.assert_allclose(length(geometry.whiten(metric, moves.T).T), expected, rtol=1e-11)


def test_length_adjoint():
    """Where nothing moves too, and in any shape."""
    moves = normal(np.random.default_rng(5), 2, 3, 4).at[0, 0].set(0.0).at[0, 1].multiply(1e-3)
    for x in (moves, moves[1, 1]):
        check_adjoint(length, lambda x, cotangent: (length_adjoint(x, cotangent),), (x,), tol=1e-12)


# --- what the action does to memory ----------------------------------------------------------------------------------


def test_nothing_has_happened_yet():
    state = action.initial(0.3, 2, 3)
    assert not any(x.weak_type for x in state)  # or the second step would need another program than the first
    assert [x.shape for x in state] == [(2, 3)] * 3
    np.testing.assert_array_equal(state.integral, 0.0)
    np.testing.assert_array_equal(state.elapsed, 0.0)
    np.testing.assert_allclose(state.order, 0.3, rtol=1e-6)


def test_integral_adds_up(float64):
    """`I = Σ cost dτ`, with steps of any length."""
    rng, state = np.random.default_rng(6), fresh(0.5, 4)
    costs, lengths = rng.uniform(0, 3, (9, 4)), rng.uniform(0.1, 2, 9)
    for cost, dtau in zip(costs, lengths, strict=True):
        state = step(jnp.asarray(cost), dtau, state)
    np.testing.assert_allclose(state.integral, lengths @ costs, rtol=1e-12)
    np.testing.assert_allclose(state.elapsed, lengths.sum(), rtol=1e-12)


def test_order_solves_its_equation(float64):
    """`dα/dτ = (σ(excess) − α) / relaxation time` over the step, by many small steps of Euler's."""
    state = ActionState(*(jnp.asarray(x) for x in (6.0, 4.0, 0.35)))
    cost, dtau, pieces = 2.4, 30.0, 20_000
    excess = cost / ((6.0 + cost * dtau) / (4.0 + dtau)) - 1
    target, order = 1 / (1 + np.exp(-excess)), 0.35
    for _ in range(pieces):
        order += (target - order) / RELAXATION_TIME * dtau / pieces
    np.testing.assert_allclose(step(jnp.asarray(cost), dtau, state).order, order, rtol=1e-5)


@pytest.mark.parametrize("cost", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("order", [0.05, 0.5, 0.95])
def test_constant_cost_leaves_the_order_relaxing_to_one_half(cost, order, float64):
    """Whatever the cost is: action above or below average is what counts. Exponentially, in `RELAXATION_TIME`."""
    state = steps([cost] * 10, RELAXATION_TIME / 10, fresh(order))
    np.testing.assert_allclose(state.order, 0.5 + (order - 0.5) * np.exp(-1), rtol=1e-12)
    state = steps([cost] * 10, RELAXATION_TIME, state)
    np.testing.assert_allclose(state.order, 0.5, atol=1e-4)


def test_steps_of_a_constant_cost_may_be_merged(float64):
    many, once = steps([1.7] * 30, 0.5, fresh(0.2)), steps([1.7], 15.0, fresh(0.2))
    for a, b in zip(many, once, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_more_action_than_usual_shortens_the_memory_and_less_lengthens_it(float64):
    """A larger α makes `Δ^−α` fall faster. Twice the cost raises it more than a little more."""
    settled = steps([1.0] * 50, 1.0, fresh())
    np.testing.assert_allclose(settled.order, 0.5, rtol=1e-12)
    none, less, same, more, much = (float(step(jnp.asarray(cost), 1.0, settled).order) for cost in (0.0, 0.5, 1.0, 1.5, 3.0))
    assert none < less < same < more < much
    np.testing.assert_allclose(same, 0.5, rtol=1e-12)
    assert more - same > 1e-4


@given(
    costs=st.lists(st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 50.0, 1e6, 1e12]), min_size=1, max_size=6),
    dtau=st.sampled_from([1e-3, 1.0, 1e3, 1e6]),
    order=st.sampled_from([1e-3, 0.5, 0.999]),
)
def test_order_stays_between_zero_and_one(costs, dtau, order):
    """In float32, however long the step and however large the cost; and what it moves the prior by stays finite."""
    state = steps([np.float32(cost) for cost in costs], dtau, fresh(order))
    assert 0 < state.order < 1
    assert np.isfinite(action.prior_shift(state))


def test_a_sudden_burst_in_a_quiet_life_keeps_the_order_below_one():
    """10 000 times the average, for longer than the relaxation time: the logistic function of that is 1 in float32."""
    state = steps([np.float32(1e-2)], 1e6, fresh())
    state = steps([np.float32(1e2)], 1e4, state)
    assert 0.5 < state.order < 1
    assert np.isfinite(action.prior_shift(state))


def test_every_head_goes_its_own_way(float64):
    """Any shape, and under `vmap`."""
    rng = np.random.default_rng(7)
    costs, state = jnp.asarray(rng.uniform(0.1, 3, (2, 3))), ActionState(*jnp.asarray(rng.uniform(0.1, 0.9, (3, 2, 3))))
    together = step(costs, 0.7, state)
    mapped = jax.vmap(jax.vmap(lambda cost, state: action.step(cost, 0.7, state)))(costs, state)
    for head in np.ndindex(2, 3):
        alone = step(costs[head], 0.7, ActionState(*(x[head] for x in state)))
        for whole, one, inside in zip(together, alone, mapped, strict=True):
            np.testing.assert_allclose(whole[head], one, rtol=1e-13)
            np.testing.assert_allclose(inside[head], one, rtol=1e-13)


def test_prior_shift_is_the_logarithm_of_the_odds(float64):
    order = np.array([1e-3, 0.2, 0.5, 0.9])
    state = ActionState(jnp.zeros(4), jnp.zeros(4), jnp.asarray(order))
    shift = np.asarray(action.prior_shift(state))
    np.testing.assert_allclose(np.exp(shift), order / (1 - order), rtol=1e-12)
    assert abs(shift[2]) < 1e-15
