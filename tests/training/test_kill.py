"""SIGKILL during a save: real training processes are killed fifty times, and it is as if they had not been."""

import hashlib
import os
import random
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lior_jax.storage import checkpoint, files, manifest
from tests.processes import Training
from tests.runs import TINY
from tests.training.test_loop import figures, saved_leaves

KILLS = 50
STEPS = 100


def committed(run: Path) -> list[int]:
    """Steps of the checkpoints on the disk, each of whose files has the sum that was written down for it."""
    folders = [path for path in (run / checkpoint.FOLDER).iterdir() if path.name.isdigit()]
    for folder in folders:
        lines = (folder / manifest.NAME).read_text().splitlines()[:-1]
        assert len(lines) > 10
        for line in lines:
            value, name = line.split("  ", 1)
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == value
        listed = {line.split("  ", 1)[1] for line in lines} | {manifest.NAME}
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == listed
    return sorted(int(folder.name) for folder in folders)


def saving(run: Path) -> set[str]:
    """Checkpoints that are being written."""
    return {name for name in os.listdir(run / checkpoint.FOLDER) if name.startswith(files.SAVING)}


def kill_within_a_save(run: Path, process: Training, chance: random.Random) -> str | None:
    """Kill the process a random while after the beginning of its first or second save; returns which files the save had
    written by then, or None if it was over."""
    seen: set[str] = set()
    left = saving(run)  # of the process that was killed before; it is removed at the start
    saves, begin = chance.randint(1, 2), time.monotonic()
    while len(seen) < saves:
        assert process.runs, process.said
        assert time.monotonic() < begin + 120, process.said
        left &= saving(run)
        seen |= saving(run) - left
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.02))
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    for name in saving(run) - left:
        return ", ".join(sorted(os.listdir(run / checkpoint.FOLDER / name)))
    return None


def kill_again_and_again(run: Path, compiled: Path, kills: int, chance: random.Random) -> list[str]:
    """Resume and kill until so many kills hit a save; then let the run end. Returns what the saves had written."""
    hits: list[str] = []
    expected = committed(run)[-1]
    log = run.with_name(f"{run.name}.log")
    for _ in range(4 * kills):
        process = Training(["--resume", run], log, compiled)
        moment = kill_within_a_save(run, process, chance)
        hits += [] if moment is None else [moment]
        assert f"Resuming from step {expected}.\n" in process.said, "it began at the last step that was committed"
        assert not re.search("Traceback|damaged", process.said), process.said
        steps = committed(run)
        assert steps[-1] >= expected
        expected = steps[-1]
        if len(hits) == kills:
            break
    assert expected < STEPS - 2
    end = Training(["--resume", run], log, compiled)
    assert end.wait() == 0, end.said
    assert f"Resuming from step {expected}.\n" in end.said
    return hits


@pytest.mark.slow
def test_fifty_kills_within_saves_change_nothing(tmp_path):
    (tmp_path / "corpus.txt").write_text("".join(f"{i * i % 97} is {i % 7} and {i % 5}, " for i in range(400)))
    (tmp_path / "tiny.yaml").write_text(TINY)
    compiled = tmp_path / "compiled"

    def start(name: str, *options: str) -> Training:
        settings = [f"data.path={tmp_path}/corpus.txt", f"run.directory={tmp_path / name}", f"training.steps={STEPS}"]
        settings += ["training.eval_every=10", "sample.tokens=3", *options]
        # Little to trace and compile: each process does it again.
        settings += [
            "model.geometry.frame=learned_lowrank",
            "model.retrieval.lag_prior=false",
            "model.field.evolution=off",
            "model.blocks=1",
        ]
        words = [word for setting in settings for word in ("--set", setting)]
        return Training(["--config", tmp_path / "tiny.yaml", *words], tmp_path / f"{name}.log", compiled)

    straight = start("straight", "training.save_every=1000")
    assert straight.wait() == 0, straight.said

    def killed(name: str, seed: int) -> int:
        first = start(name, "training.save_every=1")
        while not (tmp_path / name / checkpoint.FOLDER / "1").exists():
            assert first.runs, first.said
            time.sleep(0.01)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        return kill_again_and_again(tmp_path / name, compiled, KILLS // 2, random.Random(seed))

    with ThreadPoolExecutor(2) as pool:  # two runs beside each other: two cores
        moments = [moment for hits in pool.map(killed, ("one", "two"), (1, 2)) for moment in hits]
    assert len(moments) == KILLS
    assert len(set(moments)) >= 3, f"the kills hit a save at different moments: {set(moments)}"
    step, expected = saved_leaves(tmp_path / "straight")
    for name in ("one", "two"):
        reached, leaves = saved_leaves(tmp_path / name)
        assert reached == step == STEPS
        for leaf, other in zip(leaves, expected, strict=True):
            np.testing.assert_array_equal(leaf, other)
        # Training, validation and samples, line by line.
        assert figures(tmp_path / name) == figures(tmp_path / "straight")
