"""The trace of a run's steps."""

import gzip
import json

import pytest

from lior_jax import training
from lior_jax.training import events
from lior_jax.training.profile import Profiler
from tests.runs import Listener


@pytest.mark.parametrize(("asked", "traced"), [(3, 3), pytest.param(50, 4, marks=pytest.mark.slow)])
def test_a_trace_holds_the_steps_asked_for_or_those_that_there_are(tiny, tmp_path, asked, traced):
    listener = Listener()
    profiler = Profiler(asked, listener)
    training.train(tiny("run", "training.steps=6", "sample.tokens=0"), [listener, profiler])
    profiler.close()
    (told,) = listener.of(events.Profiled)
    assert (told.folder, told.steps) == (tmp_path / "run" / "profile", traced)
    assert f"A trace of {traced} steps is in {told.folder}: tensorboard --logdir" in listener.said
    assert list(told.folder.rglob("*.xplane.pb"))
    (trace,) = told.folder.rglob("perfetto_trace.json.gz")
    assert any(
        "train_step" in str(event.get("name")) for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    )


def test_without_steps_nothing_is_traced(tmp_path):
    profiler = Profiler(0, print)
    for event in (events.Started(tmp_path, None, 1), *(events.Step(step, 1.0) for step in range(1, 5))):
        profiler(event)
    profiler.close()
    assert not list(tmp_path.iterdir())
