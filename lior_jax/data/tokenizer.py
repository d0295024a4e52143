"""Text to tokens and back: `byte`, `char`, and `bpe:N`. A tokenizer is saved with its run as plain JSON."""

import json
import re
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from lior_jax.errors import UserError

_LONGEST_WORD = 256
"""Bytes after which `bpe:N` cuts a run of letters, digits, signs or blanks; what is shorter is not touched."""


class Tokenizer(Protocol):
    """What training and inference ask of a tokenizer."""

    vocab_size: int

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, `[T]` int32. Raises `UserError` for text outside the vocabulary."""
        ...

    def decode(self, tokens: np.ndarray) -> str:
        """Text of tokens `[T]`; bytes that are no UTF-8 become U+FFFD. Raises `UserError` for a token out of range."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads."""
        ...


class ByteTokenizer:
    """A token for every byte of UTF-8."""

    vocab_size = 256

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(_utf8(text), np.uint8).astype(np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        return bytes(_in_range(tokens, self.vocab_size).tolist()).decode("utf-8", "replace")

    def to_json(self) -> dict[str, Any]:
        return {"kind": "byte"}


class CharTokenizer:
    """A token for every character that the corpus contains, in code point order."""

    def __init__(self, alphabet: str):
        self.alphabet = alphabet
        self.vocab_size = len(alphabet)

    @cached_property
    def _table(self) -> dict[str, int]:
        return {character: token for token, character in enumerate(self.alphabet)}

    def encode(self, text: str) -> np.ndarray:
        try:
            return np.fromiter((self._table[character] for character in text), np.int32, len(text))
        except KeyError as unknown:
            raise UserError(
                f"The character {unknown.args[0]!r} is not among the {self.vocab_size} that this model was trained on; "
                "leave it out, or train with data.tokenizer=byte or bpe:N."
            ) from None

    def decode(self, tokens: np.ndarray) -> str:
        return "".join(self.alphabet[token] for token in _in_range(tokens, self.vocab_size))

    def to_json(self) -> dict[str, Any]:
        return {"kind": "char", "alphabet": self.alphabet}


class BpeTokenizer:
    """Byte-level byte-pair encoding by the `tokenizers` library; every text can be encoded."""

    def __init__(self, serialized: str):
        self._tokenizer = tokenizers.Tokenizer.from_str(serialized)
        self.vocab_size = self._tokenizer.get_vocab_size()

    @classmethod
    def train(cls, text: str, vocab_size: int) -> "BpeTokenizer":
        """Learn merges from a text until the vocabulary is full or no pair occurs twice."""
        tokenizer = tokenizers.Tokenizer(models.BPE())
        # Merging takes the square of a word's length, and a text without spaces is one word.
        cut = pre_tokenizers.Split(Regex(f".{{{_LONGEST_WORD}}}"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False), cut])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(re.split(r"(?<=\n\n)", text), trainer)
        return cls(tokenizer.to_str())

    def encode(self, text: str) -> np.ndarray:
        _utf8(text)
        return np.array(self._tokenizer.encode(text).ids, np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        return self._tokenizer.decode(_in_range(tokens, self.vocab_size).tolist())

    def to_json(self) -> dict[str, Any]:
        return {"kind": "bpe", "serialized": self._tokenizer.to_str()}


def build(kind: str, text: str, training_text: str) -> Tokenizer:
    """The tokenizer of a configuration's `data.tokenizer`.

    Args:
        kind: `byte`, `char` or `bpe:N`.
        text: the whole corpus, whose characters `char` knows.
        training_text: its training part, from which `bpe:N` learns.
    """
    if kind == "byte":
        return ByteTokenizer()
    if kind == "char":
        return CharTokenizer("".join(sorted(set(text))))
    return BpeTokenizer.train(training_text, int(kind.removeprefix("bpe:")))


def from_json(values: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `to_json` described. Raises `UserError` if it is damaged."""
    try:
        kind = values["kind"]
        if kind == "byte":
            return ByteTokenizer()
        if kind == "char":
            return CharTokenizer(values["alphabet"])
        if kind == "bpe":
            json.loads(values["serialized"])
            return BpeTokenizer(values["serialized"])
    except Exception as problem:
        raise UserError(f"The tokenizer saved with this run is damaged ({type(problem).__name__}: {problem}).") from None
    raise UserError(f"The tokenizer saved with this run is of an unknown kind, {kind!r}.")


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise UserError(f"The text is not valid Unicode at character {problem.start}; save it as UTF-8.") from None


def _in_range(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    tokens = np.asarray(tokens)
    outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if outside.size:
        raise UserError(f"The token {outside[0]} is outside this vocabulary, whose tokens are 0 to {vocab_size - 1}.")
    return tokens
