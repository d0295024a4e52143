"""Streaming retrieval against the plain softmax over all keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from lior_jax.physics.bank import retrieve_from_bank
from lior_jax.physics.retrieval import COST_EPSILON
from tests.oracles import normal


def dense(queries, keys, values, beta, resilience=1.0):
    """Every displacement spelled out, in float64."""
    queries, keys, values = (np.asarray(x, np.float64) for x in (queries, keys, values))
    displacement = queries[:, None] - keys[None]
    scores = -beta * np.asarray(resilience)[..., None] * np.sqrt(np.sum(displacement**2, -1) + COST_EPSILON)
    log_total = logsumexp(scores, axis=-1)
    return np.exp(scores - log_total[:, None]) @ values, log_total


def inputs(queries=5, keys=23, m=4, v=3, seed=0):
    rng = np.random.default_rng(seed)
    return normal(rng, queries, m), normal(rng, keys, m), normal(rng, keys, v)


@pytest.mark.parametrize("block", [1, 4, 23, 100])
def test_blocks_of_any_size_give_the_whole_softmax(block, float64):
    q, k, v = inputs()
    retrieved, log_total = retrieve_from_bank(q, k, v, jnp.asarray(2.5), block)
    expected = dense(q, k, v, 2.5)
    np.testing.assert_allclose(retrieved, expected[0], rtol=1e-11)
    np.testing.assert_allclose(log_total, expected[1], rtol=1e-11)


def test_resilience_weighs_the_cost_of_its_query(float64):
    q, k, v = inputs(seed=1)
    resilience = jnp.asarray(np.random.default_rng(2).uniform(0.2, 3.0, len(q)))
    retrieved, log_total = retrieve_from_bank(q, k, v, jnp.asarray(1.3), 7, resilience)
    expected = dense(q, k, v, 1.3, resilience)
    np.testing.assert_allclose(retrieved, expected[0], rtol=1e-11)
    np.testing.assert_allclose(log_total, expected[1], rtol=1e-11)


def test_a_cold_bank_returns_the_nearest_value_without_overflow():
    q, k, v = inputs(seed=3)
    nearest = np.argmin(np.sum((np.asarray(q)[:, None] - np.asarray(k)[None]) ** 2, -1), -1)
    retrieved, _ = retrieve_from_bank(q, k, v, jnp.asarray(1e4), 5)
    np.testing.assert_allclose(retrieved, np.asarray(v)[nearest], rtol=1e-6)


def test_banks_far_from_the_origin_keep_their_distances():
    """In float32, 1000 from the origin and 0.01 apart."""
    q, k, v = inputs(seed=4)
    q, k = ((1000 + 0.01 * x).astype(jnp.float32) for x in (q, k))
    retrieved, _ = retrieve_from_bank(q, k, v, jnp.asarray(100.0), 8)
    np.testing.assert_allclose(retrieved, dense(q, k, v, 100.0)[0], atol=1e-3)


def test_two_banks_mix_to_the_whole_by_their_partition_functions(float64):
    q, k, v = inputs(seed=5)
    beta = jnp.asarray(2.0)
    whole, _ = retrieve_from_bank(q, k, v, beta)
    (first, log_first), (second, log_second) = (
        retrieve_from_bank(q, k[part], v[part], beta, 4) for part in (slice(9), slice(9, 23))
    )
    share = jax.nn.sigmoid(log_first - log_second)[:, None]
    np.testing.assert_allclose(share * first + (1 - share) * second, whole, rtol=1e-11)
