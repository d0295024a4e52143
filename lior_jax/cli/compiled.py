"""The cache of compiled programs: JAX's persistent cache, in the user's cache folder.

`LIOR_CACHE` sets another folder, or `off`. Each kind of machine has its own subfolder: compiled code uses the instructions of
the processor, and home folders are shared. A cache only saves time, so a failure of the default folder is ignored silently; a
failure of one that was requested is an error.
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
"""Size in bytes of a machine's folder, above which the least recently used entries are deleted."""
_WORTH_KEEPING = 0.1
"""Least compilation time in seconds of cached programs; JAX's default is one second, which few CPU programs reach."""


def keep(jax: Any) -> Path | None:
    """Enable JAX's cache of compiled programs, unless its own variables set one; returns the folder, or None.

    Processes share the folder through JAX's lock. Incomplete entries of killed processes are removed here.

    Args:
        jax: the module, before it compiles anything.

    Raises:
        UserError: the folder set by `LIOR_CACHE` cannot be created or written to.
    """
    asked = cache.asked()
    if asked == "off" or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return None
    try:
        folder = cache.root() / _machine()
        _claim(folder)
    except (OSError, RuntimeError) as problem:  # RuntimeError: no home folder
        if asked is None:
            return None
        raise UserError(f"{cache.VARIABLE}={asked} is not a writable folder ({problem}); name another one, or off.") from None
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
    """Create the folder, accessible to the user only, because its contents are executed."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise OSError("it belongs to another user")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError("it is not writable")
    with suppress(Timeout), FileLock(folder / ".lockfile", timeout=1):
        _clear_away_halves(folder)


def _clear_away_halves(folder: Path) -> None:
    """Remove incomplete pairs: JAX writes an entry and then its access time, so without the latter the entry may be
    truncated."""
    entries, uses = ({path.name.removesuffix(end) for path in folder.glob(f"*{end}")} for end in ("-cache", "-atime"))
    for name in entries ^ uses:
        for end in ("-cache", "-atime"):
            (folder / f"{name}{end}").unlink(missing_ok=True)
