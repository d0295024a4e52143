"""One writer per run folder: a lock that the operating system holds for a process, and takes back however that dies."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lior_jax.errors import UserError
from lior_jax.storage import files

FILE = "lock"
HOLDER = "lock.holder"
"""Says who wrote last; beside the lock, because Windows lets nobody read what is locked."""


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold the lock of a run's folder.

    The files stay when the lock is gone, and keep nobody out. Raises `UserError` if another process is writing.
    """
    # No lock that consists in a file being there: it would outlive a process that was killed.
    lock = FileLock(run / FILE, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{run} is being written by {_holder(run)}; wait for it, or choose another run.directory.") from None
    except OSError as problem:
        raise UserError(f"{run} cannot be locked ({problem.strerror}); put run.directory on a local disk.") from None
    try:
        files.write_atomically(run / HOLDER, f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        lock.release()


def is_left_behind(name: str) -> bool:
    """Whether a file of this name is what a start leaves in a run's folder that was killed before it wrote anything else."""
    return name in (FILE, HOLDER) or name.startswith(files.SAVING)


def _holder(run: Path) -> str:
    with suppress(OSError):
        return (run / HOLDER).read_text(encoding="utf-8").strip()
    return "another process"
