"""Ctrl-C and other signals to stop: what a stopped run saves, how soon and with which status it leaves, and resuming it."""

import os
import re
import signal
import time

import pytest

from lior_jax import training
from lior_jax.inference import Engine, scoring
from lior_jax.storage import checkpoint
from lior_jax.training import loop, signals
from tests.processes import Training
from tests.runs import TINY
from tests.training.test_loop import figures, saved_leaves
from tests.training.test_resume import assert_same_run


@pytest.mark.parametrize("moment", ["step", "evaluation due", "evaluation", "sample"])
def test_a_stopped_run_is_saved_and_resumed_as_if_it_had_not_been_stopped(tiny, tmp_path, finished_run, monkeypatch, moment):
    """Whenever the wish comes: what it cuts short, the evaluation of a step or its sample, is made up for."""
    stop = signals.Stop()
    config = tiny("run")

    def when(calls, function):
        def call(*args, **kwargs):
            calls[0] -= 1
            if calls[0] == 0:
                stop.number = signal.SIGTERM
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        if moment.startswith("step"):
            patch.setattr(loop, "train_step", when([6], loop.train_step))
        elif moment == "evaluation due":
            patch.setattr(loop, "train_step", when([8], loop.train_step))
        elif moment == "evaluation":
            patch.setattr(scoring, "_token_losses", when([2], scoring._token_losses))
        else:
            patch.setattr(Engine, "stream", when([2], Engine.stream))
        with pytest.raises(signals.StoppedError) as stopped:
            training.train(config, stop=stop)
    assert stopped.value.status == 128 + 15
    with checkpoint.open_run(tmp_path / "run") as checkpoints:
        assert checkpoints.latest == (6 if moment == "step" else 8)
    training.train(training.resume_config(tmp_path / "run"), resume=True)
    assert_same_run(tmp_path / "run", finished_run)


def start(tmp_path, prepare=None) -> Training:
    """A run that would take hours, in its tenth step or so."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "corpus.txt").write_text("to be or not to be, that is 1 question. " * 60)
    settings = [f"data.path={tmp_path}/corpus.txt", f"run.directory={tmp_path}/run", "training.steps=1000000"]
    settings += [
        "training.eval_every=1000000",
        "training.save_every=1000000",
        "model.field.evolution=off",
        "training.log_every=10",
    ]
    words = [word for setting in settings for word in ("--set", setting)]
    process = Training(["--config", tmp_path / "tiny.yaml", *words], tmp_path / "log", tmp_path / "compiled", prepare)
    wait_for(
        process, lambda: (tmp_path / "run" / "metrics.jsonl").exists() and (tmp_path / "run" / "metrics.jsonl").stat().st_size
    )
    return process


def wait_for(process, condition):
    begin = time.monotonic()
    while not condition():
        assert process.runs, process.said
        assert time.monotonic() < begin + 120, process.said
        time.sleep(0.02)


STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGUSR1: 128 + signal.SIGUSR1}


@pytest.mark.parametrize(("number", "status"), STATUS.items())
def test_a_signal_saves_and_leaves_within_ten_seconds(tmp_path, number, status):
    process = start(tmp_path)
    begin = time.monotonic()
    os.kill(process.pid, number)
    assert process.wait() == status
    assert time.monotonic() < begin + 10
    assert f"Saved; continue with --resume {tmp_path}/run." in process.said
    assert "Traceback" not in process.said
    step, _ = saved_leaves(tmp_path / "run")
    assert 10 <= step <= figures(tmp_path / "run")[-1]["step"] + 10


def ignore_hanging_up():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_a_run_under_nohup_survives_its_terminal(tmp_path):
    process = start(tmp_path, ignore_hanging_up)
    os.kill(process.pid, signal.SIGHUP)
    reached = figures(tmp_path / "run")[-1]["step"]
    wait_for(process, lambda: figures(tmp_path / "run")[-1]["step"] > reached + 10)
    assert "Saving" not in process.said
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 143


def hang():
    """Saving takes for ever, in code that sees no signal."""
    loop.Loop.save = lambda *_: [time.sleep(0.01) for _ in range(100_000)]


def hang_with_little_patience():
    hang()
    signals.PATIENCE = 1.0


def test_a_second_signal_leaves_at_once(tmp_path):
    process = start(tmp_path, hang)
    os.kill(process.pid, signal.SIGTERM)
    wait_for(process, lambda: "once more to exit at once" in process.said)
    time.sleep(0.5)
    begin = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 143
    assert time.monotonic() < begin + 1
    assert "Exiting at once." in process.said


def test_a_save_that_takes_too_long_is_left(tmp_path):
    assert signals.PATIENCE < 10
    process = start(tmp_path, hang_with_little_patience)
    begin = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 143
    assert 1 <= time.monotonic() - begin < 3
    assert re.search("exiting without it", process.said)


def test_outside_of_the_watch_signals_are_as_they_were():
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with signals.watched() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        begin = time.monotonic()
        while not stop.requested and time.monotonic() < begin + 5:
            time.sleep(0.01)
        with pytest.raises(signals.StoppedError):
            stop.check()
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
    signals.Stop().check()


def test_without_posix_signals_keep_their_meaning(monkeypatch):
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    monkeypatch.setattr(signals, "POSIX", False)
    with signals.watched() as stop:
        assert {number: signal.getsignal(number) for number in signals.SIGNALS} == before
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert not stop.requested
