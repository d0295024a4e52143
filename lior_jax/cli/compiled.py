"""Where the programs keep what they have compiled: JAX's persistent cache, in a folder of the user's, for the next start.

`LIOR_CACHE` names another folder, or is `off`. Each kind of machine has a folder of its own within it: compiled code uses
whatever instructions the processor has, and homes are shared. A cache only saves time, so one that cannot be had by default is
done without, in silence; one that was asked for and cannot be had is an error.
"""

import hashlib
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lior_jax.errors import UserError
from lior_jax.storage import cache

SIZE = 2**30
"""Bytes of a machine's folder, above which what was not used for longest is deleted."""
_WORTH_KEEPING = 0.1
"""Seconds of compiling; by default JAX keeps what takes a second, and few programs of a CPU do."""


def keep(jax: Any) -> Path | None:
    """Let JAX keep compiled programs, unless its own variables say where; returns the folder, or None without one.

    Processes share the folder by a lock of JAX's. What one left half-written when it was killed is cleared away here.

    Args:
        jax: the module, before it compiles anything.

    Raises:
        UserError: the folder that `LIOR_CACHE` names cannot be made or written to.
    """
    asked = cache.asked()
    if asked == "off" or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return None
    try:
        folder = cache.root() / _machine()
        _claim(folder)
    except (OSError, RuntimeError) as problem:  # RuntimeError: there is no home
        if asked is None:
            return None
        raise UserError(f"{cache.VARIABLE}={asked} is no folder to write to ({problem}); name another one, or off.") from None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", SIZE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return folder


def _machine() -> str:
    """A name for this kind of processor."""
    described = platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        described = "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return f"{platform.machine()}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"


def _claim(folder: Path) -> None:
    """Make the folder, readable by nobody else: what lies there is executed."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise OSError("it belongs to another user")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError("it is not writable")
    with suppress(Timeout), FileLock(folder / ".lockfile", timeout=1):
        _clear_away_halves(folder)


def _clear_away_halves(folder: Path) -> None:
    """JAX writes an entry, and then when it was used; of a pair that is not complete the entry may be cut short."""
    entries, uses = ({path.name.removesuffix(end) for path in folder.glob(f"*{end}")} for end in ("-cache", "-atime"))
    for name in entries ^ uses:
        for end in ("-cache", "-atime"):
            (folder / f"{name}{end}").unlink(missing_ok=True)
