import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lior_jax import learning
from lior_jax.learning.optimizer import averaged, make_decay, make_schedule
from lior_jax.model import decay_mask
from lior_jax.settings import Config, OptimizerConfig, TrainingConfig
from tests import oracles
from tests.model.test_network import UNITS
from tests.oracles import EVERYTHING, named_leaves, random_params, small_config


def config_with(steps=100, model=None, **changes) -> Config:
    values = {"learning_rate": 2e-2, "warmup_steps": 10, "final_fraction": 0.1} | changes
    return small_config(**{"width": 4, "flow__units": 2, "blocks": 1} | (model or {})).model_copy(
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


@pytest.mark.parametrize("warmup", [0, 10])
def test_other_schedules_closed_form(warmup):
    """Straight lines: from the warm-up's end, or over the last quarter of all steps, to a tenth of the peak."""
    line = make_schedule(config_with(warmup_steps=warmup, schedule="linear").optimizer, 100)
    settings = config_with(warmup_steps=warmup, schedule="warmup_stable_decay", decay_fraction=0.25).optimizer
    stable = make_schedule(settings, 100)
    for step in (warmup, 30, 75, 80, 100, 500):
        share = min(1.0, (step - warmup) / (100 - warmup))
        np.testing.assert_allclose(line(step), 2e-2 * (1 - 0.9 * share), rtol=1e-5)
        share = min(1.0, max(0.0, (step - 75) / 25))
        np.testing.assert_allclose(stable(step), 2e-2 * (1 - 0.9 * share), rtol=1e-5)
    if warmup:
        np.testing.assert_allclose([line(5), stable(5)], 1e-2, rtol=1e-6)


@pytest.mark.parametrize("name", ["cosine", "linear", "warmup_stable_decay"])
@pytest.mark.parametrize("steps", [3, 10])
def test_a_run_shorter_than_its_warm_up_only_rises(name, steps):
    rate = make_schedule(config_with(schedule=name).optimizer, steps)
    np.testing.assert_allclose([rate(step) for step in range(steps)], 2e-3 * np.arange(steps), rtol=1e-5)


def test_decay_follows_its_own_schedule():
    shares = {
        "constant": lambda t: 1.0,
        "linear": lambda t: 1 - 0.8 * t,
        "cosine": lambda t: 0.2 + 0.4 * (1 + np.cos(np.pi * t)),
    }
    for name, share in shares.items():
        settings = config_with(weight_decay=0.3, weight_decay_schedule=name, weight_decay_final_fraction=0.2).optimizer
        for step in (0, 20, 50, 100):
            np.testing.assert_allclose(make_decay(settings, 100)(step), 0.3 * share(step / 100), rtol=1e-5)


def test_schedule_without_warm_up_starts_at_the_peak():
    np.testing.assert_allclose(
        make_schedule(config_with(warmup_steps=0).optimizer, config_with(warmup_steps=0).training.steps)(0), 2e-2, rtol=1e-6
    )


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("model", [{}, *EVERYTHING.values()], ids=["plain", *EVERYTHING])
def test_decay_touches_only_matrices(model, name):
    """Without a gradient, one step shrinks the decayed leaves by the share `lr · wd` and leaves the others alone, what is
    carried among them."""
    config = config_with(warmup_steps=0, weight_decay=0.3, model=model, name=name)
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


def orthogonalized(matrix):
    """Newton and Schulz's iteration in float64, with the coefficients of Jordan 2024: rows or columns nearly orthonormal."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def as_matrices(name, leaf):
    """`[N, out, in]`: the leaf's matrices, one for each block, of all heads together; None if Muon leaves the leaf to Adam."""
    match name.split(".")[-1]:
        case "query" | "key" | "value":
            return leaf.reshape(len(leaf), -1, leaf.shape[-1])
        case "output":
            return leaf.reshape(len(leaf), -1, leaf.shape[-1]).transpose(0, 2, 1)
        case "features" | "gates" | "patterns":
            return leaf
    return None


@pytest.mark.parametrize("potential", ["gated", "hopfield"])
def test_steps_are_muon_on_the_matrices_and_adam_on_the_rest(potential):
    """Two steps against numpy, with Nesterov momentum as Jordan has it, corrected for its start as optax does."""
    rates = {"learning_rate": 2e-2, "adam_learning_rate": 5e-3, "momentum": 0.9, "weight_decay": 0.2, "clip_norm": 1e6}
    config = config_with(name="muon", warmup_steps=0, model={"flow__potential": potential, "blocks": 2}, **rates)
    params = random_params(config.model)
    optimizer = learning.make_optimizer(config.optimizer, config.training.steps, config.learning)
    rate, update, state = make_schedule(config.optimizer, 100), jax.jit(optimizer.update), optimizer.init(params)
    mask, expected = named_leaves(decay_mask(params)), named_leaves(params)
    moment, first, second, seen = {}, {}, {}, set()
    for step in range(2):
        gradient = oracles.random_like(params, seed=step)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        for name, g in named_leaves(gradient).items():
            if (matrices := as_matrices(name, g)) is None:
                first[name] = 0.9 * first.get(name, 0.0) + 0.1 * g
                second[name] = 0.99 * second.get(name, 0.0) + 0.01 * g * g
                corrected = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.99 ** (step + 1))
                direction = 0.25 * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
            else:
                seen.add(name.split(".")[-1])
                moment[name] = 0.9 * moment.get(name, 0.0) + 0.1 * matrices
                ahead = 0.9 * moment[name] / (1 - 0.9 ** (step + 2)) + 0.1 * matrices / (1 - 0.9 ** (step + 1))
                directions = 0.2 * np.sqrt(max(matrices.shape[1:])) * np.stack([orthogonalized(matrix) for matrix in ahead])
                direction = (directions.transpose(0, 2, 1) if name.endswith("output") else directions).reshape(g.shape)
            expected[name] = expected[name] - float(rate(step)) * (direction + 0.2 * mask[name] * expected[name])
    assert seen == {"query", "key", "value", "output"} | {leaf.split(".")[-1] for leaf in UNITS[potential]}
    for name, value in named_leaves(params).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=2e-5, err_msg=name)


def test_a_muon_direction_is_nearly_orthonormal_with_the_size_of_adams():
    """Singular values of a direction, at Adam's scale `0.2 √max(in, out)`, lie around 1 (Jordan 2024: about 0.7 to 1.2)."""
    config = config_with(name="muon", warmup_steps=0, weight_decay=0.0, learning_rate=1.0)
    params = random_params(config.model)
    optimizer = learning.make_optimizer(config.optimizer, 100, config.learning)
    updates, _ = optimizer.update(oracles.random_like(params), optimizer.init(params), params)
    for name, change in named_leaves(updates).items():
        if (matrices := as_matrices(name, change)) is not None:
            values = np.linalg.svd(matrices[0], compute_uv=False) / (0.2 * np.sqrt(max(matrices.shape[1:])))
            assert values.min() > 0.5, name
            assert values.max() < 1.3, name


def test_the_average_of_weights_closed_form():
    """Weights `θ_t`; the average is the sum of `(1 − a_t) Π_{s>t} a_s θ_t`, with decays `min(a, (1 + t) / (10 + t))`."""
    config = config_with(model={"geometry__frame": "derived"})
    history = [random_params(config.model, seed=seed) for seed in range(4)]
    average = history[0]
    for step, params in enumerate(history[1:], start=1):
        average = jax.jit(averaged, static_argnums=3)(average, params, jnp.int32(step), 0.25)
    decays = [min(0.25, (1 + step) / (10 + step)) for step in (1, 2, 3)]
    assert decays[0] < 0.25 == decays[2]
    weights = [
        decays[0] * decays[1] * decays[2],
        (1 - decays[0]) * decays[1] * decays[2],
        (1 - decays[1]) * decays[2],
        1 - decays[2],
    ]
    leaves = [named_leaves(params) for params in history]
    for name, value in named_leaves(average).items():
        expected = (
            leaves[-1][name] if name.startswith("carried") else sum(w * x[name] for w, x in zip(weights, leaves, strict=True))
        )
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6, err_msg=name)
