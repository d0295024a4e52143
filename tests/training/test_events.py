"""The events of a run, their order and their subscribers; one that fails does not disturb the run."""

import jax
import numpy as np
import pytest

from lior_jax import data, training
from lior_jax.storage import checkpoint, snapshot
from lior_jax.training import events, loop, metrics, reporting, signals
from lior_jax.training.step import initial_state
from tests.runs import Listener
from tests.training.test_loop import figures, saved_leaves
from tests.training.test_resume import assert_same_run


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    """A whole run's events."""
    from tests.runs import tiny_config

    listener = Listener()
    training.train(tiny_config(tmp_path_factory.mktemp("heard"), "run"), listener)
    return listener


def test_a_long_pass_gives_up_when_the_run_is_asked_to_stop():
    stop = signals.Stop()
    going = reporting.watched_pass("abc", "scoring", lambda event: None, stop)
    assert next(going) == "a"
    stop.number = 15
    with pytest.raises(signals.StoppedError):
        next(going)


def test_the_events_of_a_run_are_those_of_its_rhythm(heard):
    kinds = [type(event).__name__ for event in heard.events if not isinstance(event, events.Scoring)]
    assert kinds[:2] == ["Started", "Compiling"]
    assert kinds[-1] == "Finished"
    assert [event.step for event in heard.of(events.Step)] == list(range(1, 13))
    assert [event.step for event in heard.of(events.Validated)] == [4, 8, 12]
    assert [event.step for event in heard.of(events.Sampled)] == [4, 8, 12]
    assert sorted(event.step for event in heard.of(events.Saved)) == [3, 4, 6, 8, 9, 12]
    assert heard.of(events.Finished)[0].summary.step == 12
    assert heard.of(events.Started)[0].parameters == heard.of(events.Finished)[0].summary.parameters


def test_the_events_hold_the_figures_that_are_written_down(heard):
    lines = metrics.read(heard.of(events.Started)[0].directory)
    written = {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}
    assert {event.step: pytest.approx(event.loss) for event in heard.of(events.Step)} == written
    validated = {line["step"]: line["nats_per_character"] for line in lines if line["kind"] == "validation"}
    assert {event.step: event.nats_per_character for event in heard.of(events.Validated)} == validated


def test_what_an_evaluation_shows_is_on_the_disk_with_its_figures(tiny, tmp_path):
    """Whoever looks when it is shown finds the checkpoint whole, in spite of a slow save."""
    run, seen = tmp_path / "run", []

    def look(event):
        if isinstance(event, events.Validated | events.Sampled):
            snapshot.verify(run / checkpoint.FOLDER / str(event.step))
            kinds = {line["kind"] for line in metrics.read(run) if line["step"] == event.step}
            seen.append((event.step, kinds))

    listener = Listener()
    training.train(tiny("run"), [look, listener])
    assert [step for step, _ in seen] == [4, 4, 8, 8, 12, 12]
    assert all(kinds == {"train", "validation", "sample"} for _, kinds in seen)
    assert not listener.of(events.SubscriberFailed)
    order = [type(event) for event in listener.events if getattr(event, "step", None) == 4]
    assert order == [events.Saved, events.Step, events.Validated, events.Sampled]


def test_a_display_that_takes_the_process_with_it_costs_nothing(tiny, tmp_path, finished_run):
    """Ctrl-C within a subscriber passes; the step that was being shown is saved, and resuming makes the same run."""

    def interrupt(event):
        if isinstance(event, events.Validated) and event.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(tiny("run"), interrupt)
    assert saved_leaves(tmp_path / "run")[0] == 8
    training.train(training.resume_config(tmp_path / "run"), resume=True)
    assert_same_run(tmp_path / "run", finished_run)


def test_a_failing_subscriber_is_reported_to_the_others_once_and_the_run_is_the_same(tiny, tmp_path, finished_run):
    calls = []

    def broken(event):
        calls.append(event)
        raise OSError(28, "No space left on device")

    first, last = Listener(), Listener()
    training.train(tiny("run"), [first, broken, last])
    assert len(calls) == len([event for event in last.events if not isinstance(event, events.SubscriberFailed)])
    for listener in (first, last):
        (failure,) = listener.of(events.SubscriberFailed)
        assert failure == events.SubscriberFailed("broken", "[Errno 28] No space left on device")
    assert_same_run(tmp_path / "run", finished_run)


def test_subscribers_that_all_fail_do_not_call_each_other_for_ever():
    def one(event):
        raise ValueError("one")

    def two(event):
        raise ValueError("two")

    both = events.several(one, two)
    both(events.Saved(1))
    both(events.Saved(2))


def test_a_subscriber_may_stop_the_run(tiny, tmp_path):
    def stop(event):
        if isinstance(event, events.Step) and event.step == 5:
            raise signals.StoppedError(2)

    with pytest.raises(signals.StoppedError):
        training.train(tiny("run"), stop)
    assert saved_leaves(tmp_path / "run")[0] == 4


def test_resuming_is_reported_with_its_step(tiny):
    config, listener = tiny("run", "sample.tokens=0"), Listener()
    training.train(config, stop_after=6)
    training.train(config, listener, resume=True)
    assert [type(event) for event in listener.events[:3]] == [events.Started, events.Resumed, events.Compiling]
    assert listener.of(events.Resumed)[0] == events.Resumed(6)


def test_training_prints_nothing(tiny, capfd):
    training.train(tiny("run"))
    assert capfd.readouterr() == ("", "")


def test_the_state_counts_the_steps_that_were_applied(tiny):
    """Also in a checkpoint: 12 steps and 12 updates of every moment."""
    config = tiny("run")
    config = data.with_vocabulary(config, data.load(config))
    tokens = np.zeros((4, 16), np.int32)
    state = jax.jit(initial_state, static_argnums=1)(jax.random.key(0), config)
    for proceed, applied in ((True, 1), (False, 1), (True, 2)):
        before = snapshot.to_host((state.params, state.optimizer))
        state, _ = loop.train_step(state, (tokens, tokens), config, proceed)
        assert state.step == applied
        if not proceed:
            for leaf, old in zip(jax.tree.leaves((state.params, state.optimizer)), jax.tree.leaves(before), strict=True):
                np.testing.assert_array_equal(leaf, old)
    (count, *others) = {int(leaf) for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 0}
    assert (count, others) == (2, [])


def test_the_same_configuration_has_the_same_optimizer(tiny):
    """It is a static part of the state: another one would compile the step again."""
    config = tiny("run")
    config = data.with_vocabulary(config, data.load(config))
    one, two = (jax.eval_shape(lambda key: initial_state(key, config), jax.random.key(0)) for _ in range(2))
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert one.tx is two.tx


def test_figures_are_written_before_the_save_and_shown_after_it(tiny, tmp_path, monkeypatch):
    """A kill between the two must leave a saved step with all its figures."""
    order = []
    save, write = loop.Loop.save, metrics.Metrics.write
    monkeypatch.setattr(
        loop.Loop, "save", lambda self, state, step, *rest: (order.append(("save", step)), save(self, state, step, *rest))
    )
    monkeypatch.setattr(
        metrics.Metrics, "write", lambda self, kind, step, *rest: (order.append((kind, step)), write(self, kind, step, *rest))
    )

    def show(event):
        if isinstance(event, events.Validated):
            order.append(("shown", event.step))

    training.train(tiny("run", "training.steps=4", "training.save_every=4"), show)
    assert order[-5:] == [("train", 4), ("validation", 4), ("sample", 4), ("save", 4), ("shown", 4)]
    assert [line["kind"] for line in figures(tmp_path / "run")][-3:] == ["train", "validation", "sample"]
