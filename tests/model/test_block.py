import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lior_jax.config import ModelConfig
from lior_jax.model import block
from lior_jax.physics.geometry import max_rotor_layers
from tests import oracles
from tests.oracles import (
    SMALL,
    assert_trees_close,
    check_adjoint,
    normal,
    random_like,
    random_params,
    small_config,
    trained_looking,
)


@st.composite
def model_configs(draw):
    heads, n = draw(st.integers(1, 3)), draw(st.integers(2, 6))
    changes = {
        "heads": heads,
        "width": heads * draw(st.integers(2, 4)),
        "chart_dim": n,
        "metric_rank": draw(st.integers(0, 3)),
        "rotor_layers": draw(st.integers(0, min(max_rotor_layers(n), 3))),
        "taps": draw(st.integers(1, 8)),
        "potential_units": draw(st.integers(1, 5)),
        "blocks": draw(st.integers(1, 3)),
    }
    return ModelConfig(**(SMALL | changes))


EDGE = ModelConfig(**(SMALL | {"metric_rank": 0, "rotor_layers": 0, "taps": 8, "heads": 1}))


@settings(max_examples=4)
@given(config=model_configs(), seed=st.integers(0, 999))
@example(config=EDGE, seed=0)
def test_prepare_adjoint(config, seed):
    """Raw parameters of all blocks at once."""
    params = random_params(config, seed)
    check_adjoint(block.prepare, lambda blocks, cotangent: (block.prepare_adjoint(blocks, cotangent),), (params.blocks,))


@settings(max_examples=4)
@given(config=model_configs(), length=st.integers(1, 7), seed=st.integers(0, 999))
@example(config=EDGE, length=5, seed=0)
def test_kick_adjoint(config, length, seed):
    """State and operators; taps may reach before the first position."""
    # Couplings may be negative here; the adjoint does not care.
    operators = random_like(jax.eval_shape(lambda: block.prepare(random_params(config).blocks)), seed)
    operators = jax.tree.map(lambda x: x[0], operators)
    s = normal(np.random.default_rng(seed), 2, length, config.width)

    def adjoint(operators, s, cotangent):
        _, c_s, c_operators = block.kick_adjoint(operators, s, cotangent, config)
        return c_operators, c_s

    check_adjoint(lambda operators, s: block.kick(operators, s, config), adjoint, (operators, s))


def block_operators(config, seed=0, index=0):
    return jax.tree.map(lambda x: x[index], jax.jit(block.prepare)(trained_looking(config, seed).blocks))


def test_kick_adjoint_returns_the_kick():
    config = small_config().model
    operators, s = block_operators(config), normal(np.random.default_rng(0), 2, 5, config.width)
    kicked, _, gradient = jax.jit(block.kick_adjoint, static_argnums=3)(operators, s, jnp.ones_like(s), config)
    assert_trees_close(kicked, jax.jit(block.kick, static_argnums=2)(operators, s, config), 1e-5)
    assert not any(x.any() for x in jax.tree.leaves(gradient.hamiltonian))


def test_operators_are_positive():
    """Even from raw parameters that are far below zero."""
    params = trained_looking(small_config().model, spread=3.0)
    operators = jax.jit(block.prepare)(params.blocks)
    hamiltonian = operators.hamiltonian
    for leaf in (*operators.couplings, hamiltonian.curvature, hamiltonian.inverse_mass):
        assert (np.asarray(leaf) > 0).all()


def test_prepared_charts_carry_the_metric(float64):
    """`‖W A_q x‖² = g(A_q x, A_q x)`, with the dense metric of each head and block."""
    config = small_config().model
    blocks = oracles.to64(trained_looking(config).blocks)
    operators = jax.jit(block.prepare)(blocks)
    x = np.random.default_rng(1).standard_normal(config.width)
    for folded, chart in ((operators.query, blocks.query), (operators.key, blocks.key)):
        for index in range(config.blocks):
            for h in range(config.heads):
                g = oracles.dense_metric(jax.tree.map(lambda leaf, at=(index, h): leaf[at], blocks.metric))
                point = np.asarray(chart[index, h]) @ x
                np.testing.assert_allclose(np.square(folded[index, h] @ x).sum(), point @ g @ point, rtol=1e-10)


@pytest.mark.parametrize("carry", [True, False])
def test_the_last_kick_is_left_out_only_where_nobody_sees_it(carry):
    times = block.schedule(small_config(carry_momentum=carry, step_size=0.4).model)
    assert times.final_kick == (0.2 if carry else 0.0)


@pytest.mark.parametrize("carry", [True, False])
def test_momentum_is_carried_or_not(carry, float64):
    config = small_config(carry_momentum=carry).model
    operators = oracles.to64(block_operators(config))
    rng = np.random.default_rng(2)
    s, p = normal(rng, 2, 5, config.width), normal(rng, 2, 5, config.width)
    apply = jax.jit(block.apply, static_argnums=3)
    with_p, without = apply(operators, s, p, config), apply(operators, s, 0 * p, config)
    assert (np.asarray(with_p[0]) != np.asarray(without[0])).all() == carry
    if not carry:
        assert_trees_close(with_p, without, 0.0)
