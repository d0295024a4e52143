"""Several real training processes, with what they are started with and what they do at their start."""

import os
import signal
import socket
import time
from functools import partial
from pathlib import Path

from tests.processes import Training
from tests.runs import TINY

TIMEOUT = 12
"""Seconds for all to come; a third of it is how long one may be silent."""
LONG = 35.0
"""Seconds; gloo would give up after 30."""
LIGHT = [
    *("model.geometry.frame=learned_lowrank", "model.retrieval.lag_prior=false", "model.field.evolution=off"),
    *("model.blocks=1", "sample.tokens=2", "training.eval_windows=2"),
]
"""Little to trace and compile: each process does it."""


def files(folder: Path) -> None:
    """The configuration and the corpus of all runs below a folder, as of `tests.runs.tiny_config`."""
    (folder / "corpus.txt").write_text("".join(f"{i * i % 97} is {i % 7} and {i % 5}, " for i in range(400)))
    (folder / "tiny.yaml").write_text(TINY)


def free_port() -> int:
    with socket.create_server(("", 0)) as free:
        return free.getsockname()[1]


def begin(folder: Path, name: str, count: int, *options: object, folder_name: str = "", **how) -> list[Training]:
    """Processes 0, 1, … of a new run.

    Args:
        options: of the command line.
        folder_name: of the run, if not `name`.
        how: as for `start`.
    """
    settings = [f"data.path={folder}/corpus.txt", f"run.directory={folder / (folder_name or name)}", *LIGHT]
    words = [word for setting in settings for word in ("--set", setting)]
    return start(folder, name, count, "--config", folder / "tiny.yaml", *words, *options, **how)


def start(
    folder: Path,
    name: str,
    count: int,
    *words: object,
    devices: int = 1,
    hangs: tuple = (),
    only: int | None = None,
    port: int | None = None,
) -> list[Training]:
    """Processes 0, 1, … with arguments of the command line; what they say is in `name.0.log` and so on.

    Args:
        devices: number of devices of each.
        hangs: number of a process that hangs in its second save, and where: at its `arrays`, or the `manifest`; or that takes
            `LONG` before it can `compile` a step, or has no `room` for the second save.
        only: the number of the only one to start.
        port: where they meet.
    """
    port, started = port or free_port(), []
    for index in range(count) if only is None else [only]:
        place = ["--coordinator", f"127.0.0.1:{port}", "--processes", count, "--process", index, "--timeout", TIMEOUT]
        moment = hangs[1] if hangs and hangs[0] == index else None
        log = folder / f"{name}.{index}.log"
        prepare = partial(_prepare, devices, moment)
        compiled = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
        started.append(Training([*words, *place], log, compiled, prepare))
    return started


def _prepare(devices: int, moment: str | None) -> None:
    import jax

    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    jax.config.update("jax_platforms", "cpu")
    if moment == "compile":
        _compile_for_long()
    elif moment == "room":
        _have_no_room_for_the_second_save()
    elif moment:
        _hang_in_second_save(moment)


def _compile_for_long() -> None:
    from lior_jax.training import loop

    step_on = loop.step_on

    def slow(*given):
        time.sleep(LONG)
        return step_on(*given)

    loop.step_on = slow


def _have_no_room_for_the_second_save() -> None:
    from lior_jax.storage import snapshot

    reserve, saves = snapshot.reserve, []

    def full(folder, trees):
        saves.append(folder)
        if len(saves) == 2:
            raise OSError(28, "No space left on device")
        reserve(folder, trees)

    snapshot.reserve = full


def _hang_in_second_save(moment: str) -> None:
    from lior_jax.storage import manifest, snapshot

    module, name = {"arrays": (snapshot, "_without_empty"), "manifest": (manifest, "commit")}[moment]
    whole, folders = getattr(module, name), set()

    def hanging(given):
        folders.add(Path(given).name if moment == "manifest" else len(folders))
        if len(folders) > (1 if moment == "manifest" else 2):  # arrays are two trees a save
            print("hanging", flush=True)
            time.sleep(600)
        return whole(given)

    setattr(module, name, hanging)


def statuses(processes: list[Training], seconds: float = 100) -> list[int]:
    """The exit statuses; all are killed if one does not end in time."""
    try:
        return [process.wait(seconds) for process in processes]
    finally:
        for process in processes:
            if process.runs:
                os.kill(process.pid, signal.SIGKILL)


def wait_for(processes: list[Training], condition, seconds: float = 100) -> None:
    """Wait until something is the case while all processes run; otherwise kill them."""
    end = time.monotonic() + seconds
    try:
        while not condition():
            assert all(process.runs for process in processes), [process.said for process in processes]
            assert time.monotonic() < end, [process.said for process in processes]
            time.sleep(0.02)
    except BaseException:
        kill(processes)
        raise


def kill(processes: list[Training]) -> None:
    for process in processes:
        if process.runs:
            os.kill(process.pid, signal.SIGKILL)
