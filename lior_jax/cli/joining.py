"""Training in several processes from the command line: their options, how they meet, who prints, and how they end."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from lior_jax.cli import calling, output
from lior_jax.errors import UserError

if TYPE_CHECKING:
    from lior_jax.parallel import Processes
    from lior_jax.parallel.meeting import Place
    from lior_jax.settings import Config

MOST = 2**16
_OPTIONS = "coordinator", "processes", "process"
_COMPARED = "resume", "force", "stop_after"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of several processes."""
    parser.add_argument(
        "--coordinator", metavar="HOST:PORT", help="train in several processes, which meet at this port of process 0's machine"
    )
    parser.add_argument("--processes", metavar="N", type=int, help="with --coordinator: number of processes")
    parser.add_argument("--process", metavar="I", type=int, help="with --coordinator: which of them this is, from 0")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        help="with several processes: time for all to arrive (60); one that is silent for a third of it is considered lost",
    )


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace, trains: bool) -> None:
    """Report a mistake in these options, which ends the program.

    Args:
        trains: whether nothing but training is asked for.
    """
    given = [name for name in _OPTIONS if getattr(arguments, name) is not None]
    count, index, timeout = arguments.processes, arguments.process, arguments.timeout
    if (given or timeout is not None) and not trains:
        parser.error("--coordinator, --processes, --process and --timeout are for training only")
    if timeout is not None and not 3 <= timeout <= 86400:
        parser.error(f"--timeout is {timeout:g}, but must be from 3 to 86,400 seconds")
    if count is not None and not 1 <= count <= MOST:
        parser.error(f"--processes is {count}, but must be from 1 to {MOST:,}")
    if given in ([], ["processes"]) and count in (None, 1):
        return
    if len(given) < len(_OPTIONS):
        missing = " and ".join(f"--{name}" for name in _OPTIONS if name not in given)
        parser.error(f"--coordinator, --processes and --process go together; add {missing}")
    if not 0 <= index < count:
        parser.error(f"--process is {index}, but {count} processes are numbered from 0 to {count - 1}")


@contextmanager
def joined(arguments: argparse.Namespace, config: "Config") -> "Iterator[Processes]":
    """Context manager: the processes of the run, as the options or the environment say. To be entered before JAX's backend
    starts.

    Several processes end with one status, that of process 0 unless another one reports a problem. The interpreter then exits at
    once, since JAX would wait for processes that are gone.
    """
    from lior_jax import parallel

    place = _place(arguments)
    if place is None:
        yield parallel.ALONE
        return
    from lior_jax import config as configuration
    from lior_jax.parallel import meeting

    about: dict[str, Any] = configuration.flat(config)
    del about["data.path"]  # the texts are compared, which may have other paths
    about |= {f"--{name.replace('_', '-')}": getattr(arguments, name) for name in _COMPARED}
    timeout = arguments.timeout or meeting.TIMEOUT
    _set_standard_output(prints=place.index == 0)
    team = meeting.join(place, {name: repr(value) for name, value in about.items()}, _sayer(config), timeout)
    status = 0
    try:
        yield team
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    except UserError as problem:
        status = 2
        team.end(status, str(problem))
        output.complain(f"{calling.program('train')}: {problem}")
    except BaseException as problem:
        team.wait(timeout / 3 + 5)  # it is usually because another process is lost; then this does not return
        status = 1
        team.end(status, f"Process {team.index} failed with {type(problem).__name__}; see what it has said.")
        traceback.print_exc()
    finally:
        if not team.is_first:
            team.wait()  # for process 0, which may be saving still
        team.end(status)
        for stream in (sys.stdout, sys.stderr):
            with suppress(*output.BROKEN, AttributeError):
                stream.flush()
        os._exit(status)


def _place(arguments: argparse.Namespace) -> "Place | None":
    from lior_jax.parallel import meeting

    if arguments.coordinator is not None:
        return meeting.Place(arguments.coordinator, arguments.processes, arguments.process)
    return meeting.detected() if arguments.processes is None else None


def _sayer(config: "Config") -> Callable[[int, str], None]:
    """Says why the run has ended, in a thread."""
    from lior_jax.parallel.hub import LOST

    def say(status: int, sentence: str) -> None:
        mend = f" Saved checkpoints are kept; continue with --resume {config.run.directory}." if status == LOST else ""
        output.complain_at_once(f"{calling.program('train')}: {sentence}{mend}")

    return say


def _set_standard_output(prints: bool) -> None:
    """Keep standard output for this program's own sentences: libraries in other languages write to its descriptor. A process
    that prints nothing gets no standard output at all."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    if prints and sys.stdout is not None:
        with suppress(*output.BROKEN):
            old = sys.stdout
            old.flush()
            sys.stdout = open(  # noqa: SIM115 - for the rest of the program
                os.dup(old.fileno()), "w", encoding=old.encoding, errors="backslashreplace", buffering=1 if old.isatty() else -1
            )
            os.dup2(nothing, 1)
        return
    with suppress(*output.BROKEN):
        os.dup2(nothing, 1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the program
