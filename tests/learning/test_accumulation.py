"""The estimate of a batch is that of its micro-batches together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax import config as configuration
from lior_jax import learning
from lior_jax.learning.bias import nudge_bias
from tests import oracles
from tests.oracles import named_leaves

SMALL = """
model: {vocab_size: 7, context: 6, width: 8, blocks: 2, heads: 2, convolution: {taps: 2}, flow: {units: 5, step_size: 0.6},
        geometry: {chart_dim: 4, rank: 1, frame: derived, rotor_layers: 1}, retrieval: {adaptive_order: true}}
learning: {dropout: 0.2, action_weight: 0.1, chunk: 1}
training: {batch_size: 6}
"""
estimate = jax.jit(learning.estimate, static_argnums=(2, 3))
accumulated = jax.jit(learning.accumulated, static_argnums=(2, 3, 5))


def in_float64(config):
    """Parameters and a batch, in which rounding is not a ten-thousandth of a contrast."""
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), oracles.random_params(config.model, scale=0.4))
    return params, oracles.random_batch(config, 6, 6)


@pytest.mark.parametrize("rule", ["echo", pytest.param("equilibrium", marks=pytest.mark.slow)])
def test_micro_batches_add_up_to_the_batch(rule, float64):
    """Masks, the moments that derived frames follow and the actions included, although a frame is no mean of frames."""
    config = configuration.parse(SMALL, rule, [f"learning.rule={rule}"])
    params, batch = in_float64(config)
    key = jax.random.key(3)
    whole, told = estimate(params, batch, config.model, config.learning, key)
    summed, told_of_parts = accumulated(params, batch, config.model, config.learning, key, 3)
    size = told.gradient_norm
    for (name, expected), found in zip(named_leaves(whole).items(), jax.tree.leaves(summed), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7 * size, err_msg=name)
    for name in ("loss", "gradient_norm", "action", "nudge"):
        np.testing.assert_allclose(getattr(told_of_parts, name), getattr(told, name), rtol=1e-6, err_msg=name)
    for expected, found in zip(jax.tree.leaves(told.carried), jax.tree.leaves(told_of_parts.carried), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert told_of_parts.reversibility >= told.reversibility * 0.99
    moved = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), told.carried, params.carried)
    assert min(jax.tree.leaves(moved)[1:]) > 0  # or nothing of it would be compared


@pytest.mark.slow
def test_the_worst_residual_is_told(float64):
    config = configuration.parse(SMALL, "x", ["learning.dropout=0", "learning.rule=equilibrium"])
    params, (tokens, targets) = in_float64(config)
    parts = [(tokens[at : at + 2], targets[at : at + 2]) for at in (0, 2, 4)]
    alone = [estimate(params, part, config.model, config.learning)[1] for part in parts]
    together = accumulated(params, (tokens, targets), config.model, config.learning, None, 3)[1]
    np.testing.assert_allclose(together.residual, np.max([info.residual for info in alone], 0), rtol=1e-3)
    np.testing.assert_allclose(together.reversibility, max(info.reversibility for info in alone), rtol=1e-3)


def test_a_rule_of_ones_own_draws_anew_for_each_part():
    """Its keys are its own, and what it carries on is the last part's."""
    from lior_jax.registry import RULES, Rule

    def estimate(params, batch, model, learning, key):
        zero, none = jnp.zeros(()), jnp.zeros(model.blocks)
        gradient = jax.tree.map(lambda x: jnp.full_like(x, jax.random.uniform(key)), params)
        return gradient, info(batch[0][0, 0].astype(jnp.float32), zero, none, none, zero, none, params.carried)

    info = learning.Info
    if "drawing" not in RULES:
        RULES.register("drawing", Rule("drawing", "drawing", "symplectic", 1.0, estimate))
    config = configuration.parse(SMALL, "x", ["learning.rule=drawing", "learning.dropout=0"])
    params, batch = oracles.random_params(config.model), oracles.random_batch(config, 6, 6)
    key = jax.random.key(5)
    gradient, told = accumulated(params, batch, config.model, config.learning, key, 3)
    expected = np.mean([jax.random.uniform(jax.random.fold_in(key, place)) for place in range(3)])
    np.testing.assert_allclose(gradient.embedding, expected, rtol=1e-6)
    np.testing.assert_allclose(told.loss, np.mean(np.asarray(batch[0])[::2, 0]), rtol=1e-6)


@pytest.mark.slow
def test_the_bias_of_the_nudge_is_that_of_the_whole_batch():
    config = configuration.parse(SMALL, "x", ["learning.nudge_size=0.2"])
    params, batch = oracles.random_params(config.model, scale=0.4), oracles.random_batch(config, 6, 6)
    whole, parts = (nudge_bias(params, batch, config.model, config.learning, jax.random.key(3), k) for k in (1, 2))
    np.testing.assert_allclose(parts, whole, rtol=1e-4)
    assert whole > 1e-3


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.accumulate=4"], r"training\.accumulate: 4 does not divide training\.batch_size, 6"),
        (["training.accumulate=3", "learning.chunk=3"], r"chunk: 3 does not divide a part of a batch, 6 / 3 = 2"),
        (["training.accumulate=3", "parallel.data=3"], r"data: 3 does not divide a part of a batch, 6 / 3 = 2"),
    ],
)
def test_parts_that_do_not_divide_are_refused(overrides, said):
    with pytest.raises(configuration.UserError, match=said):
        configuration.parse(SMALL, "x", overrides)
