"""The task of `benchmarks/recall.py`, and what a row of it can see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recall

from lior_jax.physics.scores import LagPrior
from lior_jax.registry import SCORE_TERMS


@pytest.mark.parametrize("writes", [1, 3])
def test_every_answer_is_the_latest_value_of_its_key(writes):
    task = recall.Task(pairs=3, writes=writes, symbols=5, gap=7)
    tokens, targets = task.batch(np.random.default_rng(0), 50)
    assert tokens.shape == targets.shape == (50, task.length)
    written = 6 * writes
    for shown, asked, answers in zip(tokens[:, :written], tokens[:, -3:], targets[:, -3:], strict=True):
        keys, values = shown[::2].tolist(), shown[1::2].tolist()
        latest = dict(zip(keys, values, strict=True))  # a later entry replaces an earlier one
        assert sorted(keys) == sorted([*latest] * writes)
        assert len(latest) == 3
        assert set(latest) == set(asked.tolist()) <= set(range(1, 6))
        assert [latest[key] for key in asked.tolist()] == answers.tolist()
        assert set(answers.tolist()) <= set(range(6, task.vocabulary))
    assert not tokens[:, written:-3].any()
    assert not targets[:, :-3].any()


def test_retrieval_sees_the_window_only():
    recipe = recall.window_of(4)
    prior = recipe.prepare(jnp.zeros(2), None, 9, None)
    assert isinstance(prior, LagPrior)
    np.testing.assert_array_equal(np.exp(jax.tree.leaves(prior)[0]), np.tile(np.arange(9) < 4, (2, 1)))


def test_more_pairs_than_symbols_are_refused(capsys):
    with pytest.raises(SystemExit):
        recall.main(["--pairs", "9"])
    assert "--pairs 9: a sequence has no more pairs than there are --symbols (8)" in capsys.readouterr().err
    assert "window" not in SCORE_TERMS
