"""Reading text: UTF-8 with or without a byte order mark, every character as the file has it, line ends included.

All text that a model reads comes through here: corpora, texts to score or remember, prompts, standard input.
"""

import glob
from pathlib import Path
from typing import BinaryIO

from lior_jax.errors import UserError
from lior_jax.storage import files


def decode(content: bytes, name: str) -> str:
    """The text of some bytes, which `name` calls in messages. Raises `UserError` if they are not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise UserError(f"{name} is not UTF-8 (byte {problem.start}); convert it.") from None


def read_file(path: str | Path) -> str:
    """The text of a file or a pipe. Raises `UserError` for one that is missing, unreadable or no text."""
    try:
        file = Path(path).expanduser()
        kind = files.kind(file)
        if kind not in (None, "a pipe"):  # a shell's <(command) is a pipe, which ends; a device may never end
            raise UserError(f"{path} is {kind}, not a file; give a UTF-8 file.")
        return decode(file.read_bytes(), str(path))
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise UserError(f"{path} cannot be read ({reason}); give an existing UTF-8 file.") from None


def read_stream(stream: BinaryIO, name: str = "Standard input") -> str:
    """All the text that a stream has. Raises `UserError` if it is not UTF-8."""
    return decode(stream.read(), name)


def read_text(path: str | None) -> tuple[str, str]:
    """The text at a file, folder or glob (files in order of their paths, an empty line between), and its name.

    Without a path: the embedded corpus, the prose of `pydoc_data.topics` that every CPython carries.
    """
    if path is None:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics)), "the embedded corpus pydoc_data.topics"
    try:
        texts = [text for text in map(read_file, _files(path)) if text]
    except UserError as problem:
        raise UserError(f"data.path: {problem}") from None
    if not texts:
        raise UserError(f"data.path: there is no text in {path}; give a file with some UTF-8 text.")
    return "\n\n".join(texts), path


def _files(path: str) -> list[Path]:
    given = Path(path).expanduser()
    try:
        kind = files.kind(given)
        if kind == "a folder":
            found = [file for file in given.rglob("*") if not _is_hidden(file.relative_to(given))]
        elif kind:
            raise UserError(f"{path} is {kind}, not a file; give a UTF-8 file, folder or glob.")
        else:
            found = [given]
    except FileNotFoundError:
        found = [Path(match) for match in glob.glob(str(given), recursive=True)]
    except OSError as problem:
        raise UserError(f"{path} cannot be read: {problem.strerror}.") from None
    found = sorted(file for file in found if file.is_file())
    if not found:
        raise UserError(f"there is no file at {path!r}; give an existing UTF-8 file, folder or glob.")
    return found


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
