"""What the programs write: never over a file that they did not make."""

from pathlib import Path
from typing import Any

from lior_jax.errors import UserError

_MARK = "lior_jax: explanation"
_HEAD = 4096
"""Bytes of a picture's beginning, in which its notes are."""

PICTURE: dict[str, Any] = {"format": "png", "metadata": {"Software": _MARK}}
"""How a picture is saved (arguments of `Figure.savefig`) that a later one may take the place of."""


def check_picture(path: str | Path) -> None:
    """Raise `UserError` if there is something at a path that is no picture saved with `PICTURE`."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        return
    except OSError as problem:
        raise UserError(f"{path} cannot be written ({problem.strerror}); choose another file.") from None
    if not (head.startswith(b"\x89PNG") and _MARK.encode() in head):
        raise UserError(f"{path} is there already, and is no picture that this program drew; choose another file.")
