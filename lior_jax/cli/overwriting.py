"""Overwriting pictures: only those drawn by the programs themselves."""

from pathlib import Path
from typing import Any

from lior_jax.errors import UserError

_MARK = "lior_jax: explanation"
_HEAD = 4096
"""Number of leading bytes of a picture that contain its metadata."""

PICTURE: dict[str, Any] = {"format": "png", "metadata": {"Software": _MARK}}
"""Arguments of `Figure.savefig` that mark a picture as one that may be overwritten."""


def check_picture(path: str | Path) -> None:
    """Raise `UserError` if a path exists and is not a picture saved with `PICTURE`."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        return
    except OSError as problem:
        raise UserError(f"{path} cannot be written ({problem.strerror}); choose another file.") from None
    if not (head.startswith(b"\x89PNG") and _MARK.encode() in head):
        raise UserError(f"{path} exists already, and is not a picture drawn by this program; choose another file.")
