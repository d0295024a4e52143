import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lior_jax import learning
from lior_jax.learning.optimizer import make_schedule
from lior_jax.model import decay_mask
from lior_jax.settings import Config, OptimizerConfig, TrainingConfig
from tests import oracles
from tests.oracles import EVERYTHING, named_leaves, random_params, small_config


def config_with(steps=100, model=None, **changes) -> Config:
    values = {"learning_rate": 2e-2, "warmup_steps": 10, "final_fraction": 0.1} | changes
    return small_config(width=4, flow__units=2, blocks=1, **(model or {})).model_copy(
        update={"optimizer": OptimizerConfig(**values), "training": TrainingConfig(steps=steps)}
    )


def test_schedule_closed_form():
    config = config_with()
    rate = make_schedule(config.optimizer, config.training.steps)
    for step in range(11):
        np.testing.assert_allclose(rate(step), 2e-2 * step / 10, rtol=1e-6)
    for step in (10, 25, 55, 90, 100):
        cosine = 0.5 * (1 + np.cos(np.pi * (step - 10) / 90))
        np.testing.assert_allclose(rate(step), 2e-2 * (0.1 + 0.9 * cosine), rtol=1e-5)
    np.testing.assert_allclose(rate(100), 2e-3, rtol=1e-6)
    np.testing.assert_allclose(rate(1000), 2e-3, rtol=1e-6)


def test_schedule_without_warm_up_starts_at_the_peak():
    np.testing.assert_allclose(
        make_schedule(config_with(warmup_steps=0).optimizer, config_with(warmup_steps=0).training.steps)(0), 2e-2, rtol=1e-6
    )


@pytest.mark.parametrize("model", [{}, *EVERYTHING.values()], ids=["plain", *EVERYTHING])
def test_decay_touches_only_matrices(model):
    """Without a gradient, one step shrinks the decayed leaves by the share `lr · wd` and leaves the others alone, what is
    carried among them."""
    config = config_with(warmup_steps=0, weight_decay=0.3, model=model)
    params = random_params(config.model)
    optimizer = learning.make_optimizer(config.optimizer, config.training.steps, config.learning)
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    before, mask = named_leaves(params), named_leaves(decay_mask(params))
    for name, change in named_leaves(updates).items():
        np.testing.assert_allclose(change, -2e-2 * 0.3 * before[name] * mask[name], rtol=1e-5, err_msg=name)
    assert 0 < sum(x.item() for x in mask.values()) < len(mask)
    assert not any(mask[name] for name in mask if name.startswith("carried"))


@pytest.mark.parametrize("clip_norm", [1.0, 1e6])
def test_steps_are_clipped_adamw(clip_norm):
    """Three steps against AdamW in numpy. The first gradient is far above the clipping norm: without clipping it would rule
    the moments of the next steps. `eps` is optax's default."""
    config = config_with(warmup_steps=2, weight_decay=0.1, clip_norm=clip_norm, beta1=0.8, beta2=0.95)
    params = random_params(config.model)
    mask, rate, optimizer = (
        decay_mask(params),
        make_schedule(config.optimizer, config.training.steps),
        learning.make_optimizer(config.optimizer, config.training.steps, config.learning),
    )
    update, state = jax.jit(optimizer.update), optimizer.init(params)

    expected, moment, square = named_leaves(params), {}, {}
    for step, size in enumerate((100.0, 0.1, 0.1)):
        gradient = jax.tree.map(lambda x, size=size: size * x, oracles.random_like(params, seed=step))
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)

        norm = np.sqrt(sum(np.sum(x * x) for x in named_leaves(gradient).values()))
        for (name, g), decayed in zip(named_leaves(gradient).items(), jax.tree.leaves(mask), strict=True):
            g = g * min(1.0, clip_norm / norm)
            moment[name] = 0.8 * moment.get(name, 0.0) + 0.2 * g
            square[name] = 0.95 * square.get(name, 0.0) + 0.05 * g * g
            adam = (moment[name] / (1 - 0.8 ** (step + 1))) / (np.sqrt(square[name] / (1 - 0.95 ** (step + 1))) + 1e-8)
            expected[name] = expected[name] - float(rate(step)) * (adam + 0.1 * decayed * expected[name])
    for name, value in named_leaves(params).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
