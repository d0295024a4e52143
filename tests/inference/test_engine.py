"""Generation and scoring from a checkpoint."""

import jax
import numpy as np
import pytest

from lior_jax import model
from lior_jax.errors import UserError
from lior_jax.inference import Engine, scoring
from lior_jax.tokenizer import ByteTokenizer


@pytest.fixture(scope="module")
def engine(finished_run):
    return Engine.from_checkpoint(finished_run)


def test_greedy_text_is_the_most_probable_continuation(engine):
    """Decoded past the context, where the window slides."""
    text = "5 is 0 and 2, 9 "
    assert len(text) == engine.config.context
    tokens = list(engine.tokenizer.encode(text))
    logits = jax.jit(model.logits, static_argnums=2)
    for _ in range(8):
        window = np.array(tokens[-engine.config.context :])
        tokens.append(int(logits(engine.params, window[None], engine.config)[0, -1].argmax()))
    assert text + engine.generate(text, max_tokens=8, temperature=0.0) == engine.tokenizer.decode(np.array(tokens))


def test_same_seed_same_text_and_streaming_changes_nothing(engine):
    text = engine.generate("1 is", max_tokens=30, seed=3)
    assert text == engine.generate("1 is", max_tokens=30, seed=3)
    assert text == "".join(engine.stream("1 is", max_tokens=30, seed=3))
    assert len(text) == 30


def test_seeds_and_samples_differ(engine):
    texts = {engine.generate("1 is", max_tokens=30, seed=seed, sample=sample) for seed in (0, 1) for sample in (0, 1)}
    assert len(texts) == 4


def test_a_prompt_longer_than_the_context_is_cut_to_its_end(engine):
    prompt = "1 is 4 and 3, 5 is 0 and 2, "
    assert len(prompt) > engine.config.context
    short = prompt[-engine.config.context :]
    assert engine.generate(prompt, max_tokens=10) == engine.generate(short, max_tokens=10)


def test_characters_of_several_bytes_are_streamed_whole(engine):
    config = engine.config.model_copy(update={"vocab_size": 256})
    params = model.init(jax.random.key(0), config)
    # A model that always continues with the two bytes of é: each of them points at the other.
    first, second = "é".encode()
    states = model.network.run(params, np.array([[first, second, first]]), config)[0][0]
    directions = states / np.linalg.norm(states, axis=-1, keepdims=True)
    readout = np.zeros((256, config.width), np.float32)
    readout[second], readout[first] = directions[2] * 50, directions[1] * 50
    pieces = list(Engine(params._replace(readout=readout), config, ByteTokenizer()).stream("é", max_tokens=8, temperature=0.0))
    assert all("�" not in piece for piece in pieces[:-1])


def test_score_counts_characters_and_all_tokens_but_the_first(engine):
    text = "1 is 4 and 3, 5 is 0 and 2, 9 is 1 and 1, "
    tokens = engine.tokenizer.encode(text)
    score = engine.score(text, stride=8)
    assert score.tokens == len(text) - 1
    nats = scoring.mean_nats(engine.params, scoring.cover(tokens, 16, 8), engine.config)
    assert score.nats_per_token == score.nats_per_character == nats
    assert np.isclose(score.bits_per_character, nats / np.log(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "@"}, "'@' is not among"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, r"top-p is 0\.0"),
        ({"top_k": -1}, "top-k is -1"),
        ({"max_tokens": -1}, "max-tokens is -1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_settings_are_told_before_anything_is_decoded(engine, settings, message):
    with pytest.raises(UserError, match=message):
        engine.stream(**({"prompt": "1"} | settings))


def test_too_short_a_text_to_score_is_told(engine):
    with pytest.raises(UserError, match="at least two tokens"):
        engine.score("1")


def test_missing_runs_and_steps_are_told(finished_run, tmp_path):
    with pytest.raises(UserError, match="There is no run at"):
        Engine.from_checkpoint(tmp_path / "nowhere")
    for path in ("/dev/zero", "README.md"):
        with pytest.raises(UserError, match=f"There is no run at {path}"):
            Engine.from_checkpoint(path)
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        Engine.from_checkpoint("x" * 300)
    with pytest.raises(UserError, match="holds no checkpoints"):
        Engine.from_checkpoint(tmp_path)
    with pytest.raises(UserError, match="has no checkpoint of step 5; it has"):
        Engine.from_checkpoint(finished_run, step=5)
