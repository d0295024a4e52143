"""Reading of regular files only, and atomic writing: to a temporary name, flushed to disk, then renamed into place.

If the process is killed or the power fails at any time, the final name refers to the complete old or the complete new contents.
Replacing a folder needs two renames; `tidy` restores a folder moved away by a writer that was killed between them.

On Windows a folder cannot be flushed: there a power failure, and nothing else, can undo the last rename.
"""

import glob
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lior_jax.errors import UserError

SAVING = ".saving-"
"""Name prefix of files and folders being written or removed."""
REPLACED = ".replaced-"
"""Name prefix of a folder while it is being replaced."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def kind(path: Path) -> str | None:
    """The kind of a path that is not a regular file: `a folder`, `a device` and so on; None for a file. Raises `OSError`."""
    mode = os.stat(path).st_mode
    return next((name for is_kind, name in _KINDS if is_kind(mode)), None)


def read(path: Path, name: str) -> bytes:
    """The bytes of a regular file. Devices and pipes are refused, since reading them may never end.

    Args:
        name: description of the file, to start a sentence with.

    Raises:
        UserError: not a regular file.
        OSError: missing or unreadable.
    """
    other = kind(path)
    if other:
        raise UserError(f"{name} {path} is {other}, not a file; give the path of a file.")
    return path.read_bytes()


def write_atomically(path: Path, text: str) -> None:
    """Write a file of UTF-8 text, replacing an existing one. Raises `OSError`, leaving an existing file unchanged."""
    with replacing_file(path) as unfinished:
        unfinished.write_bytes(text.encode("utf-8"))


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Context manager: an empty file to write to, which replaces `path` when the block ends without an exception.

    The temporary name is unique, so independent writers do not collide.

    Raises:
        OSError: from renaming. On any exception, `path` is unchanged.
    """
    unfinished = path.with_name(f"{SAVING}{secrets.token_hex(4)}-{path.name}")
    unfinished.touch(exist_ok=False)
    try:
        mode = unfinished.stat().st_mode
        yield unfinished
        unfinished.chmod(mode)  # some libraries create files that only the owner can read
        _flush_file(unfinished)
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
    _flush_folder(path.parent)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Context manager: an empty folder to fill, which replaces `folder` when the block ends without an exception.

    Only one process at a time may write a folder of that name.

    Raises:
        OSError: from creating, flushing and renaming. On any exception, `folder` is unchanged.
    """
    saving, replaced = (folder.with_name(begin + folder.name) for begin in (SAVING, REPLACED))
    tidy(folder.parent, folder.name)
    try:
        saving.mkdir(parents=True)
        yield saving
        _flush_all(saving)
        if folder.exists():
            folder.rename(replaced)
        saving.rename(folder)
        _flush_folder(folder.parent)
    finally:
        tidy(folder.parent, folder.name)


def tidy(parent: Path, name: str | None = None) -> None:
    """Remove incomplete folders that a failed or killed writer left in `parent`, and restore folders that it was replacing; for
    all folders, or for one."""
    pattern = "*" if name is None else glob.escape(name)
    for path in parent.glob(REPLACED + pattern):
        place = path.with_name(path.name.removeprefix(REPLACED))
        if not place.exists():
            path.rename(place)
    for path in [*parent.glob(SAVING + pattern), *parent.glob(REPLACED + pattern)]:
        shutil.rmtree(path, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a folder atomically: if killed on the way, all or nothing of it remains under its name. Raises `OSError`."""
    removing = folder.with_name(SAVING + folder.name)
    shutil.rmtree(removing, ignore_errors=True)
    folder.rename(removing)
    shutil.rmtree(removing, ignore_errors=True)


def _flush_all(folder: Path) -> None:
    """Flush all files and folder entries below a folder to disk."""
    for path in folder.rglob("*"):
        _flush_folder(path) if path.is_dir() else _flush_file(path)
    _flush_folder(folder)


def _flush_file(path: Path) -> None:
    with path.open("r+b") as file:  # Windows flushes only files opened for writing
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, without which a power failure can undo a rename. POSIX only: a no-op on Windows, which
    cannot open a folder."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
