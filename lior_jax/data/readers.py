"""Readers of files: each yields a file's text piece by piece, so files may be larger than memory.

A reader is `reader(path, field) -> iterator of (text, place)`: the joined pieces are the text, and `place` is the number of the
file's bytes read so far. `registry.READERS` selects one by file extension, after removing `.gz` and `.zst`; files without an
entry are plain text.
"""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from lior_jax.errors import UserError
from lior_jax.registry import READERS

Pieces = Iterator[tuple[str, int]]

BETWEEN = "\n\n"
"""Separator between documents, which are files or lines of JSON."""

_CHUNK = 2**18
_LONGEST_LINE = 2**26
_ROWS = 256  # rows of a parquet file per read


def reader(path: Path) -> Callable[[Path, str], Pieces]:
    """The reader of a file, by its name."""
    ends = [end.lower() for end in path.suffixes]
    while ends and ends[-1] in (".gz", ".zst"):
        ends.pop()
    return READERS[ends[-1]] if ends and ends[-1] in READERS else plain


@contextmanager
def opened(path: Path) -> Iterator[tuple[io.BufferedIOBase, Callable[[], int]]]:
    """The bytes of a file, decompressed if it ends in `.gz` or `.zst`, and a function for the number of compressed bytes read.

    Raises:
        UserError: also within the block: the file cannot be read, is damaged, or needs a package that is not installed.
    """
    try:
        with path.open("rb") as raw:
            end = path.suffix.lower()
            stream = gzip.GzipFile(fileobj=raw) if end == ".gz" else io.BufferedReader(_zstd(raw)) if end == ".zst" else raw
            yield stream, raw.tell
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise UserError(f"{path} is damaged or cut short ({problem}); restore it.") from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise UserError(f"{path} cannot be read ({reason}); give an existing UTF-8 file.") from None


class _zstd(io.RawIOBase):  # noqa: N801 - called like a function
    """The decompressed bytes of a Zstandard stream; unlike the library's own reader it detects truncation."""

    def __init__(self, raw: BinaryIO):
        self._raw, (self._new, self._broken) = raw, _zstd_library(raw.name)
        self._frame: Any = None  # of an optional library
        self._packed, self._ready = b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            packed = self._packed or self._raw.read(2**14)
            if not packed:
                if self._frame is not None:
                    raise EOFError("the last frame has no end")
                return 0
            self._frame = self._frame or self._new()
            try:
                self._ready, self._packed = self._frame.decompress(packed), b""
            except self._broken as problem:
                raise EOFError(f"{problem}") from None
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        taken = self._ready[: len(buffer)]
        self._ready = self._ready[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)


def _zstd_library(name: str) -> tuple[Callable[[], Any], type[Exception]]:
    """The factory of a decompressor of one frame, and the exception that it raises."""
    try:
        from compression.zstd import ZstdDecompressor, ZstdError  # from Python 3.14 on
    except ImportError:
        try:
            from zstandard import ZstdDecompressor as Decompressor
            from zstandard import ZstdError
        except ImportError:
            raise UserError(
                f"{name} needs the package zstandard, which is not installed: pip install zstandard, or unpack the file."
            ) from None
        return Decompressor().decompressobj, ZstdError
    return ZstdDecompressor, ZstdError


def plain(path: Path, field: str) -> Pieces:
    """A file of UTF-8 text, unchanged."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    read = 0
    with opened(path) as (stream, place):
        while True:
            chunk = stream.read(_CHUNK)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as problem:
                at = read - pending + problem.start
                raise UserError(f"{path} is not UTF-8 (byte {at}); convert it.") from None
            read += len(chunk)
            if text:
                yield text, place()
            if not chunk:
                return


def json_lines(path: Path, field: str) -> Pieces:
    """The texts in a field of JSON objects, one a line, separated by an empty line; empty lines and texts are skipped."""
    between = ""
    with opened(path) as (stream, place):
        for number in count(1):
            line = stream.readline(_LONGEST_LINE)
            if len(line) == _LONGEST_LINE:
                raise UserError(f"Line {number} of {path} has more than {_LONGEST_LINE:,} bytes; cut it.")
            if line.strip() and (text := _document(line, field, f"Line {number} of {path}")):
                yield between + text, place()
                between = BETWEEN
            if not line:
                return


def _document(line: bytes, field: str, name: str) -> str:
    try:
        item = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{name} is not UTF-8; convert it.") from None
    except (ValueError, RecursionError):
        raise UserError(f'{name} is not JSON; write {{"{field}": "..."}} on each line.') from None
    return _text(item.get(field) if isinstance(item, dict) else None, field, name)


def _text(value: Any, field: str, name: str) -> str:
    if not isinstance(value, str):
        raise UserError(f'{name} has no text "{field}"; set data.field to the key or column that holds the text.')
    try:
        value.encode()
    except UnicodeEncodeError as problem:
        raise UserError(
            f'{name} has half a character in "{field}" (a lone surrogate, at {problem.start}); repair it.'
        ) from None
    return value


def parquet(path: Path, field: str) -> Pieces:
    """The texts of a parquet file's column, separated by an empty line; empty ones are skipped. Needs `pyarrow`."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path} needs the package pyarrow, which is not installed: pip install pyarrow.") from None
    between, row = "", 0
    with opened(path) as (stream, _):
        try:
            table = ParquetFile(stream)
            if field not in table.schema_arrow.names:
                raise UserError(f'{path} has no column "{field}"; set data.field to the key or column that holds the text.')
            for batch in table.iter_batches(_ROWS, columns=[field]):
                texts = [_text(x, field, f"Row {row + at} of {path}") for at, x in enumerate(batch.column(0).to_pylist(), 1)]
                row += len(texts)
                if text := BETWEEN.join(filter(None, texts)):
                    yield between + text, path.stat().st_size * row // table.metadata.num_rows
                    between = BETWEEN
        except ArrowException as problem:
            raise UserError(f"{path} is damaged ({problem}); restore it.") from None
