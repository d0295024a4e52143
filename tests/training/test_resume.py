"""Resuming: under which configuration, on which corpus, by how many processes, and from which checkpoint."""

import json
import math
import re
import shutil

import jax
import numpy as np
import pytest
import yaml

from lior_jax import config as configuration
from lior_jax import data, training
from lior_jax.errors import UserError
from lior_jax.inference import Engine
from lior_jax.storage import checkpoint, files, lock
from lior_jax.training import bad_steps, environment, events, metrics, run_folder
from lior_jax.training.step import initial_state
from tests.runs import Listener
from tests.training.test_loop import figures, saved_leaves


def assert_same_run(run, other):
    """Parameters, optimiser state, figures and samples, bit for bit."""
    (step, leaves), (expected_step, expected) = saved_leaves(run), saved_leaves(other)
    assert step == expected_step
    for leaf, once in zip(leaves, expected, strict=True):
        np.testing.assert_array_equal(leaf, once)
    assert figures(run) == figures(other)


@pytest.fixture
def copy(finished_run, tmp_path):
    """A finished run to do with as one likes."""
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


def record(run):
    return yaml.safe_load((run / run_folder.RECORD).read_text())


@pytest.mark.slow
def test_keys_that_change_no_step_are_changed_without_force_and_stay_changed(tiny, tmp_path):
    training.train(tiny("run"), stop_after=3)
    run = tmp_path / "run"
    changes = ["training.log_every=3", "training.save_every=5", "training.keep=1", "sample.tokens=2", "training.patience=9"]
    training.train(training.resume_config(run, changes), resume=True)
    assert [line["step"] for line in figures(run) if line["kind"] == "train"] == [1, 2, 3, 6, 9, 12]
    assert record(run)["training"]["log_every"] == 3
    training.train(training.resume_config(run), resume=True)


def test_muon_with_an_average_resumes_bit_for_bit_and_its_checkpoints_hold_the_average(tiny, tmp_path):
    changes = ["optimizer.name=muon", "optimizer.average=0.9", "optimizer.schedule=warmup_stable_decay"]
    changes += ["optimizer.weight_decay_schedule=linear", "optimizer.adam_learning_rate=1e-3"]
    training.train(tiny("once", *changes))
    training.train(tiny("twice", *changes), stop_after=7)
    training.train(training.resume_config(tmp_path / "twice"), resume=True)
    assert_same_run(tmp_path / "twice", tmp_path / "once")
    with checkpoint.open_run(tmp_path / "once") as checkpoints:
        config = training.resume_config(tmp_path / "once")
        like = checkpoint.abstract(lambda key: initial_state(key, config), jax.random.key(0))
        average, stored = checkpoints.params(12, like.weights), checkpoints.optimizer(12, like.optimizer)
    assert np.abs(average.embedding - stored["params"].embedding).max() > 1e-4
    np.testing.assert_array_equal(Engine.from_checkpoint(tmp_path / "once", 12).params.embedding, average.embedding)


def cosine(step, steps, peak=5e-3, warmup=2, final=0.05):
    """Learning rate after a step, by the schedule's formula."""
    return peak * (final + (1 - final) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2)


def contents(run):
    """Every file's bytes and when it was written."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_run_is_made_longer_and_shorter_by_its_steps(tiny, tmp_path):
    """The rest of it has the learning rates of the new length, said beforehand; no step is counted twice."""
    training.train(tiny("run", "sample.tokens=0"), stop_after=6)
    run, listener = tmp_path / "run", Listener()
    training.train(training.resume_config(run, ["training.steps=20"]), listener, resume=True, stop_after=8)
    (told,) = listener.of(events.Rescheduled)
    assert (told.rate_before, told.rate) == (pytest.approx(cosine(6, 12)), pytest.approx(cosine(6, 20)))
    assert f"20 steps instead of 12: the learning rate after step 6 is {told.rate:.3g} where it would" in listener.said
    summary = training.train(training.resume_config(run, ["training.steps=11"]), listener, resume=True)
    assert summary.step == 11
    assert "11 steps instead of 20" in listener.said
    rates = {line["step"]: line["learning_rate"] for line in figures(run) if line["kind"] == "train"}
    assert list(rates) == list(range(1, 12))
    for step, length in ((5, 12), (6, 20), (7, 20), (8, 11), (10, 11)):
        assert rates[step + 1] == pytest.approx(cosine(step, length), rel=1e-5)
    assert [line["step"] for line in figures(run) if line["kind"] == "validation"] == [4, 8, 11]
    with pytest.raises(UserError, match=r"training\.steps: .* has reached step 11, beyond 10; give 11 or more.*--init-from"):
        training.train(training.resume_config(run, ["training.steps=10"]), resume=True)
    assert record(run)["training"]["steps"] == 11


def test_a_run_that_is_cut_to_the_step_it_has_reached_is_evaluated_there(tiny, tmp_path):
    training.train(tiny("run", "sample.tokens=0"), stop_after=6)
    run = tmp_path / "run"
    for _ in range(2):
        assert training.train(training.resume_config(run, ["training.steps=6"]), resume=True).step == 6
        assert [line["step"] for line in figures(run) if line["kind"] == "validation"] == [4, 6]


def test_nothing_of_a_finished_run_is_written_again(copy):
    before, listener = contents(copy), Listener()
    summary = training.train(training.resume_config(copy), listener, resume=True)
    assert contents(copy) == before
    assert summary._asdict() | {"directory": None} == {
        **{name: json.loads((copy / "summary.json").read_text())[name] for name in summary._fields},
        "directory": None,
    }
    assert "is finished at step 12; nothing was changed. To train further, use --set training.steps=N." in listener.said
    # Without its summary there is something to do.
    (copy / "summary.json").unlink()
    assert training.train(training.resume_config(copy), resume=True).nats_per_character == summary.nats_per_character
    assert (copy / "summary.json").is_file()


@pytest.mark.parametrize("key", sorted({*run_folder.FREE, run_folder.LENGTH}))
def test_free_keys_exist(key):
    section, name = key.split(".")
    assert name in configuration.Config().model_dump()[section]


@pytest.mark.slow
def test_a_changed_run_is_stopped_with_its_keys_and_goes_on_by_force(tiny, tmp_path):
    training.train(tiny("run"), stop_after=6)
    run, before = tmp_path / "run", saved_leaves(tmp_path / "run")
    changed = training.resume_config(run, ["optimizer.clip_norm=0.5", "training.log_every=2"])
    with pytest.raises(UserError, match=r"optimizer\.clip_norm: 1\.0 → 0\.5\).*--force") as raised:
        training.train(changed, resume=True)
    assert "log_every" not in str(raised.value)
    assert record(run)["optimizer"]["clip_norm"] == 1.0
    assert saved_leaves(run)[0] == before[0]
    training.train(changed, resume=True, force=True, stop_after=6)
    # It is that run from now on: nothing more is asked, though no step was made.
    assert training.train(training.resume_config(run), resume=True).step == 12
    assert record(run)["optimizer"]["clip_norm"] == 0.5


def test_not_even_force_changes_the_shapes(copy):
    with pytest.raises(UserError, match=r"Even with --force .*model\.width: 16 → 32.*start a new run"):
        training.train(training.resume_config(copy, ["model.width=32"]), resume=True, force=True)
    assert record(copy)["model"]["width"] == 16


def test_another_corpus_needs_force_and_the_same_characters(tiny, tmp_path):
    config = tiny("run", "training.steps=4", "training.eval_every=2")
    training.train(config, stop_after=3)
    corpus = tmp_path / "corpus.txt"
    text = corpus.read_text()
    corpus.write_text(text.replace("is 3", "is 4"))
    with pytest.raises(UserError, match=r"is not the corpus that .*--force"):
        training.train(config, resume=True)
    corpus.write_text(text.replace("is 3", "is @"))
    with pytest.raises(UserError, match="The character '@' is not among"):
        training.train(config, resume=True, force=True)
    corpus.write_text(text.replace("is 3", "is 4"))
    assert training.train(config, resume=True, force=True).step == 4
    assert training.train(config, resume=True).step == 4


def test_a_corpus_that_was_moved_is_the_same_corpus(tiny, tmp_path):
    training.train(tiny("run", "training.steps=4", "sample.tokens=0"), stop_after=2)
    (tmp_path / "corpus.txt").rename(tmp_path / "moved.txt")
    config = training.resume_config(tmp_path / "run", [f"data.path={tmp_path}/moved.txt"])
    assert training.train(config, resume=True).step == 4


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/dev/null", "run.directory: /dev/null is a device; choose a folder"),
        ("corpus.txt", "corpus.txt is a file; choose a folder"),
        ("corpus.txt/run", r"cannot be written to \(Not a directory\)"),
        ("x" * 300, r"cannot be written to \(File name too long\)"),
    ],
)
def test_paths_where_no_run_can_be_are_told(tiny, tmp_path, monkeypatch, path, message):
    config = tiny("unused")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        training.train(configuration.replace(config, "run", directory=path))


def test_one_process_writes_a_run(copy, tiny, tmp_path):
    with lock.held(copy), pytest.raises(UserError, match=r"is being written by process \d+ on .*; wait for it"):
        training.train(training.resume_config(copy, ["training.steps=13"]), resume=True)
    (tmp_path / "new").mkdir()
    with lock.held(tmp_path / "new"), pytest.raises(UserError, match="is being written by"):
        training.train(tiny("new"))
    # The file that is left does not keep anyone from starting.
    assert training.train(tiny("new", "training.steps=3", "sample.tokens=0")).step == 3


def test_a_start_that_was_killed_leaves_a_folder_that_one_may_start_in(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / lock.FILE).touch()
    (tmp_path / "run" / lock.HOLDER).write_text("process 1 on earth\n")
    (tmp_path / "run" / f"{files.SAVING}0123abcd-{run_folder.RECORD}").write_text("run:")
    assert training.train(tiny("run", "training.steps=3", "sample.tokens=0")).step == 3


@pytest.mark.parametrize("reached", [0, 5])
def test_after_a_run_that_failed_before_its_first_save_the_same_command_starts_it(tiny, tmp_path, monkeypatch, reached):
    """Whatever step it failed at: what it wrote down is written anew."""
    config = tiny("run", "training.save_every=12", "training.eval_every=12", "sample.tokens=0")
    batch_at = data.batch_at

    def fail(tokens, seed, step, *shape):
        if step == reached:
            raise RuntimeError("as a device does that has no memory left")
        return batch_at(tokens, seed, step, *shape)

    with monkeypatch.context() as patch:
        patch.setattr(data, "batch_at", fail)
        with pytest.raises(RuntimeError):
            training.train(config)
    assert (tmp_path / "run" / run_folder.RECORD).is_file()
    (tmp_path / "run" / checkpoint.FOLDER / ".saving-6").mkdir(parents=True, exist_ok=True)
    (tmp_path / "run" / bad_steps.FOLDER / "3").mkdir(parents=True)
    (tmp_path / "run" / "tensorboard").mkdir(exist_ok=True)
    (tmp_path / "run" / "tensorboard" / "events.of.before").touch()
    assert training.train(config).step == 12
    assert not (tmp_path / "run" / bad_steps.FOLDER).exists()
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    assert [session["to_step"] for session in environment.read(tmp_path / "run")] == [12]
    assert [line["step"] for line in metrics.read(tmp_path / "run") if line["kind"] == "train"] == list(range(1, 13))


@pytest.mark.parametrize(
    "kept", ["notes.txt", "config.yaml", "metrics.jsonl", "checkpoints/12/record.json", "checkpoints/damaged-3/x"]
)
def test_nothing_that_is_worth_keeping_is_in_a_vacant_folder(tiny, tmp_path, kept):
    """What is the user's, a configuration under the record's name, figures without a lock, any checkpoint."""
    file = tmp_path / "run" / kept
    file.parent.mkdir(parents=True)
    file.write_text("mine: {}")
    if kept != "metrics.jsonl":
        (tmp_path / "run" / lock.FILE).touch()
    said = "already holds a run" if "checkpoints" in kept else f"run contains {kept}, not written by a run"
    with pytest.raises(UserError, match=re.escape(said)):
        training.train(tiny("run"))
    assert file.read_text() == "mine: {}"


def test_a_lost_record_is_found_in_the_checkpoints(copy):
    with_record = training.resume_config(copy)
    (copy / run_folder.RECORD).unlink()
    config = training.resume_config(copy)
    assert config == with_record
    assert training.train(config, resume=True).step == 12
    assert (copy / run_folder.RECORD).is_file()


def test_damaged_checkpoints_are_put_aside_so_that_later_ones_are_kept(copy):
    """With the damaged checkpoint of step 12 still counted as the latest, those of steps before it would be removed."""
    newest = copy / checkpoint.FOLDER / "12" / "record.json"
    newest.write_bytes(newest.read_bytes().replace(b'"corpus"', b'"c0rpus"'))
    config, listener = training.resume_config(copy, ["training.keep=1", "training.save_every=1"]), Listener()
    training.train(config, listener, resume=True, stop_after=11)
    assert "The checkpoint of step 12 is damaged (record.json has changed); using that of step 9 instead." in listener.said
    with checkpoint.open_run(copy) as checkpoints:
        assert checkpoints.latest == 11
    assert (copy / checkpoint.FOLDER / "damaged-12" / "record.json").is_file()
