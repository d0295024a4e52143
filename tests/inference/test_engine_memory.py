"""An engine that remembers: what it draws, scores and explains is the mixture of model and memory."""

import jax
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from lior_jax.errors import UserError
from lior_jax.inference import Engine, memory_bank
from lior_jax.inference.decoder import Memory, next_logits
from lior_jax.inference.engine import MIN_REMEMBERED
from lior_jax.inference.memory_bank import Mixture
from tests.oracles import small_config

TEXT = "".join(f"{i % 10} and {i * 7 % 10} is {i * 3 % 10}, " for i in range(60))


@pytest.fixture(scope="module")
def engine(finished_run):
    return Engine.from_checkpoint(finished_run)


@pytest.fixture(scope="module")
def remembering(engine):
    return engine.remember(TEXT, capacity=4096)


def trusting(engine, weight, inverse_temperature):
    return Engine(
        engine.params, engine.config, engine.tokenizer, Memory(engine.memory.bank, Mixture(weight, inverse_temperature))
    )


def test_remembering_changes_no_parameter_and_not_the_engine(engine, remembering):
    assert engine.memory is None
    jax.tree.map(np.testing.assert_array_equal, engine.params, remembering.params)
    # Of each of the two parts the last token is followed by nothing.
    assert int(remembering.memory.bank.present) == len(TEXT) - 2


def test_the_next_token_is_drawn_from_the_mixture(remembering):
    """Against a dense Boltzmann sum over all entries."""
    engine, prompt = trusting(remembering, 0.4, 1.7), "1 and 7 is"
    prefix = engine.decoder.read(engine.decoder.empty(1), [engine.encode(prompt)])
    logits = next_logits(engine.params, engine.memory, prefix.history, engine.config)
    alone = np.exp(log_softmax(np.asarray(next_logits(engine.params, None, prefix.history, engine.config), np.float64)[0]))

    _, weight, tokens = dense_memory(engine, prompt, 1.7)
    recalled = np.bincount(tokens, weight, engine.config.vocab_size)
    np.testing.assert_allclose(np.exp(log_softmax(np.asarray(logits)[0])), 0.6 * alone + 0.4 * recalled, rtol=2e-3, atol=1e-6)


def test_a_trusted_memory_is_quoted(remembering):
    """All weight on the nearest entry: the text goes on as the one that was read."""
    text = trusting(remembering, 0.999, 40.0).generate("0 and 0 is 0, 1 and 7 is", max_tokens=9, temperature=0.0)
    assert text == " 3, 2 and"
    assert text in TEXT


@pytest.mark.slow
def test_explanations_show_the_entries_and_what_was_read_there(remembering):
    engine = trusting(remembering, 0.999, 40.0)
    explained = engine.explain("0 and 0 is 0, 1 and 7 is", max_tokens=3, temperature=0.0)
    assert len(explained.memories) == 3
    for token, entries in zip(explained.tokens[explained.first :], explained.memories, strict=True):
        assert entries[0].text in TEXT
        assert entries[0].text.endswith(token)
        assert [entry.cost for entry in entries] == sorted(entry.cost for entry in entries)
        assert 0.3 < sum(entry.weight for entry in entries) < 1.005  # of six alike, for the text repeats itself
    assert f"memory {explained.memories[0][0].text!r}" in explained.table()


def dense_memory(engine, prompt, inverse_temperature):
    """Geodesic cost of every entry from the prompt's last position, and its Boltzmann weight among all."""
    bank, present = engine.memory.bank, len(TEXT) - 2
    query = memory_bank.coordinates(engine.params, engine.encode(prompt)[None], engine.config)[0, -1]
    entries = np.asarray(bank.coordinates, np.float64)[:present]
    cost = np.sqrt(np.sum((entries - np.asarray(query, np.float64)) ** 2, -1) + 1e-4)
    return cost, softmax(-inverse_temperature * cost), np.asarray(bank.tokens)[:present]


def test_recollections_weigh_what_they_add_to_the_mixture(remembering):
    """λ times the Boltzmann weight; and a token's share is the memory's part of its probability."""
    engine, prompt, token = trusting(remembering, 0.4, 1.7), "1 and 7 is", " "
    explained = engine.explain(prompt, token)
    cost, weight, tokens = dense_memory(engine, prompt, 1.7)
    nearest = np.argsort(cost)[:3]
    np.testing.assert_allclose([entry.cost for entry in explained.memories[0]], cost[nearest], rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose([entry.weight for entry in explained.memories[0]], 0.4 * weight[nearest], rtol=5e-3)

    prefix = engine.decoder.read(engine.decoder.empty(1), [engine.encode(prompt)])
    alone = log_softmax(np.asarray(next_logits(engine.params, None, prefix.history, engine.config), np.float64)[0])
    (index,) = engine.encode(token)
    recalled = weight[tokens == index].sum()
    share = 0.4 * recalled / (0.6 * np.exp(alone[index]) + 0.4 * recalled)
    np.testing.assert_allclose(explained.memory_share, [share], rtol=5e-3)
    assert f"{explained.memory_share[0]:.3f}" in explained.table().splitlines()[1]


def test_a_memory_without_entries_has_no_share():
    bank = memory_bank.empty(4, small_config().model)
    log_p = np.log(np.array([[0.25, 0.75]]))
    np.testing.assert_array_equal(memory_bank.share(bank, log_p, log_p, 0.5), 0)


def test_scores_tell_both(engine, remembering):
    text = "3 and 1 is 9, 4 and 8 is 2, "
    mixed, alone = remembering.score(text), engine.score(text)
    assert np.isclose(mixed.nats_per_character_alone, alone.nats_per_character)
    assert mixed.nats_per_character < alone.nats_per_character
    assert alone.nats_per_character_alone == alone.nats_per_character


def test_a_saved_memory_is_the_same(engine, remembering, tmp_path):
    remembering.save_memory(tmp_path / "memory.safetensors")
    again = engine.with_memory(tmp_path / "memory.safetensors")
    assert again.memory.mixture == remembering.memory.mixture
    how = {"max_tokens": 12, "seed": 1}
    assert again.generate("1 and", **how) == remembering.generate("1 and", **how)


def test_reading_more_adds_to_what_is_remembered(remembering):
    more = remembering.remember(TEXT[: len(TEXT) // 2])
    assert int(more.memory.bank.present) == len(TEXT) - 2 + len(TEXT) // 2 - 2
    assert more.memory.bank.capacity == 4096


def test_mistakes_are_told(engine, tmp_path):
    with pytest.raises(UserError, match=f"has 3 tokens, but at least {MIN_REMEMBERED}"):
        engine.remember("1 i")
    with pytest.raises(UserError, match="There is no memory to save"):
        engine.save_memory(tmp_path / "memory.safetensors")
    with pytest.raises(UserError, match="There is no file"):
        engine.with_memory(tmp_path / "memory.safetensors")
