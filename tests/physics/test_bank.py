"""Streaming retrieval against the plain softmax over all keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from lior_jax.physics.bank import arrange, nearest, put, retrieve_from_bank, retrieve_labels, room
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


@pytest.mark.parametrize(
    ("queries", "keys", "tile"), [(5, 23, 1), (5, 96, 32), (5, 97, 32), (5, 70, 100), (64, 40, 32), (65, 40, 32)]
)
def test_tiles_of_any_size_give_the_whole_softmax(queries, keys, tile, float64):
    """A last tile that is full or not, and more queries than are looked at together."""
    q, k, v = inputs(queries, keys)
    retrieved, log_total = retrieve_from_bank(q, k, v, jnp.asarray(2.5), tile)
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


# --- labels and nearest keys -----------------------------------------------------------------------------------------

labels_of = jax.jit(retrieve_labels, static_argnames="labels_count")
nearest_of = jax.jit(nearest, static_argnames="count")


def costs(queries, keys):
    queries, keys = (np.asarray(x, np.float64) for x in (queries, keys))
    return np.sqrt(np.sum((queries[:, None] - keys[None]) ** 2, -1) + COST_EPSILON)


@pytest.mark.parametrize(("tile", "present"), [(100, None), (32, None), (32, 71), (32, 64), (32, 33), (32, 1)])
def test_labels_share_the_weight_of_the_keys_that_are_present(tile, present, float64):
    q, k, _ = inputs(keys=71, seed=6)
    labels = jnp.asarray(np.random.default_rng(7).integers(0, 4, len(k)))
    log_p, log_total = labels_of(q, arrange(k, tile), labels, 1.7, labels_count=6, present=present)
    one_hot = np.eye(6)[np.asarray(labels)][:present]
    expected = dense(q, k[:present], one_hot, 1.7)
    np.testing.assert_allclose(np.exp(log_p), expected[0], rtol=1e-11)
    np.testing.assert_allclose(log_total, expected[1], rtol=1e-11)
    assert np.all(np.asarray(log_p)[:, 4:] == -np.inf)


@pytest.mark.parametrize(
    ("keys", "tile", "count"), [(23, 100, 5), (23, 4, 23), (1, 8, 1), (300, 64, 40), (300, 100, 7), (97, 96, 9)]
)
def test_nearest_keys_are_those_of_smallest_cost(keys, tile, count, float64):
    q, k, _ = inputs(keys=keys, seed=8)
    place, cost = nearest_of(q, arrange(k, tile), count=count, present=keys)
    expected = np.argsort(costs(q, k), axis=-1)[:, :count]
    np.testing.assert_array_equal(place, expected)
    np.testing.assert_allclose(cost, np.take_along_axis(costs(q, k), expected, -1), rtol=1e-11)


@pytest.mark.parametrize("present", [1, 3, 40, 64, 70])
def test_nearest_keys_are_present(present):
    """The others lie nearer."""
    q, k, _ = inputs(keys=90, seed=9)
    k = jnp.where(jnp.arange(90)[:, None] < present, k, q[:1])
    place, cost = nearest_of(q, arrange(k, 32), count=5, present=present)
    expected = np.argsort(costs(q, k[:present]), axis=-1)[:, :5]
    np.testing.assert_array_equal(np.asarray(place)[:, :present], expected)
    assert np.all(np.asarray(place)[:, present:] == -1)
    assert np.all(np.asarray(cost)[:, present:] == np.inf)


def test_nearest_keys_far_from_the_origin():
    q, k, _ = inputs(seed=10)
    q, k = ((1000 + 0.01 * x).astype(jnp.float32) for x in (q, k))
    place, cost = nearest_of(q, arrange(k), count=6, present=len(k))
    expected = np.sort(costs(q, k), axis=-1)[:, :6]
    np.testing.assert_allclose(cost, expected, rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(costs(q, k), np.asarray(place), -1), expected, rtol=1e-5)


def test_keys_are_put_where_they_belong_and_given_back(float64):
    _, k, _ = inputs(keys=70, seed=11)
    places = np.random.default_rng(12).permutation(80)[:70]
    keys = put(room(80, 4, 32, jnp.float64)._replace(origin=k[3:4]), jnp.asarray(places), k)
    assert keys.tiles.shape == (3, 4, 32)
    np.testing.assert_allclose(keys.rows[places], k, rtol=1e-12)
    np.testing.assert_allclose(keys.squares.ravel()[places], np.sum((np.asarray(k) - np.asarray(k)[3:4]) ** 2, -1), rtol=1e-12)
    untouched = np.setdiff1d(np.arange(96), places)
    np.testing.assert_array_equal(keys.rows[untouched], np.tile(k[3], (len(untouched), 1)))
    again = put(keys, jnp.array([5, 96, 10**6]), k[:3])
    np.testing.assert_allclose(again.rows[5], k[0], rtol=1e-12)
    others = np.setdiff1d(np.arange(96), [5])
    np.testing.assert_array_equal(again.rows[others], keys.rows[others])
