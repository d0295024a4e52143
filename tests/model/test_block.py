import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lior_jax.model import block, operators, retrieval
from tests import dense, oracles
from tests.oracles import (
    EVERYTHING,
    PARTS,
    SMALL,
    assert_trees_close,
    check_adjoint,
    model_changes,
    model_config,
    normal,
    random_like,
    random_params,
    small_config,
    to64,
    to_numpy,
)

apply = jax.jit(block.apply, static_argnames="config")
kick = jax.jit(block.kick, static_argnames="config")
action = jax.jit(block.action, static_argnames="config")
LAWS = {
    "unit": {},
    "constitutive": PARTS["constitutive"],
    "curvature": PARTS["curvature"],
    "rankless": PARTS["curvature"] | {"geometry__rank": 0, "heads": 1},
}
each_law = pytest.mark.parametrize("changes", LAWS.values(), ids=LAWS)


def random_operators(config, length=5, seed=0):
    """Normal leaves of one block's operators. Some that the model keeps positive may be negative; the adjoints do not care."""
    shapes = jax.eval_shape(lambda: operators.prepare(random_params(config), length, config))
    return jax.tree.map(lambda x: x[0], random_like(shapes, seed))


def prepared(config, length=5, seed=0, index=0):
    """Operators of one block of a model with nothing special about it."""
    made = jax.jit(operators.prepare, static_argnums=(1, 2))(random_params(config, seed, scale=0.4), length, config)
    return jax.tree.map(lambda x: x[index], made)


def states(config, length=5, count=2, seed=0):
    return normal(np.random.default_rng(seed), count, 2, length, config.width)


# --- the kick --------------------------------------------------------------------------------------------------------


def check_kick_adjoint(changes, length=5, seed=0):
    config = model_config(**(SMALL | changes))

    def adjoint(made, s, cotangent):
        return block.kick_and_adjoint(made, s, cotangent, config)[1]

    args = random_operators(config, length, seed), states(config, length, 1, seed)[0]
    check_adjoint(lambda made, s: block.kick(made, s, config)[0], adjoint, args)


@pytest.mark.parametrize(
    "name", ["long_convolution", "constitutive", "curvature", "no_prior", "master", "project", *EVERYTHING]
)
def test_kick_adjoint(name):
    """State and operators; the Hamiltonian has no part in it."""
    check_kick_adjoint((PARTS | EVERYTHING)[name])


@pytest.mark.slow
@settings(max_examples=3)
@given(changes=model_changes(), length=st.integers(1, 7), seed=st.integers(0, 999))
@example(changes={"geometry__rank": 0, "geometry__rotor_layers": 0, "convolution__taps": 8, "heads": 1}, length=5, seed=0)
def test_kick_adjoint_of_any_shape(changes, length, seed):
    """Taps may reach before the first position."""
    check_kick_adjoint(changes, length, seed)


@pytest.mark.parametrize("name", EVERYTHING)
def test_kick_adjoint_returns_the_kick(name):
    config = small_config(**EVERYTHING[name]).model
    made, s = prepared(config), states(config)[0]
    kicked, (gradient, _) = jax.jit(block.kick_and_adjoint, static_argnums=3)(made, s, jnp.ones_like(s), config)
    assert_trees_close(kicked, kick(made, s, config=config)[0], 1e-5)
    assert not any(x.any() for x in jax.tree.leaves(gradient.hamiltonian))


# --- the action ------------------------------------------------------------------------------------------------------


@each_law
def test_action_is_its_formula(changes, float64):
    """Of every head and position: resilience where the move begins, times the length of the chart point's move."""
    config = small_config(**changes).model
    params = to64(random_params(config, scale=0.4))
    before, after = states(config)
    made = dense.at(dense.prepare(params, 5, config), 1)
    law = dense.at(to_numpy(params.blocks.resilience), 1)
    expected = dense.action(law, made.query, np.asarray(before), np.asarray(after), config)
    made = jax.tree.map(jnp.asarray, made)
    np.testing.assert_allclose(action(made, before, after, config=config), expected, rtol=1e-10)


@each_law
def test_action_adjoint(changes):
    """Both states, the chart and the law, for a cost that is a share of the sum over all heads and positions. A position that
    does not move has an adjoint too."""
    config = small_config(**changes).model
    before, after = states(config)
    after = after.at[0, 1].set(before[0, 1])
    made, share = random_operators(config), -0.7

    def cost(query, law, before, after):
        return jnp.sum(block.action(made._replace(query=query, resilience=law), before, after, config))

    def adjoint(query, law, before, after, cotangent):
        given = made._replace(query=query, resilience=law)
        others, c_before, c_after = block.action_adjoint(given, before, after, share, config)
        return jax.tree.map(lambda x: x * cotangent / share, (others.query, others.resilience, c_before, c_after))

    check_adjoint(cost, adjoint, (made.query, made.resilience, before, after))


def test_action_is_resilience_times_length(float64):
    """A head of resilience 1 measures the length alone; others weigh it by the state's magnitude where the move begins."""
    config = small_config(**PARTS["constitutive"], heads=3).model
    made, (before, after) = to64(prepared(config)), states(config)
    made = made._replace(resilience=made.resilience._replace(exponent=jnp.array([0.0, 1.0, 2.0])))
    bare = action(made._replace(resilience=None), before, after, config=config)
    ratio = np.asarray(action(made, before, after, config=config) / bare)
    size = np.sqrt(np.mean(np.square(before), -1))
    np.testing.assert_allclose(ratio, np.stack([np.ones_like(size), size, size**2], -1), rtol=1e-5)


# --- the block -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carries", [True, False])
def test_the_last_kick_is_left_out_only_where_nobody_sees_it(carries):
    times = block.schedule(small_config(flow__carry_momentum=carries, flow__step_size=0.4).model)
    assert times.final_kick == (0.2 if carries else 0.0)


@pytest.mark.parametrize("carries", [True, False])
def test_momentum_is_carried_or_not(carries, float64):
    config = small_config(flow__carry_momentum=carries).model
    made, (s, p) = to64(prepared(config)), states(config, seed=2)
    (with_p, _), (without, _) = (apply(made, s, x, config=config) for x in (p, 0 * p))
    assert (np.asarray(with_p[0]) != np.asarray(without[0])).all() == carries
    if not carries:
        assert_trees_close(with_p, without, 0.0)


def test_observed_action_is_summed_over_the_flow(float64):
    """And a mean over sequences and positions."""
    config = small_config(**PARTS["constitutive"], flow__steps=3, flow__step_size=0.5).model
    made, (s, p) = to64(prepared(config)), states(config)
    _, observed = apply(made, s, p, config=config)

    (p, _), s, expected = kick(made, s, config=config), np.asarray(s), 0.0
    p, inverse_mass = np.asarray(p), np.asarray(made.hamiltonian.inverse_mass)
    for _ in range(3):
        p = p + 0.25 * oracles.dense_force(made.hamiltonian.potential, s)
        before, s = s, s + 0.5 * inverse_mass * p
        p = p + 0.25 * oracles.dense_force(made.hamiltonian.potential, s)
        expected += np.mean(action(made, before, s, config=config), (0, 1))
    np.testing.assert_allclose(observed.action, expected, rtol=1e-10)


@pytest.mark.parametrize("frame", ["rotor", "derived"])
def test_keys_moment_is_observed_where_a_frame_follows_it(frame, float64):
    """Of the first `n` whitened coordinates, those along the frame's axes: `W A_k ŝ` where the context is the state alone."""
    config = small_config(geometry__frame=frame).model
    made, s = to64(prepared(config)), states(config)[0]
    made = made._replace(taps=jnp.zeros_like(made.taps).at[0].set(1.0))
    _, moment = kick(made, s, config=config)
    if frame == "rotor":
        assert moment is None
        return
    keys = np.einsum("bld,hmd->blhm", oracles.rms_hat(np.asarray(s)), made.key)[..., : config.geometry.chart_dim]
    expected = np.mean(keys[..., :, None] * keys[..., None, :], (0, 1))
    np.testing.assert_allclose(moment, expected, rtol=1e-10)


# --- moving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"flow__steps": 2}, {"flow__carry_momentum": True}, {"dynamics": "dissipative"}])
def test_positions_move_by_themselves(changes, float64):
    """A single position, of any leading shape, goes where it goes among the others; the action is its own."""
    config = model_config(**(SMALL | changes))
    made, (s, p), kicked = to64(prepared(config)), states(config), states(config, seed=1)[0]
    moved, momentum, _ = block.move(made, s, p, kicked, config)
    alone, own, observed = block.move(made, s[1, 2], p[1, 2], kicked[1, 2], config)
    np.testing.assert_allclose(alone, moved[1, 2], rtol=1e-12)
    np.testing.assert_allclose(own, momentum[1, 2], rtol=1e-12)
    assert (np.asarray(alone) != s[1, 2]).all()
    assert observed.action.shape == (config.heads,)


def test_relaxing_observes_the_straight_way_and_the_residual(float64):
    config = small_config({"rule": "equilibrium"}, **PARTS["constitutive"], relaxation__steps=4).model
    made, (s, p) = to64(prepared(config)), states(config)
    (moved, momentum), observed = apply(made, s, p, config=config)
    np.testing.assert_allclose(observed.action, np.mean(action(made, s, moved, config=config), (0, 1)), rtol=1e-10)
    np.testing.assert_array_equal(momentum, p)
    before = dense.relax(to_numpy(made.hamiltonian), *map(np.asarray, (s, kick(made, s, config=config)[0])), config)
    np.testing.assert_allclose(moved, before, rtol=1e-10)
    assert 1e-6 < observed.residual < 1


# --- tiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "length", "expected"), [("auto", 100, 64), ("auto", 4001, 501), (7, 4001, 7), (None, 4001, None)]
)
def test_a_cpu_takes_small_tiles_and_at_most_eight(given, length, expected):
    """Unless the configuration says otherwise."""
    assert retrieval.tile(model_config(retrieval__tile=given), length) == expected
