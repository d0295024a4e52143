"""Windows that cover a text, and scores against a direct computation."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lior_jax import model
from lior_jax.errors import UserError
from lior_jax.inference import scoring
from tests.oracles import TINY, initial


@given(st.integers(2, 60), st.integers(2, 9), st.data())
def test_every_target_is_scored_once_with_enough_history(length, context, draw):
    stride = draw.draw(st.none() | st.integers(1, context))
    tokens = np.arange(length)
    windows = scoring.cover(tokens, context, stride)
    assert sorted(windows.targets[windows.counted]) == list(range(1, length))
    row, column = np.nonzero(windows.counted)
    first = windows.tokens[:, 0][row]
    np.testing.assert_array_equal(windows.tokens[row, column] + 1, windows.targets[row, column])
    assert np.all((column + 1 > context - (stride or context)) | (first == 0))


@given(st.integers(1, 30), st.integers(1, 40))
def test_a_count_takes_distinct_windows_from_end_to_end(total, count):
    windows = scoring.cover(np.arange(total * 4 + 1), 4)
    chosen = scoring.cover(np.arange(total * 4 + 1), 4, count=count)
    starts = chosen.tokens[:, 0]
    assert len(set(starts)) == len(starts) == min(total, count)
    if count > 1:
        assert starts[0] == windows.tokens[0, 0]
        assert starts[-1] == windows.tokens[-1, 0]


@pytest.mark.parametrize("stride", [0, 5, -1])
def test_a_stride_that_would_leave_targets_out_is_told(stride):
    with pytest.raises(UserError, match=f"stride is {stride}, but must be between 1 and the context, 4"):
        scoring.cover(np.arange(20), 4, stride)


def test_windows_are_cut_out_of_a_mapped_text_when_they_are_asked_for(tmp_path):
    """And are the same however many are asked for at once."""
    np.arange(1003, dtype="<u2").tofile(tmp_path / "tokens")
    windows = scoring.cover(np.memmap(tmp_path / "tokens", "<u2", "r"), 10, 4)
    assert isinstance(windows.scored, range)
    whole = scoring.cover(np.arange(1003), 10, 4)
    for some in (slice(0, 3), slice(100, 120), slice(248, 300)):
        for name in ("tokens", "targets", "counted", "counts"):
            np.testing.assert_array_equal(getattr(windows[some], name), getattr(whole, name)[some])
    assert windows[:2].tokens.dtype == np.int32
    np.testing.assert_array_equal(whole.counts, whole.counted.sum(1))


def test_mean_nats_equals_scoring_each_target_by_itself():
    params = initial(TINY)
    params = params._replace(readout=params.readout * 60)
    tokens = np.asarray(jax.random.randint(jax.random.key(1), (45,), 0, 7))
    stride, expected = 2, []
    logits = jax.jit(model.logits, static_argnums=2)
    for target in range(1, len(tokens)):
        end = -(-target // stride) * stride
        start = max(0, end - TINY.context)
        log_p = jax.nn.log_softmax(logits(params, tokens[None, start:target], TINY)[0, -1])
        expected.append(-log_p[tokens[target]])
    score = scoring.mean_nats(params, scoring.cover(tokens, TINY.context, stride), TINY)
    np.testing.assert_allclose(score, np.mean(expected), rtol=1e-5)
