"""Ctrl-C, SIGTERM, and signals of terminals and schedulers: save and exit within ten seconds; a second one exits at once.

A Python signal handler runs only after a running computation or compilation returns, which may take minutes. Therefore the
interpreter writes each signal into a pipe immediately, and a thread that reads the pipe enforces the deadline. POSIX only: on
Windows `select` does not support pipes, so signals keep their meaning there, and Ctrl-C ends a run without saving.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

UNLESS_IGNORED = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""Signals of a closing terminal, and of a scheduler's warning before it kills; not handled where ignored, as under nohup."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, *UNLESS_IGNORED)
POSIX = os.name == "posix"
PATIENCE = 9.0
"""Seconds allowed for saving, after which the process exits with the earlier checkpoints."""
PATIENCE_TOGETHER = 25.0
"""The same with several processes; SLURM and Kubernetes kill after 30."""


class StoppedError(Exception):
    """The run was asked to stop, and did. `status` is the exit status: 128 plus the signal's number, as in shells."""

    def __init__(self, number: int, problem: str = ""):
        super().__init__(problem)
        self.status = 128 + number


class NotBegunError(StoppedError):
    """The run was asked to stop before it started; `problem` is the whole message."""


class Stop:
    """Whether the run was asked to stop, and by which signal."""

    number: int | None = None

    @property
    def requested(self) -> bool:
        return self.number is not None

    def check(self, problem: str = "") -> None:
        """Raise `StoppedError`, with a problem to report, if the run was asked to stop."""
        if self.number is not None:
            raise StoppedError(self.number, problem)


@contextmanager
def watched(say: Callable[[str], object] = lambda sentence: None, patience: float | None = None) -> Iterator[Stop]:
    """Turn the signals into a request, `Stop`, that the loop checks. For programs, in their main thread.

    Args:
        say: called with a sentence for the user, in a separate thread.
        patience: seconds allowed for saving; `PATIENCE` by default.
    """
    stop = Stop()
    if not POSIX:
        yield stop
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    heeded = [number for number in SIGNALS if number not in UNLESS_IGNORED or signal.getsignal(number) != signal.SIG_IGN]
    handlers = {number: signal.signal(number, _nothing) for number in heeded}
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    listener = threading.Thread(
        target=_listen, args=(reader, stop, say, PATIENCE if patience is None else patience), daemon=True
    )
    listener.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(writer)
        listener.join()
        os.close(reader)


def _listen(reader: int, stop: Stop, say: Callable[[str], object], patience: float) -> None:
    deadline = None
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([reader], [], [], left)[0] and stop.number is not None:
            _leave(stop.number, say, "Saving takes too long; exiting without it. Earlier checkpoints are kept.")
        number = os.read(reader, 1)
        if not number:
            return
        if number[0] not in SIGNALS:
            continue
        if deadline is not None:
            _leave(number[0] if stop.number is None else stop.number, say, "Exiting at once. Earlier checkpoints are kept.")
        stop.number = number[0] if stop.number is None else stop.number  # another process may have been asked before
        deadline = time.monotonic() + patience
        with suppress(Exception):  # the deadline holds even if this fails
            say("Saving, then exiting; once more to exit at once.")


def _leave(number: int, say: Callable[[str], object], sentence: str) -> None:
    with suppress(Exception):
        say(sentence)
    os._exit(StoppedError(number).status)


def _nothing(number, frame) -> None:
    """Only a handled signal is written into the pipe."""
