"""The user's cache folder, which compiled programs and the tokens of long texts share."""

import os
from pathlib import Path

VARIABLE = "LIOR_CACHE"
"""Environment variable that sets another folder."""
OFF = ("off", "0", "none", "")
"""Values that turn off the cache of compiled programs. Tokens still need a folder, the default one."""


def asked() -> str | None:
    """The folder set by the environment, or one of `OFF`; None if unset."""
    given = os.environ.get(VARIABLE)
    return "off" if given is not None and given.strip().lower() in OFF else given


def root() -> Path:
    """The folder set by the environment, or the default one. Raises `RuntimeError` without a home folder."""
    given = asked()
    if given not in (None, "off"):
        return Path(given).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "lior_jax"
