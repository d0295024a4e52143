"""Checkpoints: what is kept, what comes back, and what a damaged one says."""

import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax.errors import UserError
from lior_jax.inference import Engine
from lior_jax.storage import checkpoint, files, snapshot

# Arrays of size zero too: a metric without rotors has no angles.
PARAMS = {
    "a": np.arange(6.0, dtype=np.float32).reshape(2, 3),
    "b": (np.float32(2.5), np.arange(3)),
    "c": np.zeros((0, 3), np.float32),
}
LIKE = checkpoint.abstract(lambda: jax.tree.map(jnp.asarray, PARAMS))


def save(run, losses, keep, keep_every=None):
    with checkpoint.Checkpoints(run, keep, keep_every) as checkpoints:
        for step, loss in losses.items():
            tree = jax.tree.map(lambda x, step=step: jnp.asarray(x) + step, PARAMS)
            checkpoints.save(step, tree, {"count": jnp.asarray(step)}, checkpoint.Metadata({"step": step}, {}, "x"), loss)
            checkpoints.wait()


def test_latest_k_and_best_are_kept(tmp_path):
    save(tmp_path, {1: 3.0, 2: 1.0, 3: None, 4: 2.0, 5: None, 6: 2.5}, keep=2)
    with checkpoint.open_run(tmp_path) as checkpoints:
        assert checkpoints.steps == [2, 5, 6]
        assert (checkpoints.latest, checkpoints.best) == (6, 2)


def test_latest_k_every_nth_and_best_are_kept(tmp_path):
    save(tmp_path, {1: 3.0, 2: 1.0, 3: None, 4: 2.0, 5: None, 6: 2.5, 7: 1.0, 8: None, 9: None}, keep=1, keep_every=4)
    with checkpoint.open_run(tmp_path) as checkpoints:
        # Of two equally good ones the later is the best.
        assert checkpoints.steps == [4, 7, 8, 9]
        assert (checkpoints.latest, checkpoints.best) == (9, 7)


def test_saving_runs_beside_training_and_is_waited_for_at_the_end(tmp_path, monkeypatch):
    """What is saved is the state as it was, whatever becomes of its memory meanwhile."""
    go, write = threading.Event(), snapshot.write
    monkeypatch.setattr(snapshot, "write", lambda *args: (go.wait(30), write(*args)))
    with checkpoint.Checkpoints(tmp_path, 2) as checkpoints:
        array = np.arange(3, dtype=np.float32)
        checkpoints.save(1, {"a": array}, {"count": jnp.asarray(0)}, checkpoint.Metadata({}, {}, "x"), None)
        assert checkpoints.steps == []
        assert checkpoints.complaints() == []
        array += 1
        threading.Timer(0.1, go.set).start()
    assert checkpoints.steps == [1]
    saved = checkpoints.params(1, checkpoint.abstract(lambda: {"a": jnp.zeros(3)}))
    np.testing.assert_array_equal(saved["a"], np.arange(3.0))


def test_what_a_killed_writer_leaves_is_tidied_and_what_it_was_replacing_is_put_back(tmp_path):
    save(tmp_path, {1: 1.0, 2: 2.0}, keep=2)
    folder = tmp_path / checkpoint.FOLDER
    (folder / "2").rename(folder / f"{files.REPLACED}2")
    shutil.copytree(folder / "1", folder / f"{files.SAVING}2")
    shutil.copytree(folder / "1", folder / f"{files.REPLACED}1")
    with checkpoint.Checkpoints(tmp_path, 2) as checkpoints:
        assert checkpoints.steps == [1, 2]
        assert checkpoints.metadata(2).config == {"step": 2}
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_bfloat16_comes_back_too(tmp_path):
    tree = {"a": jnp.asarray([1.5, -2.0, 3e38], jnp.bfloat16)}
    with checkpoint.Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(1, tree, {"count": jnp.asarray(0)}, checkpoint.Metadata({}, {}, "x"), None)
    restored = checkpoints.params(1, checkpoint.abstract(lambda: tree))
    assert restored["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(restored["a"], tree["a"])


@pytest.mark.parametrize("like", [{"a": jnp.zeros((3, 2))}, {"a": jnp.zeros((2, 3), jnp.int32)}, {"z": jnp.zeros((2, 3))}])
def test_arrays_that_are_not_those_of_the_program_are_told(tmp_path, like):
    save(tmp_path, {1: 1.0}, keep=1)
    with checkpoint.open_run(tmp_path) as checkpoints, pytest.raises(UserError, match=r"another version \(params: "):
        checkpoints.params(1, checkpoint.abstract(lambda: like))


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
    save(tmp_path, {7: 1.0}, keep=1)
    with checkpoint.open_run(tmp_path) as checkpoints:
        params = checkpoints.params(7, LIKE)
        assert checkpoints.metadata(7) == checkpoint.Metadata({"step": 7}, {}, "x")
        assert checkpoints.optimizer(7, checkpoint.abstract(lambda: {"count": jnp.asarray(0)}))["count"] == 7
    assert jax.tree.structure(params) == jax.tree.structure(PARAMS)
    for restored, original in zip(jax.tree.leaves(params), jax.tree.leaves(PARAMS), strict=True):
        np.testing.assert_array_equal(restored, original + 7)


def test_reading_a_run_writes_nothing(tmp_path):
    save(tmp_path, {1: 1.0, 2: 2.0}, keep=2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with checkpoint.open_run(tmp_path) as checkpoints:
        checkpoints.params(1, LIKE)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("damage", ["delete", "truncate"])
def test_a_damaged_checkpoint_is_told_in_one_sentence(finished_run, tmp_path, damage):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    with checkpoint.open_run(run) as checkpoints:
        latest = checkpoints.latest
    for file in (run / checkpoint.FOLDER / str(latest) / "params").rglob("*"):
        if file.is_file():
            file.unlink() if damage == "delete" else file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=f"step {latest} in .* is damaged") as raised:
        Engine.from_checkpoint(run, step=latest)
    assert "\n" not in str(raised.value)
    assert Engine.from_checkpoint(finished_run, step=latest).generate("1", max_tokens=1)
