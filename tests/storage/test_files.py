"""Writing leaves the old or the new, whatever fails and whoever is killed, and the new is on the disk before it is seen."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lior_jax.storage import arrays, files, manifest, snapshot

ROOT = Path(__file__).parents[2]

STEPS = ("fsync", "replace", "rename", "chmod")
"""System calls of writing, each of which may fail."""


def text(path):
    files.write_atomically(path, "new\n")


def weights(path):
    arrays.write(path, {"a": np.arange(3)})


def folder(path):
    with files.replacing_folder(path) as unfinished:
        (unfinished / "deep").mkdir()
        (unfinished / "deep" / "new").write_text("new\n")


def content(path):
    """All that lies under a name, and the names beside it."""
    below = {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return path.is_dir(), below or (path.is_file() and path.read_bytes()), sorted(other.name for other in path.parent.iterdir())


@pytest.fixture(params=[text, weights, folder])
def write(request):
    return request.param


def begin(write, path):
    """The old one, in the place of which is written."""
    if write is folder:
        path.mkdir()
        (path / "old").write_text("old\n")
    else:
        path.write_text("old\n")
    return content(path)


class Calls:
    """Calls of the system that writing makes, in order; the one of a number is refused."""

    def __init__(self, monkeypatch, refused=None):
        self.made, self.refused = [], refused
        for name in STEPS:
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name, real):
        def call(target, *rest, **options):
            self.made.append((name, os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)))
            if len(self.made) - 1 == self.refused:
                raise OSError(28, "No space left on device")
            return real(target, *rest, **options)

        return call


def test_whichever_call_is_refused_the_old_or_the_new_is_there_and_nothing_beside_it(write, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        begin(write, tmp_path / "counted")
        calls = Calls(patch)
        write(tmp_path / "counted")
    new = content(tmp_path / "counted")[1]
    for refused in range(len(calls.made)):
        place = tmp_path / str(refused)
        place.mkdir()
        old = begin(write, place / "it")[1]
        with monkeypatch.context() as patch:
            Calls(patch, refused)
            with pytest.raises(Exception, match="No space left"):
                write(place / "it")
        _, left, names = content(place / "it")
        assert left in (old, new)
        assert names == ["it"]
        # The flushing of the names, after all has been renamed, comes last.
        assert (left == new) == (refused == len(calls.made) - 1)


def test_all_is_on_the_disk_before_it_is_renamed_and_the_renaming_afterwards(write, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        calls = Calls(patch)
        write(tmp_path / "it")
    names = [name for name, _ in calls.made]
    (moved,) = [at for at, name in enumerate(names) if name in ("replace", "rename")]
    flushed = [Path(path).name for name, path in calls.made[:moved] if name == "fsync"]
    expected = {"new", "deep", f"{files.SAVING}it"} if write is folder else {Path(calls.made[moved][1]).name}
    assert set(flushed) == expected
    assert calls.made[moved + 1 :] == [("fsync", str(tmp_path))]


def test_an_error_of_whoever_writes_leaves_the_old(tmp_path):
    for replacing in (files.replacing_file, files.replacing_folder):
        with pytest.raises(ZeroDivisionError), replacing(tmp_path / "it"):
            raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


KILLED = """
import os, sys
from pathlib import Path
from lior_jax.storage import files
real = os.rename
def rename(*names):
    real(*names)
    os._exit(9)  # between the two renamings
os.rename = rename
with files.replacing_folder(Path(sys.argv[1])) as unfinished:
    (unfinished / "new").touch()
"""


def test_a_folder_moved_away_by_a_writer_that_was_killed_is_put_back_by_the_next(tmp_path):
    begin(folder, tmp_path / "it")
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path / "it"], cwd=ROOT, check=False).returncode == 9
    assert not (tmp_path / "it").exists()
    files.tidy(tmp_path, "other")
    assert not (tmp_path / "it").exists()
    files.tidy(tmp_path, "it")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["it", "old"]
    folder(tmp_path / "it")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "it", "new"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with files.replacing_file(tmp_path / "it") as one, files.replacing_file(tmp_path / "it") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "it").read_text() == "one"  # whose block ended last
    assert len(list(tmp_path.iterdir())) == 1


def test_a_system_without_what_posix_alone_has_writes_and_reads_all_the_same(tmp_path, monkeypatch):
    """As on Windows: folders cannot be opened, only what is open for writing is flushed, and no room can be reserved."""
    opened, fsync = os.open, os.fsync

    def no_folder(path, *rest, **options):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest, **options)

    def writable_only(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", no_folder)
        patch.setattr(os, "fsync", writable_only)
        patch.delattr(os, "O_DIRECTORY")
        patch.delattr(os, "posix_fallocate")
        text(tmp_path / "text")
        weights(tmp_path / "weights")
        folder(tmp_path / "folder")
        with files.replacing_folder(tmp_path / "snapshot") as unfinished:
            snapshot.fill(unfinished, {}, {"step": 1})
        monkeypatch.setattr(snapshot, "_BESIDE", 2**62)
        with pytest.raises(OSError, match="No space left"):
            snapshot.write(tmp_path / "large", {}, {})
    assert (tmp_path / "text").read_bytes() == b"new\n"
    assert list(arrays.read(tmp_path / "weights")[0]) == ["a"]
    assert manifest.damage(tmp_path / "snapshot") is None
    assert not (tmp_path / "large").exists()
