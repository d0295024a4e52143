"""Costs by pairs of tokens, against loops over all pairs."""

import numpy as np

from lior_jax.analysis import pairs

RNG = np.random.default_rng(0)
ALPHABET = np.array([4, 0, 2])


def by_loops(cost, tokens):
    found = {}
    for text, letters in zip(cost, tokens, strict=True):
        for i in range(1, len(letters)):
            middle = text[i, :i].mean()
            for j in range(i):
                found.setdefault((letters[i], letters[j]), []).append(text[i, j] - middle)
    return found


def test_means_are_those_of_each_pair_and_only_the_past_counts():
    tokens = RNG.integers(0, 5, (6, 9))
    cost = RNG.normal(size=(6, 9, 9)) + np.triu(np.full((9, 9), np.nan), 0)
    expected = by_loops(cost, tokens)
    found = pairs.by_token(cost, tokens, ALPHABET, least=5).cost
    for row, query in enumerate(ALPHABET):
        for column, key in enumerate(ALPHABET):
            values = expected.get((query, key), [])
            if len(values) < 5:
                assert np.isnan(found[row, column])
            else:
                np.testing.assert_allclose(found[row, column], np.mean(values))


def test_what_the_pair_decides_is_all_or_the_share_of_its_variance():
    tokens = RNG.integers(0, 3, (400, 12))
    table = RNG.normal(size=(3, 3))
    decided = table[tokens[:, :, None], tokens[:, None, :]]
    alphabet = np.arange(3)
    relative_is_decided = by_loops(decided, tokens)
    within = np.concatenate([np.array(x) - np.mean(x) for x in relative_is_decided.values()])
    whole = np.concatenate([np.array(x) for x in relative_is_decided.values()])
    found = pairs.by_token(decided, tokens, alphabet)
    np.testing.assert_allclose(found.explained, 1 - within.var() / whole.var(), rtol=1e-6)
    noise = pairs.by_token(RNG.normal(size=decided.shape), tokens, alphabet)
    assert abs(noise.explained) < 0.01
