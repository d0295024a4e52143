"""Several real processes train as one does: the same losses, one writer, one end; and none hangs when another is gone."""

import os
import re
import signal

import numpy as np
import pytest

from lior_jax import training
from lior_jax.storage import checkpoint
from lior_jax.training import environment, metrics
from tests.parallel import together
from tests.parallel.together import LIGHT, begin, kill, start, statuses, wait_for
from tests.runs import tiny_config
from tests.training.test_kill import committed

ENDLESS = ["--set", "training.steps=1000000", "--set", "training.eval_every=1000000"]
QUIET = ["--set", "training.save_every=1000000"]


def figures(run, name: str) -> dict[int, float]:
    return {line["step"]: line[name] for line in metrics.read(run) if name in line}


def alone(folder, name: str, *overrides: str, **how):
    """The run of one process, in this one."""
    return training.train(tiny_config(folder, name, *LIGHT, *overrides), **how)


def assert_same(run, other, steps: int, names=("loss",)) -> None:
    for name in names:
        here, there = figures(run, name), figures(other, name)
        common = sorted(here.keys() & there.keys())
        assert len(common) >= steps
        np.testing.assert_allclose([here[at] for at in common], [there[at] for at in common], rtol=1e-5, err_msg=name)


def test_two_processes_are_one_and_stop_as_one(tmp_path):
    """SIGTERM to one of them: both save the same step and leave with the same status, and only the first one has spoken."""
    together.files(tmp_path)
    processes = begin(tmp_path, "two", 2, *ENDLESS, *QUIET)
    wait_for(processes, lambda: (tmp_path / "two" / "metrics.jsonl").exists() and len(figures(tmp_path / "two", "loss")) >= 4)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert statuses(processes) == [143, 143], [process.said for process in processes]
    assert f"Saved; continue with --resume {tmp_path}/two." in processes[0].said
    assert "2 of 2 devices of 2 processes: batch split over 2." in processes[0].said
    assert processes[1].said == ""
    assert "Gloo" not in processes[0].said
    steps = committed(tmp_path / "two")
    assert steps == [max(figures(tmp_path / "two", "loss"))], "one step, and nothing after it"
    alone(tmp_path, "one", "training.eval_every=1000000", "training.steps=1000000", stop_after=4)
    assert_same(tmp_path / "two", tmp_path / "one", 4)


@pytest.mark.slow
def test_four_processes_are_one(tmp_path):
    """To the end, with evaluations and samples, dropout, checks of the nudge, and heads that are split between processes."""
    together.files(tmp_path)
    given = ["learning.dropout=0.1", "learning.check_every=5", "training.batch_size=8"]
    words = [word for setting in [*given, "parallel.model=2"] for word in ("--set", setting)]
    processes = begin(tmp_path, "four", 4, *words)
    assert statuses(processes, 200) == [0] * 4, [process.said for process in processes]
    assert [process.said for process in processes[1:]] == [""] * 3
    assert "4 of 4 devices of 4 processes: batch split over 2 x heads over 2." in processes[0].said
    alone(tmp_path, "one", *given)
    assert_same(tmp_path / "four", tmp_path / "one", 3, ("nats_per_token",))
    assert_same(tmp_path / "four", tmp_path / "one", 12)
    assert [line["kind"] for line in metrics.read(tmp_path / "four")] == [
        line["kind"] for line in metrics.read(tmp_path / "one")
    ]
    sessions = environment.read(tmp_path / "four")
    assert [(session["from_step"], session["to_step"], session["processes"]) for session in sessions] == [(0, 12, 4)]


WIDE = ["model.width=64", "model.flow.units=64", "parallel.shard_parameters=true"]
"""Parameters of a size at which they are sharded."""


@pytest.mark.slow
def test_a_run_goes_on_in_other_processes(tmp_path):
    """One device, then two processes with two each, whose shards are written by both, then one device."""
    together.files(tmp_path)
    alone(tmp_path, "run", *WIDE, stop_after=4)
    sharded = start(tmp_path, "run", 2, "--resume", tmp_path / "run", "--stop-after", 8, devices=2)
    assert statuses(sharded) == [0, 0], [process.said for process in sharded]
    assert "Resuming from step 4." in sharded[0].said
    assert "4 of 4 devices of 2 processes: batch split over 4, parameters and optimiser state sharded." in sharded[0].said
    written = {path.name for path in (tmp_path / "run" / checkpoint.FOLDER / "8" / "params").iterdir()}
    assert {"ocdbt.process_0", "ocdbt.process_1"} <= written
    assert committed(tmp_path / "run") == [6, 8]
    training.train(training.resume_config(tmp_path / "run"), resume=True)
    alone(tmp_path, "straight", *WIDE)
    for name in ("loss", "nats_per_token"):
        assert_same(tmp_path / "run", tmp_path / "straight", 3, (name,))
    assert figures(tmp_path / "run", "loss").keys() == set(range(1, 13))


@pytest.mark.slow
def test_two_processes_start_from_other_weights(tmp_path, finished_run):
    together.files(tmp_path)
    source = ["--init-from", finished_run, "--set", f"data.path={tmp_path}/corpus.txt", "--set", "sample.tokens=0"]
    processes = start(tmp_path, "two", 2, *source, "--set", f"run.directory={tmp_path}/two", "--stop-after", 3)
    assert statuses(processes) == [0, 0], [process.said for process in processes]
    config = tiny_config(tmp_path, "one", f"run.init_from={finished_run}", "sample.tokens=0")
    training.train(config, stop_after=3)
    assert_same(tmp_path / "two", tmp_path / "one", 3)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_is_killed_in_a_step_ends_the_others(tmp_path, index):
    together.files(tmp_path)
    run = tmp_path / "run"
    processes = begin(tmp_path, "run", 3, *ENDLESS, "--set", "training.save_every=4", "--set", "training.batch_size=6")
    wait_for(processes, lambda: run.exists() and len(figures(run, "loss")) >= 10)
    os.kill(processes[index].pid, signal.SIGKILL)
    assert statuses(processes, 50) == [-9 if at == index else 75 for at in range(3)], [process.said for process in processes]
    for at, process in enumerate(processes):
        if at != index:
            assert re.search(
                rf"Process {index} \({processes[index].pid} on .*\) has died. Saved checkpoints are kept", process.said
            )
            assert not re.search(r"Traceback|F1|\*\*\*", process.said)
    reached = committed(run)[-1]
    again = start(tmp_path, "again", 3, "--resume", run, "--stop-after", reached + 3)
    assert statuses(again) == [0, 0, 0], [process.said for process in again]
    assert f"Resuming from step {reached}." in again[0].said
    alone(tmp_path, "one", *ENDLESS[1::2], "training.batch_size=6", stop_after=reached + 3)
    assert_same(run, tmp_path / "one", reached + 3)


@pytest.mark.slow
@pytest.mark.parametrize(("index", "moment"), [(0, "manifest"), (0, "arrays"), (1, "arrays")])
def test_a_process_that_is_killed_in_a_save_loses_that_save_only(tmp_path, index, moment):
    together.files(tmp_path)
    run = tmp_path / "run"
    words = ["--set", "training.save_every=2", "--set", "training.keep=9", "--set", "training.eval_every=1000000"]
    processes = begin(tmp_path, "run", 2, *words, hangs=(index, moment))
    wait_for(processes, lambda: "hanging" in processes[index].said or (run / checkpoint.FOLDER / ".saving-4").exists())
    os.kill(processes[index].pid, signal.SIGKILL)
    assert statuses(processes, 50) == ([-9, 75] if index == 0 else [75, -9]), [process.said for process in processes]
    assert f"Process {index} " in processes[1 - index].said
    assert committed(run) == [2]
    again = start(tmp_path, "again", 2, "--resume", run, "--stop-after", 6)
    assert statuses(again) == [0, 0], [process.said for process in again]
    assert "Resuming from step 2." in again[0].said
    assert committed(run) == [2, 4, 6]
    assert not list((run / checkpoint.FOLDER).glob(".*"))
    alone(tmp_path, "one", *words[1::2], stop_after=6)
    assert_same(run, tmp_path / "one", 6)


@pytest.mark.slow
def test_a_save_without_room_is_reported_and_the_next_one_works(tmp_path):
    together.files(tmp_path)
    words = ["--set", "training.save_every=2", "--set", "training.keep=9", "--set", "training.eval_every=1000000"]
    processes = begin(tmp_path, "run", 2, *words, "--stop-after", 6, hangs=(0, "room"))
    assert statuses(processes) == [0, 0], [process.said for process in processes]
    assert "The checkpoint of step 4 could not be saved ([Errno 28] No space left on device)" in processes[0].said
    assert processes[1].said == ""
    assert committed(tmp_path / "run") == [2, 6]


@pytest.mark.slow
def test_a_silent_process_ends_the_others(tmp_path):
    together.files(tmp_path)
    processes = begin(tmp_path, "run", 2, *ENDLESS, *QUIET)
    wait_for(processes, lambda: (tmp_path / "run").exists() and len(figures(tmp_path / "run", "loss")) >= 2)
    os.kill(processes[1].pid, signal.SIGSTOP)
    try:
        assert processes[0].wait(50) == 75
        assert f"has not answered for {together.TIMEOUT / 3:g} s." in processes[0].said
    finally:
        kill(processes)


@pytest.mark.slow
def test_one_that_compiles_for_long_is_waited_for(tmp_path):
    together.files(tmp_path)
    words = ["--set", "training.eval_every=1000000", "--stop-after", 2]
    processes = begin(tmp_path, "run", 2, *words, hangs=(1, "compile"))
    assert statuses(processes, 150) == [0, 0], [process.said for process in processes]


@pytest.mark.slow
def test_too_many_bad_steps_end_all(tmp_path):
    together.files(tmp_path)
    words = ["--set", "learning.residual_limit=1e-30", "--set", "training.patience=2"]
    processes = begin(tmp_path, "run", 2, *words)
    assert statuses(processes) == [2, 2], [process.said for process in processes]
    assert "The numbers of 2 steps in a row, up to step 2, were bad" in processes[0].said
    assert (tmp_path / "run" / "bad_steps" / "1" / "state" / "MANIFEST.sha256").exists()
    assert not list((tmp_path / "run" / "bad_steps").glob(".*"))
