"""How a run measures the bias of its nudge: when it is due, on the step's own batch, and what is said and written down."""

import jax
import pytest

from lior_jax import data, training
from lior_jax.analysis import plots
from lior_jax.learning.bias import nudge_bias
from lior_jax.training import events, metrics, origin
from lior_jax.training.step import step_key
from tests.runs import Listener
from tests.training.test_metrics import scalars


def test_the_bias_is_measured_when_it_is_due_and_complained_of_above_its_limit(tiny, tmp_path):
    often = ["learning.check_every=1", "learning.nudge_size=0.1", "learning.nudge_bias_limit=1e-6", "training.log_every=2"]
    config, listener = tiny("run", "training.steps=3", "sample.tokens=0", *often), Listener()
    beginning = origin.begin(config)
    state = origin.state(beginning)
    batch = data.batch_at(beginning.corpus.train, 0, 0, 4, 16)
    key = step_key(state.step, config)
    first = nudge_bias(jax.tree.map(jax.numpy.array, state.params), batch, beginning.config.model, config.learning, key)
    training.train(config, listener)
    lines = [line for line in metrics.read(tmp_path / "run") if line["kind"] == "check"]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[0]["nudge_bias"] == pytest.approx(float(first), rel=1e-4)
    assert [event.nudge_bias for event in listener.of(events.Checked)] == [line["nudge_bias"] for line in lines]
    assert "Step 1: doubling the nudge changes the estimate by" in listener.said
    assert "so it is biased; take a smaller nudge, learning.nudge_size=0.01." in listener.said
    assert [step for step, _ in scalars(tmp_path / "run")["soundness/nudge_bias"]] == [1, 2, 3]
    (left, *_) = plots.health(metrics.read(tmp_path / "run")).axes
    (drawn,) = (line for line in left.lines if line.get_label() == "bias of the nudge")
    assert drawn.get_ydata().tolist() == [line["nudge_bias"] for line in lines]


def test_zero_is_never(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("lior_jax.training.loop.nudge_bias", None)
    training.train(tiny("run", "training.steps=3", "sample.tokens=0", "learning.check_every=0"))
    assert not [line for line in metrics.read(tmp_path / "run") if line["kind"] == "check"]
