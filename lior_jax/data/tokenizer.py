"""Text to tokens and back: `byte`, `char`, `bpe:N`, or a `tokenizer.json`. A tokenizer is saved with its run as plain JSON."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lior_jax.data.vocabularies import REPLACEMENT, BpeTokenizer, ByteTokenizer, CharTokenizer, FileTokenizer, cuts_words
from lior_jax.errors import UserError
from lior_jax.storage import files

__all__ = ["BpeTokenizer", "ByteTokenizer", "CharTokenizer", "FileTokenizer", "Tokenizer"]

_SHOWN = 5
"""Largest number of characters listed in a message."""


class Tokenizer(Protocol):
    """The interface of tokenizers."""

    vocab_size: int

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, `[T]` int32. Raises `UserError` for text outside the vocabulary."""
        ...

    def decode(self, tokens: np.ndarray) -> str:
        """Text of tokens `[T]`; invalid UTF-8 becomes U+FFFD. Raises `UserError` for a token out of range."""
        ...

    def unknown(self, text: str) -> Counter[str]:
        """Counts of the characters of a text outside the vocabulary; empty if every text can be encoded."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain values for `from_json`."""
        ...

    def to_library(self) -> str:
        """A `tokenizer.json` with which the `tokenizers` library encodes identically."""
        ...


def build(kind: str, characters: str, training: Iterable[str], unknown: str = "refuse") -> Tokenizer:
    """The tokenizer of a configuration.

    Args:
        kind: `data.tokenizer`.
        characters: of the whole corpus, with or without repetition; the vocabulary of `char` with `refuse`.
        training: pieces of its training part, from which `bpe:N` learns, and `char` with `replace`.
        unknown: `data.unknown`.

    Raises:
        UserError: the file is not a tokenizer.
    """
    if kind == "byte":
        return ByteTokenizer()
    if kind == "char" and unknown == "refuse":
        return CharTokenizer("".join(sorted(set(characters))))
    if kind == "char":
        return CharTokenizer("".join(sorted({REPLACEMENT}.union(*training))), REPLACEMENT)
    if kind.startswith("bpe:"):
        return BpeTokenizer.train(training, int(kind.removeprefix("bpe:")))
    return from_file(kind)


def from_file(path: str) -> FileTokenizer:
    """The tokenizer of a `tokenizer.json`. Raises `UserError` if it is invalid."""
    try:
        return FileTokenizer(files.read(Path(path), "data.tokenizer:").decode("utf-8"), path)
    except UserError:
        raise
    except Exception as problem:  # whatever the library raises
        reason = getattr(problem, "strerror", None) or problem
        raise UserError(f"data.tokenizer: {path} is not a readable tokenizer.json ({reason}); give another one.") from None


def from_json(values: dict[str, Any]) -> Tokenizer:
    """The tokenizer from the values of `to_json`. Raises `UserError` if they are damaged."""
    try:
        kind = values["kind"]
        if kind == "byte":
            return ByteTokenizer()
        if kind == "char":
            return CharTokenizer(values["alphabet"], values.get("replacement"))
        if kind == "bpe":
            json.loads(values["serialized"])
            return BpeTokenizer(values["serialized"])
        if kind == "file":
            return FileTokenizer(values["serialized"], values["path"])
    except Exception as problem:
        raise UserError(f"The tokenizer saved with this run is damaged ({type(problem).__name__}: {problem}).") from None
    raise UserError(f"The tokenizer saved with this run is of an unknown kind, {kind!r}.")


def from_library(serialized: str, path: str) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`: the one that wrote it by `to_library`, or a `FileTokenizer`. Raises as the
    library does."""
    model = json.loads(serialized)["model"]
    made: list[Tokenizer] = [ByteTokenizer()]
    if model["type"] == "WordLevel":
        alphabet = "".join(sorted(model["vocab"], key=model["vocab"].get))
        made += [CharTokenizer(alphabet, x) for x in (None, model["unk_token"]) if x is None or x in model["vocab"]]
    if model["type"] == "BPE" and cuts_words(serialized):
        made.append(BpeTokenizer(serialized))
    same = (x for x in made if json.loads(x.to_library()) == json.loads(serialized))
    return next(same, None) or FileTokenizer(serialized, path)


def with_unknown(tokenizer: Tokenizer, unknown: str) -> Tokenizer:
    """A tokenizer that refuses or replaces (`data.unknown`) characters outside its vocabulary."""
    return tokenizer.with_unknown(unknown) if isinstance(tokenizer, CharTokenizer) else tokenizer


def replaced(tokenizer: Tokenizer, unknown: Mapping[str, int]) -> str | None:
    """A sentence about replaced characters, from their counts; None if there are none."""
    if not (unknown and isinstance(tokenizer, CharTokenizer)):
        return None
    often = sorted(unknown, key=lambda character: (-unknown[character], character))
    named = ", ".join(map(repr, often[:_SHOWN])) + (f" and {len(often) - _SHOWN} more" if len(often) > _SHOWN else "")
    count = sum(unknown.values())
    return (
        f"{count:,} character{'' if count == 1 else 's'} outside the vocabulary ({named}) "
        f"{'is' if count == 1 else 'are'} replaced by {tokenizer.replacement!r}."
    )
