"""Standard output and standard error, which may be closed, full, or unable to encode the text."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from lior_jax.errors import UserError

BROKEN = (OSError, ValueError)
"""Exceptions of writing to a full or closed stream, or one without a reader."""


def main(program: str, parse: Callable[[], Any], run: Callable[[Any], None], mend: str, stopped: str = "") -> None:
    """Run a program; failures become one sentence on standard error and an exit status.

    Args:
        program: its name, with which the sentence starts.
        parse: parses the command line; a mistake ends the program.
        run: runs the task with the parsed arguments.
        mend: advice that follows a system error about a file or device.
        stopped: printed at Ctrl-C.
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
        except BrokenPipeError:  # the reader, such as `head`, has finished
            pass
        except OSError as problem:
            complain(f"{program}: {problem}{mend}")
            sys.exit(2)


@contextmanager
def prepared() -> Iterator[None]:
    """Context manager: escape characters that the terminal cannot encode, and keep failures of the last flush from changing the
    exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            _settle(stream)


def _settle(stream) -> None:
    """Flush a stream; if that fails, redirect it to the null device, since the interpreter flushes again at exit."""
    if stream is None:  # closed from the start
        return
    try:
        stream.flush()
    except BROKEN:
        with suppress(*BROKEN):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def complain(sentence: str) -> None:
    """Print a sentence to standard error, ignoring failures."""
    if sys.stderr is not None:  # None if the program was started without one
        with suppress(*BROKEN):
            print(sentence, file=sys.stderr, flush=True)


def complain_at_once(sentence: str) -> None:
    """The same without buffering: for other threads, while the main thread may be printing."""
    with suppress(OSError):
        os.write(2, f"\n{sentence}\n".encode())


def progress(items: Sequence, what: str) -> Iterable:
    """Yield the items (a `scoring.Progress`), with a bar on standard error when it takes more than three seconds."""
    from tqdm import tqdm

    return tqdm(items, desc=what, leave=False, delay=3)
