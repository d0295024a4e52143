"""The user's cache folder, which compiled programs and the tokens of long texts share."""

import os
from pathlib import Path

VARIABLE = "LIOR_CACHE"
"""Names another folder."""
OFF = ("off", "0", "none", "")
"""Values of it by which compiled programs are not kept. Tokens have to lie somewhere: then in the default folder."""


def asked() -> str | None:
    """The folder that the environment names, or one of `OFF`; None if it names none."""
    given = os.environ.get(VARIABLE)
    return "off" if given is not None and given.strip().lower() in OFF else given


def root() -> Path:
    """The folder that the environment names, or the default one. Raises `RuntimeError` if there is no home."""
    given = asked()
    if given not in (None, "off"):
        return Path(given).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "lior_jax"
