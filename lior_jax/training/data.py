"""The corpus: reading it, splitting it, and batches as a pure function of `(seed, step)`."""

import glob
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from lior_jax import config as configuration
from lior_jax import files
from lior_jax import tokenizer as tokenizers
from lior_jax.checkpoint import Metadata
from lior_jax.config import Config
from lior_jax.errors import UserError
from lior_jax.tokenizer import Tokenizer


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus. Training and validation text never overlap: the one ends where the other begins."""

    train: np.ndarray
    """`[T]` int32."""
    validation: np.ndarray
    """`[T']` int32."""
    tokenizer: Tokenizer
    characters_per_token: float
    """Of the validation text; turns nats per token into nats per character."""
    fingerprint: str
    """SHA-256 of the text, by which a resumed run knows its corpus again."""


def load(config: Config, saved: Metadata | None = None, another: bool = False) -> Corpus:
    """Read, split and tokenise the corpus of a configuration.

    Args:
        saved: of a run to resume, whose tokenizer is used.
        another: whether the text may be another one than that run's.

    Raises:
        UserError: no such file, no text in it, not UTF-8, too short for one window in each part, or not the saved one.
    """
    text, source = read_text(config.data.path)
    fingerprint = hashlib.sha256(text.encode("utf-8")).hexdigest()
    if saved is not None and saved.corpus != fingerprint and not another:
        raise UserError(
            f"{source} is not the corpus that {config.run.directory} was started with; restore it to resume, or take the new "
            "one by --force."
        )
    cut = len(text) - round(len(text) * config.data.validation_fraction)
    parts = text[:cut], text[cut:]
    if saved is not None:
        tokenizer = tokenizers.from_json(saved.tokenizer)
    else:
        tokenizer = tokenizers.build(config.data.tokenizer, text, parts[0])
    if tokenizer.vocab_size < 2:
        raise UserError(f"{source} consists of one character, over and over; give a text with something to learn.")
    train, validation = (tokenizer.encode(part) for part in parts)
    for name, tokens in (("training", train), ("validation", validation)):
        if len(tokens) <= config.model.context:
            raise UserError(
                f"The {name} part of {source} has {len(tokens)} tokens, but one window needs model.context + 1 = "
                f"{config.model.context + 1}; give a longer text, a shorter context or another data.validation_fraction."
            )
    return Corpus(
        train=train,
        validation=validation,
        tokenizer=tokenizer,
        characters_per_token=len(parts[1]) / len(validation),
        fingerprint=fingerprint,
    )


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


def with_vocabulary(config: Config, corpus: Corpus) -> Config:
    """The configuration with the vocabulary of its corpus filled in, or a `UserError` if it names another."""
    size, given = corpus.tokenizer.vocab_size, config.model.vocab_size
    if given not in (None, size):
        raise UserError(f"model.vocab_size is {given}, but the tokenizer has {size} tokens; leave the key out.")
    return configuration.replace(config, "model", vocab_size=size)


def check_sample(config: Config, corpus: Corpus) -> None:
    """A prompt that cannot be encoded is told now, not at the first evaluation."""
    try:
        corpus.tokenizer.encode(config.sample.prompt)
    except UserError as problem:
        raise UserError(f"sample.prompt: {problem}") from None


def batch_at(tokens: np.ndarray, seed: int, step: int, batch_size: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows and their targets at a step: a pure function, so that a resumed run sees what it would have seen.

    Every epoch cuts the text into windows at a new random offset and goes through all of them in a new order. Each token
    is read once an epoch, but for less than a window left over at each end.

    Args:
        tokens: `[T]`, with `T > context`.
        step: from 0.

    Returns:
        Tokens and targets, each `[batch_size, context]` int32; targets are the tokens one position later.
    """
    windows = windows_per_epoch(tokens, context)
    offsets = []
    for index in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(index, windows)
        first, order = _epoch(windows, min(context, len(tokens) - windows * context), seed, epoch)
        offsets.append(first + order[place] * context)
    rows = tokens[np.array(offsets)[:, None] + np.arange(context + 1)]
    return rows[:, :-1], rows[:, 1:]


def windows_per_epoch(tokens: np.ndarray, context: int) -> int:
    """How many windows an epoch has."""
    return max(1, (len(tokens) - context) // context)


@lru_cache(maxsize=2)
def _epoch(windows: int, offsets: int, seed: int, epoch: int) -> tuple[int, np.ndarray]:
    """Offset of the first window of an epoch, below `offsets`, and the order of its windows."""
    random = np.random.default_rng((seed, epoch))
    return int(random.integers(offsets)), random.permutation(windows)
