"""The geometric memory against float64 softmax, a deque, and the metric spelled out."""

import os
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from lior_jax import model
from lior_jax.errors import UserError
from lior_jax.inference import memory_bank
from lior_jax.inference.memory_bank import Mixture
from lior_jax.physics.geometry import dense_metric
from lior_jax.physics.retrieval import COST_EPSILON
from tests.oracles import TINY, changed, initial, rms_hat

DIMENSION = 10
VOCABULARY = 7

write, read = jax.jit(memory_bank.write), jax.jit(memory_bank.read, static_argnums=3)
recall = jax.jit(memory_bank.recall, static_argnums=3)


def filled(capacity, count, seed=0):
    """A memory with the last of `count` random entries, and all of them."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, DIMENSION)).astype(np.float32)
    tokens = rng.integers(0, VOCABULARY - 1, count).astype(np.int32)
    return write(memory_bank.empty(capacity, TINY), points, tokens), points, tokens


def queries(count=3):
    return np.random.default_rng(99).normal(size=(count, DIMENSION)).astype(np.float32)


def log_weights(points, beta):
    """Of every query with every entry, in float64."""
    displacement = queries().astype(np.float64)[:, None] - points.astype(np.float64)[None]
    return log_softmax(-beta * np.sqrt(np.sum(displacement**2, -1) + COST_EPSILON), -1)


@pytest.mark.parametrize(("capacity", "count"), [(40, 23), (23, 23), (20, 31)])
def test_reading_is_the_softmax_over_the_entries_that_are_there(capacity, count):
    bank, points, tokens = filled(capacity, count)
    kept = slice(max(0, count - capacity), None)
    expected = np.exp(log_weights(points[kept], 1.9)) @ np.eye(VOCABULARY)[tokens[kept]]
    log_p = read(bank, queries(), 1.9, VOCABULARY)
    np.testing.assert_allclose(np.exp(log_p), expected, atol=1e-6)
    assert np.all(np.asarray(log_p)[:, VOCABULARY - 1] == -np.inf)


def test_an_empty_memory_knows_nothing():
    bank = memory_bank.empty(5, TINY)
    np.testing.assert_allclose(np.exp(read(bank, queries(), 1.0, VOCABULARY)), 1 / VOCABULARY, rtol=1e-6)
    recalled = recall(bank, queries(), 1.0, 2)
    assert np.all(np.asarray(recalled.place) == -1)
    assert np.all(np.asarray(recalled.weight) == 0)


@given(st.integers(1, 9), st.lists(st.lists(st.booleans(), min_size=6, max_size=6), max_size=5))
def test_the_ring_keeps_the_last_entries(capacity, writes):
    """Like a deque of that length; entries that are not to be kept leave no trace."""
    bank, expected, number = memory_bank.empty(capacity, TINY), deque(maxlen=capacity), 0
    for keep in writes:
        tokens = np.arange(number, number + 6, dtype=np.int32)
        bank = write(bank, np.tile(tokens[:, None], DIMENSION).astype(np.float32), tokens, np.array(keep))
        expected.extend(tokens[keep].tolist())
        number += 6
    assert int(bank.written) == sum(map(sum, writes))
    assert int(bank.present) == len(expected)
    oldest = int(bank.written - bank.present)
    places = [(oldest + index) % capacity for index in range(len(expected))]
    assert np.asarray(bank.tokens)[places].tolist() == list(expected)
    np.testing.assert_array_equal(np.asarray(bank.coordinates)[places], np.tile(np.array(expected)[:, None], DIMENSION))


@pytest.mark.parametrize("capacity", [8, 40])
def test_what_is_recalled_is_nearest_and_weighs_what_reading_gives_it(capacity):
    bank, points, tokens = filled(capacity, 23)
    kept = slice(max(0, 23 - capacity), None)
    weight = np.exp(log_weights(points[kept], 1.3))
    count = len(tokens[kept])
    recalled = recall(bank, queries(), 1.3, count + 2)
    order = np.argsort(-weight, -1)
    np.testing.assert_allclose(recalled.weight[:, :count], np.take_along_axis(weight, order, -1), rtol=2e-5)
    np.testing.assert_array_equal(recalled.token[:, :count], tokens[kept][order])
    np.testing.assert_array_equal(recalled.token[:, :count], np.asarray(bank.tokens)[recalled.place[:, :count]])
    distance = np.linalg.norm(queries()[:, None] - np.asarray(bank.coordinates)[recalled.place[:, :count]], axis=-1)
    np.testing.assert_allclose(recalled.cost[:, :count], distance, rtol=1e-4)
    for field, fill in zip(recalled, (-1, np.inf, 0, -1), strict=True):
        assert np.all(np.asarray(field)[:, count:] == fill)


def test_the_mixture_is_a_mean_of_distributions():
    bank, *_ = filled(40, 23)
    log_model = jax.nn.log_softmax(jnp.asarray(np.random.default_rng(5).normal(size=(3, VOCABULARY))))
    log_memory = read(bank, queries(), 1.0, VOCABULARY)
    mixed = np.exp(memory_bank.mix(bank, log_model, log_memory, 0.3))
    np.testing.assert_allclose(mixed, 0.7 * np.exp(log_model) + 0.3 * np.exp(log_memory), rtol=1e-5)
    np.testing.assert_allclose(mixed.sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(memory_bank.mix(bank, log_model, log_memory, 0.0), log_model)
    np.testing.assert_array_equal(memory_bank.mix(memory_bank.empty(9, TINY), log_model, log_memory, 0.3), log_model)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"geometry__frame": "rotor"}, marks=pytest.mark.slow),
        {"geometry__frame": "derived", "geometry__rank": 0},
        {"geometry__base_metric": tuple(map(tuple, np.diag([1.0, 2, 3, 4]).tolist()))},
    ],
)
def test_distance_between_coordinates_is_the_learned_metric(changes):
    """That of the last block, displacement by displacement, heads added up."""
    config = changed(TINY, **changes)
    params = initial(config, 3)
    angles = 0.5 + 0.3 * jnp.arange(params.blocks.metric.angles.size, dtype=jnp.float32).reshape(
        params.blocks.metric.angles.shape
    )
    params = params._replace(blocks=params.blocks._replace(metric=params.blocks.metric._replace(angles=angles)))
    tokens = np.array([[3, 1, 4, 1, 5, 2]])
    points = np.asarray(jax.jit(memory_bank.coordinates, static_argnums=2)(params, tokens, config))[0]

    first, last = (jax.tree.map(lambda x, part=part: x[part], params) for part in (slice(1), 1))
    entering = model.network.run(params._replace(blocks=first.blocks, carried=first.carried), tokens, config)[0][0]
    direction = rms_hat(np.asarray(entering, np.float64))
    taps = np.asarray(last.blocks.taps, np.float64)
    context = sum(np.pad(direction, ((lag, 0), (0, 0)))[:6] * taps[lag] for lag in range(2))
    base = np.linalg.cholesky(np.diag([1.0, 2, 3, 4])).T if "geometry__base_metric" in changes else np.eye(4)
    squared = 0
    for head in range(2):
        metric = jax.tree.map(lambda x, head=head: x[head], last.blocks.metric)
        frame = None if config.geometry.frame == "rotor" else last.carried.frame.axes[head]
        g = base.T @ np.asarray(dense_metric(metric, frame), np.float64) @ base
        chart = context @ np.asarray(last.blocks.query[head], np.float64).T
        moved = chart[:, None] - chart[None]
        squared = squared + np.einsum("ijm,mn,ijn->ij", moved, g, moved)
    np.testing.assert_allclose(np.sum((points[:, None] - points[None]) ** 2, -1), squared, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("carry_momentum", [False, True])
def test_observing_gives_the_models_logits(carry_momentum):
    config = changed(TINY, flow__carry_momentum=carry_momentum)
    params = initial(config, 4)
    tokens = jax.random.randint(jax.random.key(5), (2, 6), 0, 7)
    logits, points = jax.jit(memory_bank.observe, static_argnums=2)(params, tokens, config)
    np.testing.assert_allclose(logits, model.logits(params, tokens, config), rtol=1e-5, atol=1e-7)
    assert points.shape == (2, 6, DIMENSION)


@pytest.mark.parametrize("capacity", [0, -1, memory_bank.MAX_CAPACITY + 1])
def test_a_capacity_out_of_range_is_told(capacity):
    with pytest.raises(UserError, match=f"capacity is {capacity}, but must be between 1 and"):
        memory_bank.empty(capacity, TINY)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def params():
    return initial(TINY)


@pytest.mark.parametrize("count", [0, 5, 19])
def test_a_saved_memory_comes_back_and_goes_on(params, tmp_path, count):
    bank, *_ = filled(8, count)
    path = tmp_path / "memory.safetensors"
    memory_bank.save(path, bank, params, Mixture(0.25, 1.5))
    loaded, mixture = memory_bank.load(path, params, TINY)
    assert mixture == Mixture(0.25, 1.5)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    more = np.ones((3, DIMENSION), np.float32), np.arange(3, dtype=np.int32)
    for one, other in ((loaded, bank), (write(loaded, *more), write(bank, *more))):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_memory_of_another_model_is_refused(params, tmp_path):
    path = tmp_path / "memory.safetensors"
    memory_bank.save(path, filled(8, 5)[0], params, Mixture(0.25, 1.5))
    other = params._replace(readout=params.readout.at[0, 0].add(1e-6))
    with pytest.raises(UserError, match=r"is the memory of another model, or of this one before .*; move or delete that file"):
        memory_bank.load(path, other, TINY)


@pytest.mark.parametrize("damage", ["shorten", "alter", "empty", "delete"])
def test_a_damaged_memory_is_told_in_one_sentence(params, tmp_path, damage):
    path = tmp_path / "memory.safetensors"
    memory_bank.save(path, filled(8, 5)[0], params, Mixture(0.25, 1.5))
    whole = path.read_bytes()
    if damage == "delete":
        path.unlink()
    else:
        altered = whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:]
        path.write_bytes({"shorten": whole[:-9], "alter": altered, "empty": b""}[damage])
    message = "There is no file" if damage == "delete" else "is damaged"
    with pytest.raises(UserError, match=message) as raised:
        memory_bank.load(path, params, TINY)
    assert "\n" not in str(raised.value)


def test_a_memory_that_cannot_be_written_leaves_the_old_one(params, tmp_path, monkeypatch):
    path = tmp_path / "memory.safetensors"
    memory_bank.save(path, filled(8, 5)[0], params, Mixture(0.25, 1.5))
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"cannot be written .*No space left"):
        memory_bank.save(path, filled(8, 6)[0], params, Mixture(0.5, 1.0))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
