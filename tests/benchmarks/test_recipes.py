"""Recipes side by side: each trains as a run of its own would."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes

from lior_jax import data
from lior_jax.learning.optimizer import make_optimizer, make_schedule
from lior_jax.model import decay_mask
from lior_jax.settings import OptimizerConfig
from lior_jax.training.step import initial_state, placed
from tests.oracles import named_leaves, random_params, small_config

TINY = {"width": 4, "flow__units": 2, "blocks": 1}


@pytest.mark.parametrize("schedule", ["cosine", "linear", "warmup_stable_decay"])
def test_the_stretched_schedule_is_that_of_the_length(schedule):
    """`warmup_stable_decay` begins to fall at a share of all steps there, and of those after the warm-up here."""
    optimizer = OptimizerConfig(schedule=schedule, warmup_steps=10, final_fraction=0.1)
    config = small_config(**TINY).model_copy(update={"optimizer": optimizer})
    expected = make_schedule(optimizer, 200)
    tolerance = 0.05 if schedule == "warmup_stable_decay" else 1e-4
    for step in (0, 5, 10, 60, 170, 190, 199):
        share = recipes._share(jnp.int32(step), jnp.float32(200), config)
        np.testing.assert_allclose(share, expected(step) / optimizer.learning_rate, atol=tolerance)


def test_a_recipe_moves_the_weights_as_the_optimiser_of_its_settings():
    optimizer = OptimizerConfig(name="muon", learning_rate=2e-2, adam_learning_rate=1e-2, weight_decay=0.3, warmup_steps=0)
    config = small_config(**TINY).model_copy(update={"optimizer": optimizer})
    params, gradient = random_params(config.model), random_params(config.model, seed=1)
    whole = make_optimizer(optimizer, 100, config.learning)
    updates, _ = whole.update(gradient, whole.init(params), params)
    apart = recipes._directions(config)
    directions, _ = apart.update(gradient, apart.init(params), params)
    expected, mask, before = named_leaves(updates), named_leaves(decay_mask(params)), named_leaves(params)
    for name, direction in named_leaves(directions).items():
        moved = -optimizer.learning_rate * (direction + mask[name] * optimizer.weight_decay * before[name])
        np.testing.assert_allclose(moved, expected[name], rtol=1e-5, atol=1e-7, err_msg=name)
    assert jax.tree.structure(directions) == jax.tree.structure(updates)


def test_a_seed_begins_and_reads_as_a_run_of_its_own():
    config = small_config(**TINY)
    tokens = np.arange(200)
    given = [recipes.Recipe(1e-2, 0.3, seed) for seed in (1, 0, 1)]
    read, targets = recipes._batches(tokens, given, 40, config)
    for place, recipe in enumerate(given):
        expected = [
            data.batch_at(tokens, recipe.seed, step, config.training.batch_size, config.model.context)
            for step in range(40, 40 + recipes.CHUNK)
        ]
        np.testing.assert_array_equal(read[:, place], [batch[0] for batch in expected])
        np.testing.assert_array_equal(targets[:, place], [batch[1] for batch in expected])
    state = recipes._start(jnp.array([1, 0, 1]), config)
    for place, recipe in enumerate(given):
        own = named_leaves(jax.tree.map(lambda x, place=place: x[place], state.params))
        for name, leaf in named_leaves(placed(initial_state, jax.random.key(recipe.seed), config).params).items():
            np.testing.assert_array_equal(own[name], leaf, err_msg=name)
