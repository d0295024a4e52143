"""Real training processes for the tests: `train.py` in a process of its own, started in a moment.

A fork server has imported everything once; each child is forked from it and runs `train.main` with its own arguments,
standard output and error in a file. Programs that were compiled once are found in a folder that the children share.
"""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

# The fork server begins to import before it is told where from.
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["lior_jax.training.dry_run", "lior_jax.cli.progress", "lior_jax.analysis.plots", "scipy.linalg"]
)

# Starting one process asks after all others, and two threads that ask after the same one take its exit status from each other.
_lock = threading.Lock()


class Training:
    """A running `train.py`.

    Args:
        arguments: of the command line.
        log: file for what it says.
        compiled: folder for compiled programs.
        prepare: called in the process before it begins.
    """

    def __init__(self, arguments: list[object], log: Path, compiled: Path, prepare: Callable[[], object] | None = None):
        self.log = log
        self._process = _context.Process(target=_main, args=([str(word) for word in arguments], log, compiled, prepare))
        with _lock:
            self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def runs(self) -> bool:
        with _lock:
            return self._process.is_alive()

    def wait(self, seconds: float = 120) -> int:
        """The exit status; negative for the signal that killed it."""
        end = time.monotonic() + seconds
        while self.runs:
            assert time.monotonic() < end, self.said
            time.sleep(0.005)
        return self._process.exitcode

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def _main(arguments: list[str], log: Path, compiled: Path, prepare: Callable[[], object] | None) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    import jax

    jax.config.update("jax_compilation_cache_dir", str(compiled))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    sys.argv = ["train.py", *arguments]
    import train

    if prepare:
        prepare()
    train.main()
