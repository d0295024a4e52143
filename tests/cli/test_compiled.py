"""The folder of compiled programs: where it is, whose it is, and that nothing which happens to it stops a program."""

import os
from types import SimpleNamespace

import pytest

from lior_jax.cli import compiled
from lior_jax.errors import UserError
from lior_jax.storage import cache
from tests.cli.test_programs import call


@pytest.fixture
def environment(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return monkeypatch


def keep():
    """The folder, and the settings of JAX."""
    told = {}
    folder = compiled.keep(SimpleNamespace(config=SimpleNamespace(update=told.__setitem__)))
    return folder, told


def test_the_default_is_in_the_users_cache_and_nobody_elses(environment, tmp_path):
    folder, told = keep()
    assert folder.parent == tmp_path / "xdg" / "lior_jax"
    assert told["jax_compilation_cache_dir"] == str(folder)
    assert told["jax_persistent_cache_min_compile_time_secs"] < 1
    assert folder.stat().st_mode & 0o077 == 0
    environment.setenv("XDG_CACHE_HOME", "")
    environment.setenv("HOME", str(tmp_path / "home"))
    assert keep()[0].parent == tmp_path / "home" / ".cache" / "lior_jax"


def test_another_kind_of_machine_has_another_folder(environment):
    first, _ = keep()
    environment.setattr(compiled.platform, "machine", lambda: "riscv64")
    assert keep()[0] != first


@pytest.mark.parametrize("value", ["off", "OFF", "0", ""])
def test_off_keeps_nothing(environment, value, tmp_path):
    environment.setenv(cache.VARIABLE, value)
    assert keep() == (None, {})
    assert not (tmp_path / "xdg").exists()


def test_jaxs_own_variable_goes_first(environment):
    environment.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    assert keep() == (None, {})


def test_a_folder_that_cannot_be_is_told_only_if_it_was_asked_for(environment, tmp_path):
    (tmp_path / "xdg").write_text("a file in its place")
    assert keep() == (None, {})
    environment.setenv(cache.VARIABLE, str(tmp_path / "xdg"))
    with pytest.raises(UserError, match="name another one, or off"):
        keep()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX")
def test_a_folder_of_another_user_is_not_used(environment):
    keep()
    environment.setattr(compiled.os, "getuid", lambda: 12345)
    assert keep() == (None, {})


def test_what_a_killed_process_left_half_written_is_cleared_away(environment):
    folder, _ = keep()
    for name in ("whole-cache", "whole-atime", "half-cache", "orphan-atime"):
        (folder / name).write_bytes(b"x")
    keep()
    assert {path.name for path in folder.glob("*-*")} == {"whole-cache", "whole-atime"}


def test_a_start_that_another_one_holds_up_goes_on(environment):
    """The lock is held: half-written entries are somebody's who is writing them."""
    folder, _ = keep()
    (folder / "half-cache").write_bytes(b"x")
    with compiled.FileLock(folder / ".lockfile"):
        assert keep()[0] == folder
    assert (folder / "half-cache").exists()


@pytest.mark.slow
def test_the_second_start_finds_what_the_first_compiled_though_an_entry_is_junk(finished_run, tmp_path):
    """Same text, nothing compiled anew, and an entry that is no program costs only its compilation."""
    how = ["--checkpoint", finished_run, "--prompt", "1 is", "--max-tokens", 5]
    where = {"JAX_COMPILATION_CACHE_DIR": "", cache.VARIABLE: str(tmp_path)}
    first = call("infer", *how, **where)
    assert first.returncode == 0, first.stderr
    (folder,) = tmp_path.iterdir()
    entries = sorted(folder.glob("*-cache"))
    assert entries
    second = call("infer", *how, **where)
    assert second.stdout == first.stdout
    assert sorted(folder.glob("*-cache")) == entries
    entries[0].write_bytes(b"junk")
    third = call("infer", *how, **where)
    assert (third.returncode, third.stdout) == (0, first.stdout)
