"""The probes show what the model computes: compared with the plain numpy network of `tests/dense.py`."""

import jax
import numpy as np
import pytest

from lior_jax.analysis import probe
from tests import dense
from tests.oracles import base_metric, random_batch, rms_hat, small_config, to_numpy, trained_looking

PLAIN = {"retrieval__lag_prior": False}
FULL = {
    "convolution__long": True,
    "field__evolution": "kernel",
    "retrieval__products": ("tensor", "wedge", "spinor"),
    "geometry__resilience": "curvature",
    "geometry__frame": "derived",
    "geometry__base_metric": base_metric(5),
    "flow__carry_momentum": True,
    "flow__steps": 2,
    "flow__step_size": 0.5,
}


@pytest.fixture(params=[PLAIN, FULL], ids=["plain", "full"], scope="module")
def seen(request):
    config = small_config(**request.param).model
    params = trained_looking(config)
    tokens, _ = random_batch(small_config(**request.param), batch=2, length=6)
    return config, params, tokens, jax.tree.map(np.asarray, probe.look(params, tokens, config))


def test_states_and_actions_are_the_networks(seen):
    config, params, tokens, view = seen
    expected = dense.network(params, tokens, config)
    np.testing.assert_allclose(view.state, np.stack(expected.states[:-1]), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(view.action.mean((1, 2)), expected.actions, rtol=1e-3)


def test_weights_costs_and_resilience_are_the_blocks(seen):
    config, params, tokens, view = seen
    operators = dense.prepare(params, tokens.shape[1], config)
    for index in range(config.blocks):
        block, s = dense.at(operators, index), view.state[index].astype(np.float64)
        law = dense.at(to_numpy(params).blocks.resilience, index)
        context = dense.context_of(block, rms_hat(s))
        query, key, value = (np.einsum("bld,hmd->blhm", context, chart) for chart in (block.query, block.key, block.value))
        weigh = dense.resilience(law, query, s, config)
        retrieved, weights = dense.retrieve(query, key, value, weigh, block.couplings)
        np.testing.assert_allclose(view.weights[index], weights, atol=2e-4)
        weigh = np.ones(query.shape[:3]) if weigh is None else weigh
        np.testing.assert_allclose(view.resilience[index], weigh, rtol=1e-3)
        apart = np.linalg.norm(query[:, :, None] - key[:, None], axis=-1) * weigh[:, :, None]
        np.testing.assert_allclose(view.cost[index], apart.transpose(0, 3, 1, 2), rtol=1e-2, atol=2e-2)
        if index == 0:  # nothing was carried into it
            kick = np.einsum("blhv,hvd->bld", retrieved, block.output)
            np.testing.assert_allclose(view.momentum[index], kick, rtol=1e-3, atol=1e-3)


def test_metrics_measure_chart_points_as_the_whitening_does(seen):
    config, params, _, _ = seen
    metrics, values = np.asarray(probe.metrics(params, config)), to_numpy(params)
    frame = values.carried.frame
    for head in np.ndindex(config.blocks, config.heads):
        axes = None if frame is None else frame.axes[head]
        whitening = dense.whitening(dense.at(values.blocks.metric, *head), axes, config)
        np.testing.assert_allclose(metrics[head], whitening.T @ whitening, rtol=1e-4, atol=1e-4)
