"""The manifest of a folder: the SHA-256 checksum of each of its files, to detect any later change.

The format is that of `sha256sum`, so `sha256sum --check MANIFEST.sha256` verifies a checkpoint too. Its last line is the
checksum of the lines above it, to detect changes of the manifest itself. It protects against damage, not against someone who
writes a new manifest; but in any case no file outside its folder is opened.
"""

import stat
from pathlib import Path

from lior_jax.storage import sums

NAME = "MANIFEST.sha256"


def commit(folder: Path) -> None:
    """Write the manifest of a finished folder. Raises `OSError`."""
    lines = [f"{sums.of_file(folder / name)}  {name}\n" for name in sorted(_files(folder))]
    (folder / NAME).write_bytes(_signed("".join(lines).encode()))


def damage(folder: Path) -> str | None:
    """A phrase for what has changed in a folder since its manifest was written; None if nothing has."""
    try:
        found = _files(folder)
        if NAME not in found:
            return f"{NAME} is missing"
        content = (folder / NAME).read_bytes()
        body = content[: content.rfind(b"# ")]
        if content != _signed(body):
            return f"{NAME} has changed"
        listed = {name: value for value, name in (line.split("  ", 1) for line in body.decode().splitlines())}
        for name in listed:
            if not _is_inside(name):
                return f"{NAME} names {name!r}, which lies outside"
        for name in [*sorted(listed.keys() - found), *sorted(found - listed.keys() - {NAME})]:
            return f"{name} is missing" if name in listed else f"{name} is not in {NAME}"
        for name, value in listed.items():
            if sums.of_file(folder / name) != value:
                return f"{name} has changed"
    except _ForeignError as problem:
        return str(problem)
    except (OSError, ValueError) as problem:
        return f"it cannot be read: {problem}"
    return None


class _ForeignError(Exception):
    """Raised for an entry that a checkpoint never contains."""


def _files(folder: Path) -> set[str]:
    """Names of all files below a folder. Links, which may point outside, devices and pipes are refused."""
    names, folders = set(), [folder]
    if folder.is_symlink():
        raise _ForeignError("it is a symbolic link")
    while folders:
        for path in folders.pop().iterdir():
            name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
            if stat.S_ISDIR(mode):
                folders.append(path)
            elif stat.S_ISREG(mode):
                names.add(name)
            else:
                raise _ForeignError(f"{name} is {'a symbolic link' if stat.S_ISLNK(mode) else 'no file'}")
    return names


def _is_inside(name: str) -> bool:
    return all(part not in ("", ".", "..") for part in name.split("/")) and "\\" not in name and "\0" not in name


def _signed(body: bytes) -> bytes:
    return body + f"# {sums.of([body])} of the lines above\n".encode()
