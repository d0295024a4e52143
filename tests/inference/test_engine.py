"""Generation and scoring from a checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax import model
from lior_jax.data.tokenizer import BpeTokenizer, ByteTokenizer
from lior_jax.errors import UserError
from lior_jax.inference import Engine, decoder, scoring
from lior_jax.model import block, operators
from lior_jax.physics.taps import taps
from tests.model.test_recurrence import windowed
from tests.oracles import initial


@pytest.fixture(scope="module")
def engine(finished_run):
    return Engine.from_checkpoint(finished_run)


def test_greedy_text_is_the_most_probable_continuation(engine):
    """Each token is the parallel network's argmax after those before, up to the context and far past it. Where the two largest
    logits are as close as rounding, either will do."""
    text = "5 is 0 a"
    tokens = engine.encode(text + engine.generate(text, max_tokens=5 * engine.config.context, temperature=0.0))
    states = windowed(engine.params, tokens[None, :-1], config=engine.config)
    logits = np.asarray(model.network.readout(engine.params.readout, states, "float32"))[0, len(text) - 1 :]
    chosen = np.take_along_axis(logits, tokens[len(text) :, None], 1)[:, 0]
    assert np.all(chosen >= logits.max(-1) - 1e-4)
    assert np.mean(logits.argmax(-1) == tokens[len(text) :]) > 0.95


@pytest.mark.slow
def test_an_engine_stays_the_same_when_x64_is_switched_on(engine):
    """JAX's mode widens what is made anew, and not what is loaded: an engine goes on in its own type."""
    text = "5 is 0 and 2, 9 is 1 and 1, " * 15
    before = engine.generate("1 is", max_tokens=20, seed=3), engine.score(text).nats_per_token
    with jax.enable_x64(True):
        fresh = Engine(engine.params, engine.config, engine.tokenizer)
        assert fresh.generate("1 is", max_tokens=20, seed=3) == before[0]
        assert np.isclose(fresh.score(text).nats_per_token, before[1], rtol=1e-5)
        explained = fresh.remember(text, capacity=512).explain("1 is", max_tokens=2)
    assert len(explained.memories) == 2


def test_same_seed_same_text_and_streaming_changes_nothing(engine):
    text = engine.generate("1 is", max_tokens=30, seed=3)
    assert text == engine.generate("1 is", max_tokens=30, seed=3)
    assert text == "".join(engine.stream("1 is", max_tokens=30, seed=3))
    assert len(text) == 30


def test_a_continuation_draws_from_its_own_stream_of_random_numbers(engine):
    """Made of the seed, the sample and the place in the continuation: after the same window, the same text."""
    one, other = "9 is 4 and 1, 5 is 0 and 2", "2 and 3, 9 is 4 and 1, 5 is 0 and 2"
    assert draws(engine, one) == draws(engine, other)


def draws(engine, prompt):
    """Tokens of a model of uniform logits, whose choice only the random numbers make."""
    flat = Engine(engine.params._replace(readout=engine.params.readout * 0), engine.config, engine.tokenizer)
    return flat.generate(prompt, max_tokens=12, seed=5, sample=2)


def test_seeds_and_samples_differ(engine):
    texts = {engine.generate("1 is", max_tokens=30, seed=seed, sample=sample) for seed in (0, 1) for sample in (0, 1)}
    assert len(texts) == 4


@pytest.mark.parametrize("placed", [True, False])
def test_reading_and_drawing_compile_once(engine, placed):
    """Whatever the length of prompt and continuation, on restored parameters and on such as a step returns."""
    params = engine.params if placed else jax.tree.map(np.asarray, engine.params)
    fresh = Engine(jax.tree.map(jnp.asarray, params), engine.config, engine.tokenizer)
    fresh.generate("1", max_tokens=1, stop=["never"])
    before = decoder._extend._cache_size(), decoder._draw._cache_size()
    "".join(fresh.stream("5 is 0 and 2, 9 is 1 and 1, ", max_tokens=20, temperature=1, top_k=3))
    assert (decoder._extend._cache_size(), decoder._draw._cache_size()) == before


def test_a_batch_of_prompts_of_any_lengths_gives_what_each_gives_alone(engine):
    prompts = ["1 is", "5", "5 is 0 and 2, 9 is 4 and 1, 16 is 2", "9 is"]
    assert len(prompts[2]) > engine.config.context
    together = engine.generate(prompts, max_tokens=20, seed=7, sample=[0, 0, 0, 3])
    alone = [
        engine.generate(text, max_tokens=20, seed=7, sample=sample) for text, sample in zip(prompts, [0, 0, 0, 3], strict=True)
    ]
    assert together == alone
    assert engine.generate([], max_tokens=20) == []


def test_decoding_goes_on_where_the_prompt_ends(engine):
    """Reading a text in one go, or the first part and then what was drawn after it, is the same."""
    first = engine.generate("1 is", max_tokens=25, temperature=0.0)
    whole = first + engine.generate("1 is" + first, max_tokens=15, temperature=0.0)
    assert whole == engine.generate("1 is", max_tokens=40, temperature=0.0)


@pytest.mark.parametrize("cut", [0, 3, 11])
def test_the_text_ends_before_a_stop_string(engine, cut):
    whole = engine.generate("1 is", max_tokens=30, seed=3)
    stop = whole[cut : cut + 3]
    expected = whole[: whole.index(stop)]
    assert engine.generate("1 is", max_tokens=30, seed=3, stop=["never", stop]) == expected
    assert "".join(engine.stream("1 is", max_tokens=30, seed=3, stop=[stop])) == expected


def test_a_penalty_on_repetition_gives_more_different_characters(engine):
    plain = engine.generate("1 is", max_tokens=40, temperature=0.0)
    penalized = engine.generate("1 is", max_tokens=40, temperature=0.0, repetition_penalty=5.0)
    assert len(set(penalized)) > len(set(plain))


def test_nothing_is_generated_where_nothing_is_asked_for(engine):
    assert engine.generate("1 is", max_tokens=0) == ""
    assert list(engine.stream("1 is", max_tokens=0)) == []


def test_explanations_are_the_retrieval_of_the_position_before(engine):
    """Against the dense weights of the parallel network's blocks."""
    text = "5 is 0 and 2, 9 "
    explained = engine.explain(text[:6], text[6:])
    assert ("".join(explained.tokens), explained.first) == (text, 6)
    weights, costs = dense_retrieval(engine.params, engine.tokenizer.encode(text), engine.config)
    mean = weights.mean((0, 1))
    np.testing.assert_allclose(explained.weight, mean[5:-1], atol=1e-4)
    seen = mean[5:-1] > 0
    cost = ((weights * costs).mean((0, 1)) / np.maximum(mean, 1e-30))[5:-1]
    np.testing.assert_allclose(explained.cost[seen], cost[seen], rtol=2e-3)
    np.testing.assert_array_equal(explained.resilience, 1)
    line = explained.table().splitlines()[1]
    best = int(np.argmax(explained.weight[0]))
    assert f"{text[6]!r}" in line
    assert f"{text[best]!r}@{best}" in line


def dense_retrieval(params, tokens, config):
    """Weights and geodesic costs `[N, H, T, T]` by displacements, one by one, from the states before each block."""
    applied = operators.prepare(params, len(tokens), config)
    s = params.embedding[tokens][None]
    p, weights, costs = s * 0, [], []
    for layer in range(config.blocks):
        one = jax.tree.map(lambda x, layer=layer: x[layer], applied)
        direction = np.asarray(s) / np.sqrt(np.mean(np.square(s), -1, keepdims=True) + 1e-6)
        context = np.asarray(taps(one.taps, direction))[0]
        query, key = (np.einsum("hmd,td->htm", chart, context) for chart in (one.query, one.key))
        cost = np.sqrt(np.sum((query[:, :, None] - key[:, None]) ** 2, -1) + 1e-4)
        lag = np.subtract.outer(np.arange(len(tokens)), np.arange(len(tokens)))
        score = (
            np.asarray(one.couplings.scores[0].log_prior)[:, np.maximum(lag, 0)]
            - np.asarray(one.couplings.inverse_temperature)[:, None, None] * cost
        )
        raised = np.where(lag >= 0, np.exp(score), 0)
        weights.append(raised / raised.sum(-1, keepdims=True))
        costs.append(cost)
        (s, p), _ = block.apply(one, s, p, config)
    return np.array(weights), np.array(costs)


@pytest.mark.slow
def test_characters_of_several_bytes_are_streamed_whole(engine):
    config = engine.config.model_copy(update={"vocab_size": 256})
    params = initial(config)
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
    assert np.isclose(score.perplexity, np.exp(nats))


def test_score_spreads_the_nats_of_a_token_over_its_characters(engine):
    """Of pairs of bytes, which hold about two characters each; with a memory, both figures."""
    text = "5 is 0 and 2, 9 is 1 and 1, " * 40
    words = BpeTokenizer.train([text], 280)
    characters = len(text) / len(words.encode(text))
    assert characters > 1.5
    config = engine.config.model_copy(update={"vocab_size": words.vocab_size})
    pairs = Engine(initial(config), config, words)
    alone, remembering = pairs.score(text), pairs.remember(text).score(text)
    for score in (alone, remembering):
        assert np.isclose(score.nats_per_character, score.nats_per_token / characters)
        assert np.isclose(score.nats_per_character_alone, alone.nats_per_token / characters)
    assert remembering.nats_per_character < 0.9 * alone.nats_per_character


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
        ({"min_p": 2.0}, r"min-p is 2\.0"),
        ({"stop": ["a", ""]}, "stop must be a list of strings that are not empty"),
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
