import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax.physics.pair import pair
from tests.oracles import assert_trees_close, random_like

SHAPES = {"array": np.zeros((2, 3, 5)), "tree": {"angles": np.zeros((2, 3, 5)), "rates": (np.zeros((2, 3, 1)),)}}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_pair_round_trip(shape, float64):
    plus, minus = random_like(shape), random_like(shape, seed=1)
    span = jnp.asarray(np.random.default_rng(4).uniform(0.05, 1.0, (2, 3, 1)))
    assert_trees_close(pair(plus, minus, span).ends(span), (plus, minus), 1e-13)


def test_a_pair_is_mean_and_slope(float64):
    both = pair(jnp.asarray([5.0]), jnp.asarray([1.0]), jnp.asarray([0.5]))
    np.testing.assert_array_equal(both.mean, [3.0])
    np.testing.assert_array_equal(both.slope, [8.0])
