"""Short texts: UTF-8 with or without a byte order mark, otherwise unchanged, including line endings.

Used for texts to score or remember, prompts and standard input; corpora, which may be long, are read by `sources`.
"""

from pathlib import Path
from typing import BinaryIO

from lior_jax.errors import UserError
from lior_jax.storage import files


def decode(content: bytes, name: str) -> str:
    """Decode bytes, called `name` in messages. Raises `UserError` if they are not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise UserError(f"{name} is not UTF-8 (byte {problem.start}); convert it.") from None


def read_file(path: str | Path) -> str:
    """The text of a file or a pipe. Raises `UserError` if it is missing, unreadable or not text."""
    try:
        file = Path(path).expanduser()
        kind = files.kind(file)
        if kind not in (None, "a pipe"):  # a shell's <(command) is a pipe, which ends; a device may not
            raise UserError(f"{path} is {kind}, not a file; give a UTF-8 file.")
        return decode(file.read_bytes(), str(path))
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise UserError(f"{path} cannot be read ({reason}); give an existing UTF-8 file.") from None


def read_stream(stream: BinaryIO, name: str = "Standard input") -> str:
    """All text of a stream. Raises `UserError` if it is not UTF-8."""
    return decode(stream.read(), name)
