"""One writer per run folder: a lock that the operating system holds for a process and releases however it ends."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from lior_jax.errors import UserError
from lior_jax.storage import files

FILE = "lock"
HOLDER = "lock.holder"
"""Names the last writer; separate from the lock, because Windows does not allow reading a locked file."""


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold the lock of a run's folder.

    The files remain after the lock is released and have no effect. Raises `UserError` if another process is writing.
    """
    # The file is kept on Windows too; a lock by mere existence of the file would outlive a killed process.
    lock = FileLock(run / FILE, timeout=0, preserve_lock_file=True)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{run} is being written by {_holder(run)}; wait for it, or choose another run.directory.") from None
    except OSError as problem:
        raise UserError(f"{run} cannot be locked ({problem.strerror}); put run.directory on a local disk.") from None
    with _holding(lock, run):
        yield


@contextmanager
def turn(folder: Path, waiting: Callable[[str], object]) -> Iterator[None]:
    """Hold the lock of a folder, waiting for it if necessary.

    Args:
        waiting: called every second while another process holds the lock, with its name; may raise to stop waiting.

    Raises:
        OSError: the folder cannot be locked.
    """
    lock = FileLock(folder / FILE, timeout=1, preserve_lock_file=True)
    while not lock.is_locked:
        try:
            lock.acquire()
        except Timeout:
            waiting(_holder(folder))
    with _holding(lock, folder):
        yield


@contextmanager
def _holding(lock: BaseFileLock, folder: Path) -> Iterator[None]:
    """Record the holder of the acquired lock, and release it at the end."""
    try:
        files.write_atomically(folder / HOLDER, f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        lock.release()


def _holder(run: Path) -> str:
    with suppress(OSError):
        return (run / HOLDER).read_text(encoding="utf-8").strip()
    return "another process"
