"""Starting JAX for the programs, with failures reported in one sentence."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lior_jax.cli import compiled
from lior_jax.errors import UserError

_PARSE_FLAGS = "from jaxlib import xla_client; xla_client.CompileOptions()"


def start() -> None:
    """Start JAX's backend, once and before anything is computed.

    Raises:
        UserError: as `prepare`.
    """
    prepare()
    begin()


def prepare() -> None:
    """Import and configure JAX without starting its backend, which several processes do after they have met.

    Compiled programs are cached for the next start (`compiled`). The programs compute in float32 regardless of JAX_ENABLE_X64,
    so that the same seed gives the same text everywhere.

    Raises:
        UserError: the environment requests an unavailable device, an unknown flag or an unusable folder.
    """
    _check_flags()
    with _explained():
        import jax

        jax.config.update("jax_enable_x64", False)
        compiled.keep(jax)


def begin() -> None:
    """Start the backend after `prepare`. Raises `UserError` likewise."""
    with _explained():
        import jax

        jax.devices()


@contextmanager
def _explained() -> Iterator[None]:
    """Context manager: turn a failure of JAX into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as problem:  # JAX and its plugins raise many types: RuntimeError, AssertionError, ValueError …
        asked = os.environ.get("JAX_PLATFORMS")
        reason = (str(problem).splitlines() or [""])[0].rstrip(". ") or type(problem).__name__
        mend = "check the environment variables JAX_…, and whether another process uses the device"
        if asked:
            mend = f"JAX_PLATFORMS={asked} may request an unavailable platform; without it JAX uses an available one"
        raise UserError(f"JAX cannot start ({reason}): {mend}.") from None


def pretend(devices: int) -> None:
    """Make JAX start with virtual CPU devices, for programs to be compiled for; they are not optimised, since none is run."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = " ".join(filter(None, [os.environ.get("XLA_FLAGS"), flags]))


def _check_flags() -> None:
    """XLA aborts the process at an unknown flag, so the flags are first parsed in a subprocess."""
    flags = os.environ.get("XLA_FLAGS")
    if not flags:
        return
    tried = subprocess.run([sys.executable, "-c", _PARSE_FLAGS], capture_output=True, text=True, errors="replace", check=False)
    if tried.returncode:
        said = [line.rpartition("] ")[2] for line in tried.stderr.splitlines() if "XLA_FLAGS" in line or "lag" in line]
        reason = said[0] if said else f"it ends with status {tried.returncode}"
        raise UserError(f"XLA does not accept XLA_FLAGS={flags!r} ({reason}); remove the unknown flags.")
