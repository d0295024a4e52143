"""Sampling against its definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lior_jax.errors import UserError
from lior_jax.inference import sampling
from lior_jax.inference.sampling import Sampling

SIZE = 11
cut = jax.jit(sampling.boltzmann_logits)
logits_of = st.lists(st.floats(-8, 8, width=32), min_size=SIZE, max_size=SIZE)


def probabilities(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> np.ndarray:
    settings = Sampling(temperature, top_k, top_p, min_p).check()
    p = np.asarray(jax.nn.softmax(cut(jnp.asarray(logits, jnp.float32), settings)))
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
    return p


@given(logits_of, st.floats(0.1, 4))
def test_temperature_is_the_boltzmann_distribution(logits, temperature):
    exact = np.exp((np.array(logits) - max(logits)) / temperature)
    np.testing.assert_allclose(probabilities(logits, temperature), exact / exact.sum(), rtol=2e-4, atol=1e-7)


@given(logits_of, st.integers(1, SIZE))
def test_top_k_keeps_the_k_most_probable_and_their_ratios(logits, top_k):
    p = probabilities(logits, top_k=top_k)
    kept = np.argsort(-np.array(logits, np.float32), kind="stable")[:top_k]
    assert set(np.flatnonzero(p)) <= set(kept)
    full = probabilities(logits)
    np.testing.assert_allclose(p[kept], full[kept] / full[kept].sum(), rtol=1e-4, atol=1e-7)


@given(logits_of, st.floats(0.05, 0.99))
def test_top_p_keeps_the_fewest_tokens_that_reach_p(logits, top_p):
    full = probabilities(logits)
    kept = np.isfinite(np.asarray(cut(jnp.asarray(logits, jnp.float32), Sampling(1.0, 0, top_p))))
    assert full[kept].sum() >= top_p - 1e-5
    if kept.sum() > 1:
        assert full[kept].sum() - full[kept].min() < top_p + 1e-5
    assert full[kept].min() >= full[~kept].max(initial=0) - 1e-7


@given(logits_of)
def test_zero_temperature_takes_the_most_probable(logits):
    p = probabilities(logits, temperature=0.0)
    assert p[np.argmax(np.array(logits, np.float32))] == 1


def test_draws_have_the_stated_frequencies():
    logits, temperature = jnp.array([0.0, 1.0, 2.0, -1.0]), 0.7
    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = jax.vmap(lambda key: sampling.sample(key, logits, jnp.zeros(4, bool), Sampling(temperature, 3)))(keys)
    frequencies = np.bincount(np.asarray(draws), minlength=4) / len(keys)
    np.testing.assert_allclose(frequencies, probabilities(logits, temperature, top_k=3), atol=0.015)
    assert frequencies[3] == 0


def test_the_mode_of_double_precision_draws_the_same_tokens(float64):
    logits = jax.random.normal(jax.random.key(1), (50, 20), jnp.float32)

    def draw():
        keys = jax.random.split(jax.random.key(0), 50)
        settings = Sampling(0.9, 0, 0.95).check()
        draws = jax.jit(jax.vmap(sampling.sample, (0, 0, None, None)))(keys, logits, jnp.zeros(20, bool), settings)
        return np.asarray(draws)

    wide = draw()
    with jax.enable_x64(False):
        np.testing.assert_array_equal(draw(), wide)


@pytest.mark.parametrize("top_p", [1e-9, 1e-3])
def test_a_tiny_top_p_still_leaves_one_token(top_p):
    assert (probabilities([0.0] * SIZE, top_p=top_p) > 0).sum() == 1


@given(logits_of, st.floats(0, 1))
def test_min_p_keeps_what_reaches_a_share_of_the_most_probable(logits, min_p):
    full = probabilities(logits)
    kept = np.isfinite(np.asarray(cut(jnp.asarray(logits, jnp.float32), Sampling(1.0, min_p=min_p))))
    assert kept[np.argmax(full)]
    near = np.abs(full - min_p * full.max()) < 1e-6  # rounding may decide either way
    np.testing.assert_array_equal(kept[~near], (full >= min_p * full.max())[~near])


def test_repetition_penalty_divides_positive_logits_and_multiplies_negative_ones():
    logits, seen = jnp.array([2.0, -2.0, 2.0, -2.0, 0.0]), jnp.array([True, True, False, False, True])
    np.testing.assert_allclose(sampling.penalize(logits, seen, 1.25), [1.6, -2.5, 2.0, -2.0, 0.0])
    np.testing.assert_array_equal(sampling.penalize(logits, seen, 1.0), logits)


def test_the_penalty_comes_before_the_choice():
    token = sampling.sample(jax.random.key(0), jnp.array([2.0, 1.9]), jnp.array([True, False]), Sampling(0.0).check())
    penalized = Sampling(0.0, repetition_penalty=1.2).check()
    assert (token, sampling.sample(jax.random.key(0), jnp.array([2.0, 1.9]), jnp.array([True, False]), penalized)) == (0, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, "top-k is -1"),
        ({"top_p": 0.0}, r"top-p is 0\.0"),
        ({"min_p": 1.5}, r"min-p is 1\.5"),
        ({"repetition_penalty": 0.0}, r"repetition-penalty is 0\.0"),
    ],
)
def test_settings_out_of_range_are_told(settings, message):
    with pytest.raises(UserError, match=message):
        Sampling(**settings).check()
