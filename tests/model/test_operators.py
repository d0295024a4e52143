import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings

from lior_jax.model import operators
from lior_jax.model.operators import FRAME_RATE
from lior_jax.model.parameters import Carried
from lior_jax.physics.action import RELAXATION_TIME
from tests import dense, oracles
from tests.oracles import (
    EVERYTHING,
    PARTS,
    SMALL,
    assert_trees_close,
    check_adjoint,
    model_changes,
    model_config,
    random_params,
    small_config,
    to64,
    to_numpy,
)

LENGTH = 6
prepare = jax.jit(operators.prepare, static_argnames=("length", "config"))
carry = jax.jit(operators.carry, static_argnames="config")


def log_prior(made):
    """Of retrieval's terms, the first."""
    return made.couplings.scores[0].log_prior


# --- prepare ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", *PARTS, *EVERYTHING])
def test_prepare_is_its_formula(name, float64):
    """Every operator, by every part alone and by all at once; what is left out is absent."""
    config = small_config(**({"plain": {}} | PARTS | EVERYTHING)[name]).model
    params = to64(random_params(config))
    assert_trees_close(prepare(params, length=LENGTH, config=config), dense.prepare(params, LENGTH, config), 1e-9)


def check_prepare_adjoint(changes):
    """Raw parameters of all blocks at once. What is carried is treated as constant."""
    config = model_config(**(SMALL | changes))
    params = random_params(config)

    def function(blocks):
        return operators.prepare(to64(params)._replace(blocks=blocks), LENGTH, config)

    def adjoint(blocks, cotangent):
        return (operators.prepare_adjoint(to64(params)._replace(blocks=blocks), cotangent, config),)

    check_adjoint(function, adjoint, (params.blocks,))


RELAXED = {"relaxed": {"dynamics": "dissipative"}, "relaxed_hopfield": {"dynamics": "dissipative"} | PARTS["hopfield"]}
ALONE = ["block_rot", "learned_lowrank", "derived_blocks", "adaptive_order", "tensor", "hopfield", *RELAXED]


@pytest.mark.parametrize("name", [*ALONE, *EVERYTHING])
def test_prepare_adjoint(name):
    """Of parts that share nothing with others, and of all at once."""
    check_prepare_adjoint((PARTS | EVERYTHING | RELAXED)[name])


@pytest.mark.slow
@settings(max_examples=4)
@given(changes=model_changes())
@example(changes={"geometry__rank": 0, "geometry__rotor_layers": 0, "convolution__taps": 8, "heads": 1})
def test_prepare_adjoint_of_any_shape(changes):
    check_prepare_adjoint(changes)


def test_operators_are_positive():
    """Even from raw parameters that are far below zero."""
    config = small_config().model
    made = prepare(random_params(config, scale=5.0), length=LENGTH, config=config)
    for leaf in (made.couplings.inverse_temperature, made.hamiltonian.potential.curvature, made.hamiltonian.inverse_mass):
        assert (np.asarray(leaf) > 0).all()


def test_an_order_of_one_half_is_the_learned_order(float64):
    config = small_config(**PARTS["adaptive_order"]).model
    params = to64(random_params(config))
    state = params.carried.action
    half = params._replace(carried=Carried(None, state._replace(order=jnp.full_like(state.order, 0.5))))
    prior = [log_prior(prepare(x, length=LENGTH, config=config)) for x in (half, params)]
    learned = params._replace(carried=Carried(None, None))
    expected = log_prior(prepare(learned, length=LENGTH, config=config))
    np.testing.assert_allclose(prior[0], expected, atol=1e-12)
    assert np.abs(prior[1] - expected).max() > 0.1


def test_a_larger_order_shortens_the_memory():
    """In every head: the share of the prior that the newest position has grows with the carried order."""
    config = small_config(**PARTS["adaptive_order"]).model
    params = random_params(config, scale=0.3)
    state, shares = params.carried.action, []
    for order in (0.1, 0.5, 0.9):
        carried = Carried(None, state._replace(order=jnp.full_like(state.order, order)))
        prior = log_prior(prepare(params._replace(carried=carried), length=LENGTH, config=config))
        shares.append(jax.nn.softmax(prior)[..., 0])
    assert (shares[0] < shares[1]).all()
    assert (shares[1] < shares[2]).all()


# --- carry -----------------------------------------------------------------------------------------------------------


DERIVED = {
    "turned": PARTS["derived"],
    "in a base metric": PARTS["derived"] | PARTS["base_metric"],
    "in blocks": PARTS["derived_blocks"],
    "in one block": PARTS["derived_blocks"] | {"geometry__block": 4},
}


def whitened_moment(params, points, config):
    """`E[xxᵀ]` of `x = Ω Λ^½ Qᵀ z` for points `z` `[k, N, H, n]`, the first `n` whitened coordinates."""
    params, moments = (
        to_numpy(params),
        np.zeros((config.blocks, config.heads, config.geometry.chart_dim, config.geometry.chart_dim)),
    )
    for head in np.ndindex(config.blocks, config.heads):
        metric = dense.at(params.blocks.metric, *head)
        rigid = oracles.softplus(metric.scale) * np.sqrt(oracles.softplus(metric.stiffness))
        x = points[:, *head] @ params.carried.frame.axes[head] * rigid
        moments[head] = x.T @ x / len(x)
    return moments


def in_blocks(matrix, config):
    member = np.arange(config.geometry.chart_dim) // (
        config.geometry.block if config.geometry.metric == "block_rot" else config.geometry.chart_dim
    )
    return matrix * (member[:, None] == member[None])


@pytest.mark.parametrize("changes", DERIVED.values(), ids=DERIVED)
def test_carry_finds_the_keys_covariance_behind_their_whitening(changes, float64):
    """The covariance moves by the points as they were before the metric stretched and turned them. The axes take one step of
    orthogonal iteration from where they were."""
    config = small_config(**changes).model
    params = to64(random_params(config, 3))
    points = np.random.default_rng(4).standard_normal((9, config.blocks, config.heads, config.geometry.chart_dim))
    carried = carry(params, jnp.ones((config.blocks, config.heads)), whitened_moment(params, points, config), config=config)
    assert carried.action is None

    moment = np.einsum("kbhm,kbhn->bhmn", points, points) / len(points)
    old = to_numpy(params.carried.frame)
    covariance = in_blocks((1 - FRAME_RATE) * old.covariance + FRAME_RATE * moment, config)
    np.testing.assert_allclose(carried.frame.covariance, covariance, atol=1e-12)

    axes = np.asarray(carried.frame.axes)
    identity = np.broadcast_to(np.eye(config.geometry.chart_dim), axes.shape)
    np.testing.assert_allclose(np.swapaxes(axes, -1, -2) @ axes, identity, atol=1e-12)
    np.testing.assert_allclose(in_blocks(axes, config), axes, atol=1e-12)
    upper = np.swapaxes(axes, -1, -2) @ covariance @ old.axes  # R of C Q = Q′ R
    np.testing.assert_allclose(upper, np.triu(upper), atol=2e-3)  # a small ridge aside
    assert (np.diagonal(upper, axis1=-2, axis2=-1) > 0).all()


def test_a_derived_frame_settles_on_the_keys_axes(float64):
    """The same points again and again: the covariance becomes theirs, and the metric diagonal in it."""
    config = small_config(**PARTS["derived"], blocks=1, heads=1).model
    params = to64(random_params(config, 3))
    stretched = np.geomspace(1, 5, config.geometry.chart_dim) * np.random.default_rng(4).standard_normal(
        (500, 1, 1, config.geometry.chart_dim)
    )
    turn = np.linalg.qr(np.random.default_rng(5).standard_normal((config.geometry.chart_dim, config.geometry.chart_dim)))[0]
    points = stretched @ turn
    for _ in range(800):
        moment = whitened_moment(params, points, config)
        params = params._replace(carried=carry(params, jnp.ones((1, 1)), moment, config=config))
    frame = params.carried.frame
    covariance = np.einsum("kbhm,kbhn->bhmn", points, points)[0, 0] / len(points)
    np.testing.assert_allclose(frame.covariance[0, 0], covariance, rtol=1e-2, atol=1e-2)
    inside = np.asarray(frame.axes[0, 0].T @ frame.covariance[0, 0] @ frame.axes[0, 0])
    np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=1e-2 * inside.max())
    assert (np.diff(np.diag(inside)) < 0).all()


@pytest.mark.parametrize(("steps", "size"), [(1, 1.0), (3, 0.5)])
def test_carry_advances_the_action(steps, size, float64):
    """`∫ cost dτ` is what the flow's action is, in the time `T h` that the flow takes."""
    config = small_config(**PARTS["adaptive_order"], flow__steps=steps, flow__step_size=size).model
    params = to64(random_params(config, 5))
    actions = np.random.default_rng(6).uniform(0.5, 8.0, (config.blocks, config.heads))
    carried = carry(params, jnp.asarray(actions), None, config=config)
    assert carried.frame is None

    old, tau = to_numpy(params.carried.action), steps * size
    np.testing.assert_allclose(carried.action.integral, old.integral + actions, rtol=1e-12)
    np.testing.assert_allclose(carried.action.elapsed, old.elapsed + tau, rtol=1e-12)
    excess = (actions / tau) / ((old.integral + actions) / (old.elapsed + tau)) - 1
    target = 1 / (1 + np.exp(-excess))
    order = target + (old.order - target) * np.exp(-tau / RELAXATION_TIME)
    np.testing.assert_allclose(carried.action.order, order, rtol=1e-12)


def test_nothing_to_carry():
    config = small_config().model
    assert carry(random_params(config), jnp.ones((2, 2)), None, config=config) == Carried(None, None)
