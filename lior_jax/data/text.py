"""Reading text from files, folders, globs, or the corpus that every Python carries."""

import glob
from pathlib import Path

from lior_jax.errors import UserError
from lior_jax.storage import files


def read_text(path: str | None) -> tuple[str, str]:
    """The text at a file, folder or glob (files in order of their paths, an empty line between), and its name.

    Without a path: the embedded corpus, the prose of `pydoc_data.topics` that every CPython carries.
    """
    if path is None:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics)), "the embedded corpus pydoc_data.topics"
    texts = [text for text in map(_read_file, _files(path)) if text]
    if not texts:
        raise UserError(f"data.path: there is no text in {path}; give a file with some UTF-8 text.")
    return "\n\n".join(texts), path


def _files(path: str) -> list[Path]:
    given = Path(path)
    try:
        kind = files.kind(given)
        if kind == "a folder":
            found = [file for file in given.rglob("*") if not _is_hidden(file.relative_to(given))]
        elif kind:
            raise UserError(f"data.path: {path} is {kind}, not a file; give a UTF-8 file, folder or glob.")
        else:
            found = [given]
    except FileNotFoundError:
        found = [Path(match) for match in glob.glob(path, recursive=True)]
    except OSError as problem:
        raise UserError(f"data.path: {path} cannot be read: {problem.strerror}.") from None
    found = sorted(file for file in found if file.is_file())
    if not found:
        raise UserError(f"data.path: there is no file at {path!r}; give an existing UTF-8 file, folder or glob.")
    return found


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read_file(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise UserError(
            f"data.path: {file} is not UTF-8 (byte {problem.start}); convert it or choose other files by a glob."
        ) from None
    except OSError as problem:
        raise UserError(f"data.path: {file} cannot be read: {problem.strerror}.") from None
