"""Reading only what is a file, and the one way of writing: beside the place, to the disk, and then renamed into it.

Whatever is killed or cut off, and when, leaves under a final name either all of the old or all of the new. Two renamings
are needed to replace a folder; `tidy` puts back what a writer that was killed between them had moved away.

On Windows a folder cannot be flushed: there a power cut, and it alone, may undo the renaming that came last.
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
"""Begins the name of what is being written, or removed."""
REPLACED = ".replaced-"
"""Begins the name of a folder while a new one takes its place."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def kind(path: Path) -> str | None:
    """What a path is if it is no regular file: `a folder`, `a device` and so on; None for a file. Raises `OSError`."""
    mode = os.stat(path).st_mode
    return next((name for is_kind, name in _KINDS if is_kind(mode)), None)


def read(path: Path, name: str) -> bytes:
    """The bytes of a regular file. A device such as /dev/zero would never end, and a pipe may never begin.

    Args:
        name: what the file is, to begin a sentence with.

    Raises:
        UserError: it is no regular file.
        OSError: it is missing or cannot be read.
    """
    other = kind(path)
    if other:
        raise UserError(f"{name} {path} is {other}, not a file; give the path of a file.")
    return path.read_bytes()


def write_atomically(path: Path, text: str) -> None:
    """Write a file of UTF-8 text, in the place of one that may be there. Raises `OSError`; then the place is as it was."""
    with replacing_file(path) as unfinished:
        unfinished.write_bytes(text.encode("utf-8"))


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Give an empty file to write to, which takes the place of `path` at the end of the block, if that ends well.

    Its name is another each time, so that writers who know nothing of each other do not meet in it.

    Raises:
        OSError: of the renaming. Whatever is raised, the place is as it was.
    """
    unfinished = path.with_name(f"{SAVING}{secrets.token_hex(4)}-{path.name}")
    unfinished.touch(exist_ok=False)
    try:
        mode = unfinished.stat().st_mode
        yield unfinished
        unfinished.chmod(mode)  # some libraries let nobody else read what they write
        _flush_file(unfinished)
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
    _flush_folder(path.parent)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which takes the place of `folder` at the end of the block, if that ends well.

    Only one process at a time may write a folder of that name.

    Raises:
        OSError: of the making, flushing and renaming. Whatever is raised, the place is as it was.
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
    """Remove what a failed or killed writer of folders left half done in `parent`, and put back what was about to be
    replaced; of all folders, or of one."""
    pattern = "*" if name is None else glob.escape(name)
    for path in parent.glob(REPLACED + pattern):
        place = path.with_name(path.name.removeprefix(REPLACED))
        if not place.exists():
            path.rename(place)
    for path in [*parent.glob(SAVING + pattern), *parent.glob(REPLACED + pattern)]:
        shutil.rmtree(path, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a folder; killed on the way, it leaves the whole of it or none. Raises `OSError`."""
    removing = folder.with_name(SAVING + folder.name)
    shutil.rmtree(removing, ignore_errors=True)
    folder.rename(removing)
    shutil.rmtree(removing, ignore_errors=True)


def _flush_all(folder: Path) -> None:
    """Bring all files below a folder, and all names, to the disk."""
    for path in folder.rglob("*"):
        _flush_folder(path) if path.is_dir() else _flush_file(path)
    _flush_folder(folder)


def _flush_file(path: Path) -> None:
    with path.open("r+b") as file:  # Windows flushes only what is open for writing
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk, without which a power cut may undo a renaming. POSIX only: Windows
    cannot open a folder, and nothing is done there."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
