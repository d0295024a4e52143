"""Reading only what is a file, and writing so that a crash leaves either the old text or the new one."""

import os
import stat
from pathlib import Path

from lior_jax.errors import UserError

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
    """Replace a file's text at once, by renaming a finished copy over it. Raises `OSError`."""
    copy = path.with_name(f".{path.name}.new")
    with copy.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    copy.replace(path)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk, without which a power cut may undo a renaming."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
