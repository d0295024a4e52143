"""Checksums: SHA-256 in hexadecimal digits, as printed by `sha256sum`."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def of(pieces: Iterable[bytes | memoryview]) -> str:
    """The checksum of bytes given in pieces."""
    total = hashlib.sha256()
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()


def of_file(path: Path) -> str:
    """The checksum of a file, which may be larger than memory. Raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
