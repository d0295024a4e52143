"""The one way of summing: SHA-256, in hexadecimal digits, as `sha256sum` prints it."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def of(pieces: Iterable[bytes | memoryview]) -> str:
    """The sum of some bytes, piece after piece."""
    total = hashlib.sha256()
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()


def of_file(path: Path) -> str:
    """The sum of a file, which need not fit into memory. Raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
