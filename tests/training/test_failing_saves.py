"""A save that fails is reported at the next step; training continues, and later saves work."""

import errno
import resource
import shutil

import numpy as np
import pytest

from lior_jax import training
from lior_jax.errors import UserError
from lior_jax.storage import checkpoint, manifest
from lior_jax.training import loop, metrics
from tests.processes import Training
from tests.runs import TINY, Listener
from tests.training.test_loop import saved_leaves
from tests.training.test_resume import assert_same_run


@pytest.fixture
def at_save(monkeypatch):
    """`at_save({step: action})`: do something to the disk before a step is saved."""

    def at_save(actions):
        save = loop.Loop.save

        def call(self, state, step, *rest):
            self.checkpoints.wait()
            actions.pop(step, lambda: None)()
            save(self, state, step, *rest)

        monkeypatch.setattr(loop.Loop, "save", call)

    return at_save


@pytest.mark.slow
def test_a_file_in_the_place_of_the_folder_is_told_and_training_goes_on(tiny, tmp_path, finished_run, at_save):
    folder = tmp_path / "run" / checkpoint.FOLDER

    def block():
        shutil.rmtree(folder)
        folder.write_text("in the way")

    at_save({4: block, 9: folder.unlink})
    listener = Listener()
    training.train(tiny("run"), listener)
    told = listener.said
    for step in (4, 6, 8):
        assert f"The checkpoint of step {step} could not be saved (" in told
    assert "step 9 could" not in told
    assert "there is no other yet. Training continues." in told
    assert_same_run(tmp_path / "run", finished_run)
    with checkpoint.open_run(tmp_path / "run") as checkpoints:
        assert checkpoints.steps == [9, 12]


def test_it_is_told_at_the_next_step(tiny, monkeypatch, at_save):
    """A step takes milliseconds, so the save is over by then: the next step but one would be late."""
    real, steps, listener = manifest.commit, [], Listener()

    def step(*args):
        steps.append(listener.said)
        listener.events.clear()
        return train_step(*args)

    train_step = loop.train_step
    monkeypatch.setattr(loop, "train_step", step)
    save = checkpoint.Checkpoints.save
    monkeypatch.setattr(checkpoint.Checkpoints, "save", lambda self, *rest: (save(self, *rest), self._saving[1].exception()))
    failing = [True]

    def commit(folder):
        if failing.pop() if failing else False:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(folder)

    monkeypatch.setattr(manifest, "commit", commit)
    training.train(tiny("run", "sample.tokens=0"), listener)
    assert not any("could not be saved" in told for told in steps[:4])
    assert "step 3 could not be saved ([Errno 28] No space left on device)" in steps[4]
    assert not any("could not be saved" in told for told in steps[5:])


@pytest.mark.parametrize("problem", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_read_only_disk_loses_the_saves_of_its_time_only(tiny, tmp_path, monkeypatch, at_save, problem):
    real, failing = manifest.commit, [False]

    def commit(folder):
        if failing[0]:
            raise OSError(problem, "injected")
        real(folder)

    monkeypatch.setattr(manifest, "commit", commit)
    at_save({6: lambda: failing.__setitem__(0, True), 12: lambda: failing.__setitem__(0, False)})
    listener = Listener()
    training.train(tiny("run", "sample.tokens=0"), listener)
    told = listener.said
    assert "The checkpoint of step 6 could not be saved ([Errno" in told
    assert "the newest intact one is that of step 4. Training continues." in told
    with checkpoint.open_run(tmp_path / "run") as checkpoints:
        assert checkpoints.latest == 12
    assert not [path for path in (tmp_path / "run" / checkpoint.FOLDER).iterdir() if path.name.startswith(".")]


def test_a_last_save_that_fails_ends_the_run_in_a_sentence_and_resuming_makes_up_for_it(
    tiny, tmp_path, finished_run, monkeypatch, at_save
):
    def fail(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        at_save({12: lambda: patch.setattr(manifest, "commit", fail)})
        with pytest.raises(UserError, match=r"step 12 could not be saved .* is that of step 9\. Fix this, and .*--resume"):
            training.train(tiny("run"))
    training.train(training.resume_config(tmp_path / "run"), resume=True)
    assert_same_run(tmp_path / "run", finished_run)


def test_a_run_whose_whole_folder_was_removed_goes_on_and_can_be_resumed(tiny, tmp_path, at_save):
    run = tmp_path / "run"
    at_save({6: lambda: shutil.rmtree(run)})
    training.train(tiny("run", "sample.tokens=0"), stop_after=9)
    assert training.train(training.resume_config(run), resume=True).step == 12
    with checkpoint.open_run(run) as checkpoints:
        assert {9, 12} <= set(checkpoints.steps)
    assert [line["step"] for line in metrics.read(run) if line["kind"] == "train"][-5:] == [8, 9, 10, 11, 12]


def limit_file_size():
    """From the fourth to the ninth step no file may grow beyond 3,000 bytes: checkpoints, figures and TensorBoard all meet it.

    So does the log. Each save ends before the next step, or one that the limit meets half done would fill the log.
    """
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    train_step, calls = loop.train_step, [0]

    def call(*args):
        calls[0] += 1
        if calls[0] == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, hard))
        if calls[0] == 9:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        return train_step(*args)

    save = checkpoint.Checkpoints.save
    checkpoint.Checkpoints.save = lambda self, *rest: (save(self, *rest), self._saving[1].exception())
    loop.train_step = call


def test_a_disk_that_takes_no_more_and_then_does_loses_nothing_in_the_end(tmp_path):
    """In a real process, whose writing the kernel refuses."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "corpus.txt").write_text("".join(f"{i * i % 97} is {i % 7} and {i % 5}, " for i in range(400)))
    settings = [f"data.path={tmp_path}/corpus.txt", f"run.directory={tmp_path}/run", "sample.tokens=0"]
    words = [word for setting in settings for word in ("--set", setting)]
    process = Training(["--config", tmp_path / "tiny.yaml", *words], tmp_path / "log", tmp_path / "compiled", limit_file_size)
    assert process.wait() == 0, process.said
    assert "The checkpoint of step 6 could not be saved (" in process.said
    assert "could not be written" in process.said
    assert "Traceback" not in process.said
    step, leaves = saved_leaves(tmp_path / "run")
    assert step == 12
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    lines = metrics.read(tmp_path / "run")
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 13))
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [4, 8, 12]
