"""Long texts, tokenised once: memory-mapped files in a cache folder, shared by later runs and other processes.

CACHE/text/KEY/shards holds `train.tokens` and `validation.tokens` (little-endian, 16 bits a token where the vocabulary allows
it, else 32), their origin (`about.json`), and checksums of all files. KEY is the checksum of the sources' checksums and of
everything else that determines the tokens, so a text is recognised independently of its path, and a changed one is not.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lior_jax.data import sources
from lior_jax.data import tokenizer as tokenizers
from lior_jax.data.sources import Report, Source
from lior_jax.data.survey import Survey, survey
from lior_jax.data.tokenizer import Tokenizer
from lior_jax.errors import UserError
from lior_jax.settings import DataConfig
from lior_jax.storage import cache, files, lock, manifest, sums

SAMPLE = 2**25
"""Characters from which `bpe:N` learns, to within one piece."""

PIECE = 2**18
"""Approximate number of characters tokenised at once."""

_FORMAT = 1
_ABOUT = "about.json"
_PARTS = ("train", "validation")


class Shards(NamedTuple):
    """A tokenised text, mapped into memory."""

    folder: Path
    tokens: tuple[np.ndarray, np.ndarray]
    """Tokens of the training and of the validation part, each `[T]`."""
    about: dict[str, Any]
    """Their origin: sources, tokenizer, counts."""


def texts() -> Path:
    """The folder of all tokenised texts: `text` in the user's cache."""
    return cache.root() / "text"


def load(
    source: Source, data: DataConfig, saved: dict[str, Any] | None, check: Callable[[str], object], report: Report
) -> Shards:
    """The tokens of a text, from the cache or computed now; one process computes them while others wait.

    Args:
        saved: the tokenizer to use, as plain values; by default the one of the settings.
        check: called with the text's fingerprint before tokenising; may raise to refuse the text.

    Raises:
        UserError: the text cannot be read or tokenised, or the cache cannot be written to.
    """
    job, root = _Job(source, data, _content(source, report), check, report), texts()
    folder = root / _key(job, None)
    found, _ = _read(folder)
    if saved is None:
        return found or _make(folder, job, None)
    # A run's tokenizer follows from its settings, unless it was initialised from another model.
    if found and tokenizers.from_json(found.about["tokenizer"]).to_json() == saved:
        return found
    folder = root / _key(job, saved)
    return _read(folder)[0] or _make(folder, job, saved)


class _Job(NamedTuple):
    source: Source
    data: DataConfig
    content: list[dict[str, Any]]
    check: Callable[[str], object]
    report: Report


def _content(source: Source, report: Report) -> list[dict[str, Any]]:
    """Path, size, modification time and checksum of each file."""
    found, done, total = [], 0, source.size
    for file in source.files:
        report("checking", done, total)
        try:
            found.append(_stamp(file) | {"sha256": sums.of_file(file)})
        except OSError as problem:
            raise UserError(f"data.path: {file} cannot be read ({problem.strerror}).") from None
        done += found[-1]["bytes"]
    report("checking", total, total)
    return found


def _stamp(file: Path) -> dict[str, Any]:
    status = file.stat()
    return {"path": str(file.absolute()), "bytes": status.st_size, "changed": status.st_mtime_ns}


def _key(job: _Job, saved: dict[str, Any] | None) -> str:
    data = job.data
    words: Any = saved or data.tokenizer
    if isinstance(words, str) and words.endswith(".json"):
        words = tokenizers.from_file(words).to_json() | {"path": None}
    files_of = [("".join(Path(file["path"]).suffixes), file["bytes"], file["sha256"]) for file in job.content]
    decides = [_FORMAT, files_of, data.field, data.validation_fraction, data.unknown, words]
    return sums.of([json.dumps(decides, sort_keys=True).encode()])[:32]


def _read(folder: Path) -> tuple[Shards | None, str | None]:
    """The tokens of a folder; or None, and what is wrong with the folder if it exists."""
    folder = folder / "shards"
    if not folder.exists():
        return None, None
    if problem := manifest.damage(folder):
        return None, problem
    about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    train, validation = (_mapped(folder / f"{part}.tokens", about["type"]) for part in _PARTS)
    return Shards(folder, (train, validation), about), None


def _mapped(path: Path, kind: str) -> np.ndarray:
    if not path.stat().st_size:  # empty files cannot be mapped
        return np.zeros(0, kind)
    return np.asarray(np.memmap(path, kind, "r"))


def _make(folder: Path, job: _Job, saved: dict[str, Any] | None) -> Shards:
    source, report = job.source, job.report
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock.turn(folder, lambda holder: report(f"waiting for {holder}", 0, 1)):
            found, problem = _read(folder)
            if found:
                return found
            anew = f" anew ({problem})" if problem else ""
            seen = survey(source, report)
            job.check(seen.fingerprint)
            with files.replacing_folder(folder / "shards") as unfinished:
                tokenizer = _tokenizer(job, seen, saved)
                about = _fill(unfinished, job, seen, tokenizer, "tokenising" + anew)
                if any(file | _stamp(Path(file["path"])) != file for file in job.content):
                    raise UserError(f"{source.name} changed while it was read; start again.")
                (unfinished / _ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
                manifest.commit(unfinished)
            found, problem = _read(folder)
    except OSError as refused:
        raise UserError(
            f"The tokenised text cannot be written to {folder} ({refused.strerror or refused}); make room there, or name "
            "another folder by the environment variable LIOR_CACHE."
        ) from None
    if not found:
        raise UserError(f"The tokenised text in {folder} is damaged ({problem}) just after it was written; check that disk.")
    return found


def _end(job: _Job, seen: Survey) -> int:
    """Number of characters in the training part."""
    return seen.characters - round(seen.characters * job.data.validation_fraction)


def _tokenizer(job: _Job, seen: Survey, saved: dict[str, Any] | None) -> Tokenizer:
    if saved is not None:
        return tokenizers.from_json(saved)
    job.report("learning the vocabulary", 0, 1)
    sample = _sample(job.source, _end(job, seen), job.data.tokenizer)
    built = tokenizers.build(job.data.tokenizer, seen.alphabet, sample, job.data.unknown)
    job.report("learning the vocabulary", 1, 1)
    return built


def _fill(folder: Path, job: _Job, seen: Survey, tokenizer: Tokenizer, what: str) -> dict[str, Any]:
    """Tokenise a text into a folder; returns the contents of `about.json`."""
    end = _end(job, seen)
    kind = "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"
    counts, unknown = [], Counter()
    for name, part, done in zip(_PARTS, sources.split(job.source.pieces(), end), (0, end), strict=True):
        with (folder / f"{name}.tokens").open("wb") as file:
            counts.append(0)
            for piece in sources.cut(part, PIECE):
                job.report(what, done, seen.characters)
                tokens = _encode(tokenizer, piece, unknown)
                file.write(tokens.astype(kind).tobytes())
                counts[-1], done = counts[-1] + len(tokens), done + len(piece)
    job.report(what, seen.characters, seen.characters)
    return {
        "type": kind,
        "tokens": dict(zip(_PARTS, counts, strict=True)),
        "characters": dict(zip(_PARTS, (end, seen.characters - end), strict=True)),
        "tokenizer": tokenizer.to_json(),
        "unknown": unknown,
        "fingerprint": seen.fingerprint,
        "beginning": seen.beginning,
        "sources": job.content,
    }


def _encode(tokenizer: Tokenizer, piece: str, unknown: Counter[str]) -> np.ndarray:
    unknown.update(tokenizer.unknown(piece))
    return tokenizer.encode(piece)


def _sample(source: Source, end: int, kind: str) -> Iterator[str]:
    """Pieces of the training part: all of it for `char`, which needs every character, else evenly spaced ones."""
    training, _ = sources.split(source.pieces(), end)
    if kind == "char":
        yield from training
        return
    every = -(-end // SAMPLE)
    for place, piece in enumerate(sources.cut(training, 2**14)):
        if place % every == 0:
            yield piece
