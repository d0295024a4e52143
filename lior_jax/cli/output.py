"""Standard output and standard error, which may be closed, full, or too narrow an alphabet for what is shown."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from lior_jax.errors import UserError

BROKEN = (OSError, ValueError)
"""What writing to a stream raises that is full or whose reader has left, or that was closed."""


def main(program: str, parse: Callable[[], Any], run: Callable[[Any], None], mend: str, stopped: str = "") -> None:
    """A whole program: what keeps it from its work is one sentence on standard error, and its exit status.

    Args:
        program: its name, which the sentence begins with.
        parse: the arguments of the command line; a mistake in them ends the program.
        run: does what they ask for.
        mend: follows what the system says of a file or device.
        stopped: said at Ctrl-C.
    """
    with prepared():
        arguments = parse()
        try:
            run(arguments)
        except UserError as problem:
            complain(f"{program}: {problem}")
            sys.exit(2)
        except KeyboardInterrupt:
            complain(stopped)
            sys.exit(130)
        except BrokenPipeError:  # the reader, `head` for one, has enough
            pass
        except OSError as problem:
            complain(f"{program}: {problem}{mend}")
            sys.exit(2)


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
