"""Reading, scoring and choosing with a memory, against one window and one target at a time."""

import jax
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from lior_jax.errors import UserError
from lior_jax.inference import memory_bank, remembering, scoring
from lior_jax.inference.memory_bank import Mixture
from lior_jax.physics.retrieval import COST_EPSILON
from tests.oracles import TINY, initial

MIXTURE = Mixture(0.4, 3.0)
STRIDE = 3


@pytest.fixture(scope="module")
def params():
    params = initial(TINY)
    return params._replace(readout=params.readout * 60)


@pytest.fixture(scope="module")
def text():
    """With repetitions, so that there is something to remember."""
    phrase = np.array([3, 1, 4, 1, 5, 2, 6, 5, 3, 5])
    rng = np.random.default_rng(0)
    return np.concatenate([part for _ in range(4) for part in (phrase, rng.integers(0, 7, 3))]).astype(np.int32)


@pytest.fixture(scope="module")
def alone(params, text):
    """Log probabilities and coordinates at each position but the last, from its own window and nothing after it."""
    observe = jax.jit(memory_bank.observe, static_argnums=2)
    log_p, points = [], []
    for target in range(1, len(text)):
        start = max(0, -(-target // STRIDE) * STRIDE - TINY.context)
        history = np.zeros((1, TINY.context), np.int32)
        history[0, : target - start] = text[start:target]
        logits, seen = observe(params, history, TINY)
        log_p.append(np.asarray(jax.nn.log_softmax(logits), np.float64)[0, target - start - 1])
        points.append(np.asarray(seen, np.float64)[0, target - start - 1])
    return np.array(log_p), np.array(points)


def expected_nats(log_p, points, text, known):
    """Nats of each target when the memory holds the first `known[target]` entries."""
    nats = []
    for place, target in enumerate(text[1:]):
        entries = slice(known[place])
        p_model = np.exp(log_p[place, target])
        if not known[place]:
            nats.append(-np.log(p_model))
            continue
        cost = np.sqrt(np.sum((points[entries] - points[place]) ** 2, -1) + COST_EPSILON)
        weight = np.exp(-MIXTURE.inverse_temperature * cost)
        p_memory = weight[text[1:][entries] == target].sum() / weight.sum()
        nats.append(-np.log((1 - MIXTURE.weight) * p_model + MIXTURE.weight * p_memory))
    return np.array(nats)


def test_a_text_is_remembered_token_by_token(params, text, alone):
    empty = memory_bank.empty(100, TINY)
    bank = remembering.remember(empty, params, text, TINY)
    count = len(text) - 1
    assert int(bank.written) == count
    np.testing.assert_array_equal(bank.tokens[:count], text[1:])
    np.testing.assert_allclose(bank.coordinates[:count], alone[1], rtol=1e-4, atol=1e-5)
    assert int(empty.written) == 0, "the memory that was given has changed"
    twice = remembering.remember(bank, params, text[:10], TINY)
    np.testing.assert_array_equal(twice.tokens[: count + 9], np.concatenate([text[1:], text[1:10]]))
    np.testing.assert_array_equal(bank.tokens[:count], text[1:])


def test_a_small_memory_keeps_the_end_of_the_text(params, text, alone):
    bank = remembering.remember(memory_bank.empty(5, TINY), params, text, TINY)
    order = np.roll(np.arange(5), -(int(bank.written) % 5))
    np.testing.assert_array_equal(np.asarray(bank.tokens)[order], text[-5:])
    np.testing.assert_allclose(np.asarray(bank.coordinates)[order], alone[1][-5:], rtol=1e-4, atol=1e-5)


def test_scoring_reads_what_earlier_windows_wrote_and_nothing_else(params, text, alone):
    windows = scoring.cover(text, TINY.context, STRIDE)
    score, bank = remembering.score(memory_bank.empty(100, TINY), params, windows, TINY, MIXTURE, commit=True)
    place = np.arange(len(text) - 1)
    earlier = place // STRIDE * STRIDE
    honest = expected_nats(*alone, text, earlier)
    np.testing.assert_allclose(score.mixed, honest.mean(), rtol=1e-5)
    np.testing.assert_allclose(score.model, -alone[0][place, text[1:]].mean(), rtol=1e-5)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6),
        bank,
        remembering.remember(memory_bank.empty(100, TINY), params, text, TINY),
    )
    # What a look at the window itself, or at the target alone, would have given is something else.
    for known in (np.minimum(earlier + STRIDE, len(place)), place, place + 1):
        assert abs(expected_nats(*alone, text, known).mean() - honest.mean()) > 1e-3


def test_a_memory_filled_while_scoring_scores_as_one_filled_before(params, text):
    windows = scoring.cover(text, TINY.context, STRIDE)
    start = memory_bank.empty(20, TINY)
    for index in (1, 4, 9):
        before, this, until = windows[:index], windows[index : index + 1], windows[: index + 1]
        score_before, bank = remembering.score(start, params, before, TINY, MIXTURE, commit=True)
        score_until, _ = remembering.score(start, params, until, TINY, MIXTURE, commit=True)
        score_this, same = remembering.score(bank, params, this, TINY, MIXTURE)
        assert same is bank
        increment = score_until.mixed * until.counted.sum() - score_before.mixed * before.counted.sum()
        np.testing.assert_allclose(increment, score_this.mixed * this.counted.sum(), rtol=1e-4)


def test_an_answer_planted_in_the_scored_window_changes_nothing(params, text):
    """A window whose targets all say the same thing twice gets no help from the first time."""
    windows = scoring.cover(np.array([2, 2, 2, 2], np.int32), TINY.context, STRIDE)
    first = windows[:1]
    score, bank = remembering.score(memory_bank.empty(50, TINY), params, first, TINY, MIXTURE, commit=True)
    assert score.mixed == score.model
    after, _ = remembering.score(bank, params, first, TINY, MIXTURE)
    np.testing.assert_allclose(after.model, score.model, rtol=1e-6)
    assert after.mixed < score.mixed - 0.1


def test_the_weight_maximises_the_likelihood():
    rng = np.random.default_rng(1)
    p_model, p_memory = rng.uniform(0.01, 1, 200), rng.uniform(0, 1, 200)
    best = minimize_scalar(
        lambda x: -np.log((1 - x) * p_model + x * p_memory).mean(), bounds=(0, 1), method="bounded", options={"xatol": 1e-9}
    )
    np.testing.assert_allclose(remembering.mixing_weight(p_model, p_memory), best.x, atol=1e-4)
    assert remembering.mixing_weight(p_model, np.zeros(200)) == 0
    assert remembering.mixing_weight(np.full(9, 1e-9), np.ones(9)) == 0.999


def test_the_mixture_is_the_best_of_the_grid(params, text):
    bank = remembering.remember(memory_bank.empty(100, TINY), params, text[:30], TINY)
    windows = scoring.cover(text[30:], TINY.context, STRIDE)
    mixture, chosen = remembering.choose(bank, params, windows, TINY)
    score, _ = remembering.score(bank, params, windows, TINY, mixture)
    np.testing.assert_allclose(chosen, score, rtol=1e-4)  # float32: costs times a large inverse temperature
    assert chosen.mixed < chosen.model
    sharpness = np.array(remembering.SHARPNESS)
    entries = np.asarray(bank.coordinates[:29])
    held_out = remembering.remember(memory_bank.empty(22, TINY), params, text[30:], TINY).coordinates[:21]
    typical = np.sqrt(np.mean(np.sum((np.asarray(held_out)[:, None] - entries[None]) ** 2, -1)))
    np.testing.assert_allclose(np.abs(sharpness / typical / mixture.inverse_temperature - 1).min(), 0, atol=1e-4)
    for weight in (mixture.weight - 0.05, mixture.weight + 0.05):
        for beta in (mixture.inverse_temperature, *sharpness[[0, 3, 7]] / typical):
            other, _ = remembering.score(bank, params, windows, TINY, Mixture(np.clip(weight, 0, 1), beta))
            assert other.mixed >= score.mixed - 1e-6


def test_too_little_to_read_or_to_mix_is_told(params, text):
    with pytest.raises(UserError, match="needs at least two tokens"):
        remembering.remember(memory_bank.empty(5, TINY), params, text[:1], TINY)
    with pytest.raises(UserError, match="The memory is empty"):
        remembering.choose(memory_bank.empty(5, TINY), params, scoring.cover(text, TINY.context), TINY)
