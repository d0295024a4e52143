"""The nudge's own bias: the figure that shows it, beside the true error against automatic differentiation."""

import jax
import jax.numpy as jnp
import pytest

from lior_jax.learning import echo, nudge, soundness
from lior_jax.learning.bias import nudge_bias
from tests import oracles
from tests.oracles import random_batch, small_config, to64, trained_looking, whole_agreement


def measured(params, batch, config, key=None):
    """The figure, the true relative error of the estimate, and what the health figure says."""
    estimate, info = oracles.estimate(params, batch, config, key)
    masks = () if key is None else (oracles.dropout_masks(key, batch[0], config),)
    _, gradient = oracles.autodiff(params, *batch, config, *masks)
    bias = float(nudge_bias(params, batch, config.model, config.learning, key))
    return bias, whole_agreement(estimate, gradient).relative_error, float(info.reversibility)


def strength_by_the_end_alone(size, s, *pulls, start=None):
    """ε before it had a floor: relative to the pushed state, wherever that came from."""
    return size * jnp.sqrt(jnp.mean(s * s, -1, keepdims=True) / sum(jnp.mean(x * x, -1, keepdims=True) for x in pulls))


@pytest.mark.parametrize(("mode", "share"), [("centred", 1 / 3), pytest.param("one_sided", 1.0, marks=pytest.mark.slow)])
def test_the_figure_shows_a_bias_that_reversibility_does_not(mode, share):
    """At a tenth of the state; in float64, so that nothing else is wrong. By the order of the bias in ε, the error is a third
    of the figure, or all of it."""
    config = small_config({"nudge_size": 0.1, "nudge": mode})
    with jax.enable_x64(True):
        params, batch = to64(trained_looking(config.model)), random_batch(config)
        bias, error, reversibility = measured(params, batch, config)
    assert error > 3e-3
    assert bias == pytest.approx(error / share, rel=0.35)
    if mode == "centred":
        assert reversibility < 1e-12
    assert soundness.bias_advice(1.0, config.learning)


@pytest.mark.slow
def test_the_figure_is_the_distance_of_two_estimates():
    config = small_config({"nudge_size": 0.05})
    params, batch = trained_looking(config.model), random_batch(config)
    once, twice = (oracles.estimate(params, batch, small_config({"nudge_size": size}))[0] for size in (0.05, 0.1))
    bias = nudge_bias(params, batch, config.model, config.learning)
    assert float(bias) == pytest.approx(whole_agreement(twice, once).relative_error, rel=1e-3)


def test_without_a_pull_there_is_no_bias():
    config = small_config({"rule": "equilibrium", "pull": "off"})
    bias = nudge_bias(trained_looking(config.model), random_batch(config), config.model, config.learning)
    assert float(bias) == 0


def tiny_and_dropped_out(carry):
    config = small_config({"dropout": 0.5}, flow__carry_momentum=carry)
    params = trained_looking(config.model)
    return config, params._replace(embedding=0.01 * params.embedding), jax.random.key(5)


@pytest.mark.parametrize("carry", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_dropped_out_embedding_of_tiny_size_is_pushed_no_harder_than_it_bears(carry):
    """Its state grows many times over in the first block; some positions begin with nothing at all. In float64, so that it is
    the nudge that is wrong and not rounding."""
    config, params, key = tiny_and_dropped_out(carry)
    with jax.enable_x64(True):
        bias, error, reversibility = measured(to64(params), random_batch(config), config, key)
    assert error < 1e-4
    assert bias < 1e-4
    assert reversibility < 1e-4


@pytest.mark.slow
def test_the_figure_shows_what_it_would_be_without_that(monkeypatch):
    config, params, key = tiny_and_dropped_out(False)
    monkeypatch.setattr(nudge, "strength", strength_by_the_end_alone)
    run = jax.jit(lambda params, batch: echo.estimate(params, batch, config.model, config.learning, key))
    batch = random_batch(config)
    estimate, info = run(params, batch)
    _, gradient = oracles.autodiff(params, *batch, config, oracles.dropout_masks(key, batch[0], config))
    bias = float(nudge_bias.__wrapped__(params, batch, config.model, config.learning, key))
    assert whole_agreement(estimate, gradient).relative_error > 0.3
    assert bias > config.learning.nudge_bias_limit
    assert float(info.reversibility) < 1e-3


@pytest.mark.parametrize(
    ("bias", "options", "advice"),
    [
        (0.04, {}, ""),
        (0.06, {"nudge_size": 0.1}, "take a smaller nudge, learning.nudge_size=0.01"),
        (0.06, {"nudge": "one_sided"}, "nudge to both sides, learning.nudge=centred"),
        (0.06, {"nudge_bias_limit": 0.1}, ""),
        (float("nan"), {}, "take a smaller nudge, learning.nudge_size=0.0001"),
    ],
)
def test_above_its_limit_there_is_advice(bias, options, advice):
    assert soundness.bias_advice(bias, small_config(options).learning) == advice
