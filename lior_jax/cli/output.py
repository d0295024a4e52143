"""Standard output and standard error, which may be closed, full, or too narrow an alphabet for what is shown."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

BROKEN = (OSError, ValueError)
"""What writing to a stream raises that is full or whose reader has left, or that was closed."""


@contextmanager
def prepared() -> Iterator[None]:
    """Escape what the terminal cannot encode, and let no unwritten rest spoil the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            _settle(stream)


def _settle(stream) -> None:
    """Write what is left; where that cannot be done, hand the stream to nobody, since the interpreter tries again at exit."""
    if stream is None:  # closed from the start
        return
    try:
        stream.flush()
    except BROKEN:
        with suppress(*BROKEN):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def complain(sentence: str) -> None:
    """Print a sentence to standard error, if it can be."""
    if sys.stderr is not None:  # which it is where the program was started without one
        with suppress(*BROKEN):
            print(sentence, file=sys.stderr, flush=True)


def complain_at_once(sentence: str) -> None:
    """The same past all buffers: from another thread, while the main one may be within a print."""
    with suppress(OSError):
        os.write(2, f"\n{sentence}\n".encode())


def progress(items: Sequence, what: str) -> Iterable:
    """Yield the items (a `scoring.Progress`), with a bar on standard error when it takes more than three seconds."""
    from tqdm import tqdm

    return tqdm(items, desc=what, leave=False, delay=3)
