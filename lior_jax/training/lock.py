"""One writer per run folder: a lock that the kernel holds for a process and takes back when it dies, however it dies."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lior_jax.errors import UserError

FILE = "lock"


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold the lock of a run's folder.

    The file stays when the lock is gone; it says who wrote last. Raises `UserError` if another process is writing.
    """
    with (run / FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{run} is being written by {holder}; wait for it, or choose another run.directory.") from None
        except OSError as problem:
            raise UserError(f"{run} cannot be locked ({problem.strerror}); put run.directory on a local disk.") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
