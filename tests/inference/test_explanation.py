"""Explanations as they are shown."""

import numpy as np
import pytest

from lior_jax.inference.decoder import MeanAttention
from lior_jax.inference.explanation import Recollection, by_position


def explanation(rows, lags=300, memory=True):
    """Of tokens of many letters, far back in a long text."""
    rng = np.random.default_rng(0)
    weight = rng.dirichlet(np.ones(lags), rows)
    attention = MeanAttention(weight, 99 * rng.random((rows, lags)), np.ones(rows), np.zeros((rows, 2)), np.zeros((rows, 2)))
    tokens = [" incomprehensibly\n"[: 1 + place % 18] for place in range(12345 + rows)]
    entries = [[Recollection("\n" * 80 + f"end {row}", 12.5, 0.25)] for row in range(rows)]
    share = np.linspace(0, 1, rows)
    return by_position(attention, tokens, 12345, share if memory else None, entries if memory else [])


@pytest.mark.parametrize("memory", [True, False])
def test_a_table_fits_100_columns(memory):
    """And has three sources in a row, the largest first, and the end of what the memory holds, which is what counts."""
    explained = explanation(30, memory=memory)
    lines = explained.table().splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) == 1 + 30 * (1 + memory)
    assert all(line.count("@") >= 2 for line in lines[1 :: 1 + memory])
    best = int(np.argmax(explained.weight[4]))
    assert f"@{best} " in lines[1 + 4 * (1 + memory)].split(")")[0]
    if memory:
        assert lines[2].endswith("end 0' 0.250 (12.50)")
        assert " 0.138" in lines[1 + 2 * 4]


def test_a_table_shows_as_many_tokens_as_asked_for():
    explained = explanation(30, memory=False)
    assert explained.table(4).splitlines() == [*explained.table().splitlines()[:5], "and 26 tokens more"]
    assert explained.table(30) == explained.table(99) == explained.table()
