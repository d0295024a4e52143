"""The environment of a run's training sessions: `RUN/environment.json`, with an entry per session, in order of their start.

An entry has its start and end times (UTC; `end` is null while it runs, and remains so if it was interrupted), the steps between
them, the command line, versions, host and devices, and the commit of the source with whether there were uncommitted changes.
"""

import json
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from lior_jax.errors import UserError
from lior_jax.storage import files

FILE = "environment.json"

_PACKAGES = (
    *("lior-jax", "jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "numpy", "optax", "orbax-checkpoint"),
    *("pydantic", "safetensors", "tokenizers"),
)
_SOURCE = Path(__file__).resolve().parents[1]

Session = dict[str, Any]


def begin(run: Path, step: int, environment: Session | None = None) -> None:
    """Add an entry for a session that starts at a step, by default `look()`.

    Raises:
        UserError: the record is damaged.
        OSError: it cannot be written.
    """
    session = {"begin": _now(), "end": None, "from_step": step, "to_step": None, **(environment or look())}
    _write(run, [*read(run), session])


def end(run: Path, step: int) -> None:
    """Record that the newest session, if any, ended at a step; raises as `begin` does."""
    sessions = read(run)
    if sessions:
        _write(run, [*sessions[:-1], sessions[-1] | {"end": _now(), "to_step": step}])


@contextmanager
def recorded(
    run: Path, step: int, reached: Callable[[], int], complain: Callable[[str], object], more: Session | None = None
) -> Iterator[None]:
    """Context manager: record a session that starts at a step, however it ends; failing to write the record does not end it.

    Args:
        reached: called at the end for the step at which the session ends.
        complain: called with a sentence if the record cannot be written.
        more: further values to record.
    """
    kept = _kept(complain, lambda run, step: begin(run, step, look() | (more or {})), run, step)
    try:
        yield
    finally:
        if kept:
            _kept(complain, end, run, reached())


def _kept(complain: Callable[[str], object], write: Callable[[Path, int], None], run: Path, step: int) -> bool:
    try:
        write(run, step)
    except (UserError, OSError) as problem:
        complain(f"What the run is trained with could not be recorded ({problem}).")
        return False
    return True


def read(run: Path) -> list[Session]:
    """All entries of a run, or none without a record. Raises `UserError` for a damaged record."""
    path = Path(run) / FILE
    if not path.exists():
        return []
    try:
        sessions = json.loads(path.read_text(encoding="utf-8"))["sessions"]
        if not all(isinstance(session, dict) and isinstance(session.get("begin"), str) for session in sessions):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; repair or remove it.") from None
    return sessions


def look() -> Session:
    """The environment of this process."""
    return {
        "command": list(sys.argv),
        "python": platform.python_version(),
        "packages": _versions(_PACKAGES),
        "variables": {name: text for name, text in sorted(os.environ.items()) if name.startswith(("JAX_", "XLA_"))},
        "host": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": _cores(),
            "memory_bytes": _memory(),
        },
        "devices": dict(Counter(_kind(device) for device in jax.devices())),
        "source": commit(_SOURCE),
    }


def commit(folder: Path) -> dict[str, Any] | None:
    """The commit of a package's checkout, and whether the working tree is clean; None if its files are not in a repository,
    such as installed ones, or without git."""
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None  # an installed package may lie inside an unrelated repository
    name, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    return None if name is None or changes is None else {"commit": name, "clean": not changes}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        answer = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, errors="replace", timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.strip()


def _kind(device: jax.Device) -> str:
    """The device's name; a CPU reports itself as `cpu: cpu`."""
    platform, kind = device.platform, device.device_kind
    return platform if platform == kind else f"{platform}: {kind}"


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _cores() -> int | None:
    """Number of cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        return None


def _processor() -> str | None:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _write(run: Path, sessions: list[Session]) -> None:
    text = json.dumps({"sessions": sessions}, indent=2, ensure_ascii=False)
    files.write_atomically(Path(run) / FILE, text + "\n")
