"""The record of what a run was trained with: one entry for each session, whatever became of it."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import jax
import pytest

from lior_jax.errors import UserError
from lior_jax.training import environment


def git(folder, *arguments):
    identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in a repository of its own."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    folder = tmp_path / "repository" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("one = 1\n")
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "-qm", "Begin")
    return folder


def test_every_session_has_its_own_entry_and_times(tmp_path):
    assert environment.read(tmp_path) == []
    environment.end(tmp_path, 3)  # nothing began: nothing to note
    assert environment.read(tmp_path) == []
    environment.begin(tmp_path, 0, {"command": ["train.py"]})
    environment.end(tmp_path, 7)
    environment.begin(tmp_path, 7, {"command": ["train.py", "--resume", "ü"]})
    first, second = environment.read(tmp_path)
    begin, end = (datetime.fromisoformat(first[key]) for key in ("begin", "end"))
    assert timedelta(0) <= end - begin < timedelta(minutes=1)
    assert abs(datetime.now(UTC) - begin) < timedelta(minutes=1)
    assert (first["from_step"], first["to_step"], first["command"]) == (0, 7, ["train.py"])
    assert (second["from_step"], second["to_step"], second["end"]) == (7, None, None)
    assert second["command"][-1] == "ü"
    environment.end(tmp_path, 9)
    assert environment.read(tmp_path)[0] == first
    assert environment.read(tmp_path)[1]["to_step"] == 9
    assert [path.name for path in tmp_path.iterdir()] == [environment.FILE]


def test_what_is_recorded_is_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", "some.yaml"])
    monkeypatch.setenv("JAX_SOMETHING", "1")
    environment.begin(tmp_path, 0)
    (session,) = environment.read(tmp_path)
    assert session["command"] == ["train.py", "--config", "some.yaml"]
    assert session["variables"]["JAX_SOMETHING"] == "1"
    assert session["packages"]["jax"] == jax.__version__
    assert session["host"]["cores"] >= 1
    assert session["host"]["memory_bytes"] > 2**28
    assert sum(session["devices"].values()) == jax.device_count()
    assert all(name.startswith(("cpu", "gpu")) for name in session["devices"])


def test_the_commit_says_whether_anything_was_changed(package):
    name = git(package, "rev-parse", "HEAD")
    assert environment.commit(package) == {"commit": name, "clean": True}
    (package / "__init__.py").write_text("one = 2\n")
    assert environment.commit(package) == {"commit": name, "clean": False}


def test_a_repository_around_an_installed_package_is_not_its_own(package):
    (package / ".gitignore").write_text(".venv\n")
    installed = package / ".venv" / "lior_jax"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    assert environment.commit(installed) is None


def test_no_repository_and_no_git_are_no_fault(tmp_path, package, monkeypatch):
    (tmp_path / "__init__.py").touch()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.commit(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert environment.commit(package) is None


@pytest.mark.parametrize("text", ["", "[]", '{"sessions": [3]}', '{"sessions": [{"end": null}]}', "{", '{"sessions": null}'])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / environment.FILE).write_text(text)
    with pytest.raises(UserError, match="is damaged; repair or remove it"):
        environment.begin(tmp_path, 0, {})
    assert (tmp_path / environment.FILE).read_text() == text


def test_a_disk_that_is_full_leaves_the_record_as_it_was(tmp_path, monkeypatch):
    environment.begin(tmp_path, 0, {})
    before = (tmp_path / environment.FILE).read_text()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        environment.end(tmp_path, 3)
    assert (tmp_path / environment.FILE).read_text() == before
    assert json.loads(before)["sessions"][0]["end"] is None


def test_a_session_is_recorded_however_it_ends(tmp_path):
    said, seen = [], []

    def session_that_is_stopped():
        with environment.recorded(tmp_path, 3, lambda: 5, said.append):
            seen.extend(environment.read(tmp_path))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session_that_is_stopped()
    assert [one["end"] for one in seen] == [None]
    (session,) = environment.read(tmp_path)
    assert (session["from_step"], session["to_step"]) == (3, 5)
    assert session["end"]
    assert said == []


def test_a_record_that_cannot_be_kept_ends_no_session(tmp_path):
    (tmp_path / environment.FILE).write_text("{")
    said = []
    with environment.recorded(tmp_path, 0, lambda: 1, said.append):
        pass
    assert len(said) == 1
    assert "could not be recorded" in said[0]
    assert (tmp_path / environment.FILE).read_text() == "{"
    with environment.recorded(tmp_path / "none", 0, lambda: 1, said.append):
        pass
    assert len(said) == 2
