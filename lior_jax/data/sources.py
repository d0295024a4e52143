"""Sources of a corpus: files, folders and globs as one text, in pieces that fit into memory.

Files are separated by an empty line. Each pass over the text reads it from the beginning.
"""

import glob
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from lior_jax.data.readers import BETWEEN, Pieces, reader
from lior_jax.errors import UserError
from lior_jax.storage import files

Report = Callable[[str, int, int], object]
"""Called with the current task, the amount done, and the total; may raise to stop."""


def unreported(what: str, done: int, total: int) -> None:
    """A `Report` without output."""


# No word, number or run of symbols or whitespace of a byte-level tokenizer crosses this position: the text before and after it
# can be tokenised separately. (For Python, but not for the tokenizer, the separators \x1c to \x1f are blanks.)
_APART = re.compile(r"(?<=\S)[ \n\t\r]")


class Source(NamedTuple):
    """The text of a configuration."""

    name: str
    """Name for messages."""
    files: tuple[Path, ...]
    """None for the embedded corpus."""
    field: str
    """Field or column of JSON lines and parquet files."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    def read(self) -> Pieces:
        """Pieces of the text, each with the number of bytes read so far.

        Raises:
            UserError: a file cannot be read or is not text, or there is no text at all.
        """
        if not self.files:
            yield _embedded(), 0
            return
        read, began = 0, False
        for file in self.files:
            between = BETWEEN if began else ""
            try:
                for text, place in filter(lambda piece: piece[0], reader(file)(file, self.field)):
                    yield between + text, read + place
                    between, began = "", True
            except UserError as problem:
                raise UserError(f"data.path: {problem}") from None
            read += file.stat().st_size
        if not began:
            raise UserError(f"data.path: there is no text in {self.name}; give a file with some UTF-8 text.")

    def pieces(self) -> Iterator[str]:
        """Pieces of the text."""
        return (text for text, _ in self.read())

    def short(self, most: int) -> str | None:
        """The text, if it has at most this number of characters."""
        found, length = [], 0
        for piece in self.pieces():
            found.append(piece)
            length += len(piece)
            if length > most:
                return None
        return "".join(found)


def find(path: str | None, field: str = "text") -> Source:
    """The text at a file, folder or glob, files in order of their paths.

    Without a path: the embedded corpus, the prose of `pydoc_data.topics` that every CPython carries.

    Raises:
        UserError: no such file.
    """
    if path is None:
        return Source("the embedded corpus pydoc_data.topics", (), field)
    try:
        return Source(path, tuple(_files(path)), field)
    except UserError as problem:
        raise UserError(f"data.path: {problem}") from None


def read_text(path: str | None, field: str = "text") -> tuple[str, str]:
    """The whole text at a path (see `find`), and its name."""
    source = find(path, field)
    return "".join(source.pieces()), source.name


def cut(pieces: Iterable[str], size: int) -> Iterator[str]:
    """The same text in pieces of `size` to `2 size` characters, except the last.

    They end at token boundaries, if whitespace follows another character within that range.
    """
    held = ""
    for piece in pieces:
        held, start = held + piece, 0
        while len(held) - start >= 2 * size:
            found = _APART.search(held, start + size, start + 2 * size)
            end = found.start() if found else start + 2 * size
            yield held[start:end]
            start = end
        held = held[start:]
    if held:
        yield held


def parted(text: str, size: int) -> list[str]:
    """A text in parts of about `size` characters that can be tokenised separately; longer where no boundary is found."""
    ends = [0]
    while found := _APART.search(text, ends[-1] + size):
        ends.append(found.start())
    return [text[a:b] for a, b in zip(ends, [*ends[1:], len(text)], strict=True)]


def split(pieces: Iterable[str], at: int) -> tuple[Iterator[str], Iterator[str]]:
    """The first `at` characters of a text, and the rest, which may be consumed after the first part only."""
    pieces, rest = iter(pieces), []

    def before() -> Iterator[str]:
        left = at
        for piece in pieces:
            yield piece[:left]
            if left <= len(piece):
                rest.append(piece[left:])
                return
            left -= len(piece)

    return before(), chain(rest, pieces)


def _embedded() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


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
