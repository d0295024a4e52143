"""The kinds of tokenizers: bytes, characters, byte pairs (Sennrich et al. 2016), and a file of the `tokenizers` library."""

import re
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from lior_jax.data.sources import parted
from lior_jax.errors import UserError

REPLACEMENT = "\ufffd"
"""Replaces every character outside a `char` vocabulary, with `replace`."""

_LONGEST_WORD = 256
"""Bytes after which `bpe:N` splits a run of letters, digits, symbols or whitespace; shorter runs are unchanged."""
_PART = 2**14
"""Approximate number of characters that `bpe:N` encodes at once; whole texts would need a hundred times their size."""


class ByteTokenizer:
    """A token for every byte of UTF-8."""

    vocab_size = 256

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(_utf8(text), np.uint8).astype(np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        return bytes(_in_range(tokens, self.vocab_size).tolist()).decode("utf-8", "replace")

    def unknown(self, text: str) -> Counter[str]:
        return Counter()

    def to_json(self) -> dict[str, Any]:
        return {"kind": "byte"}

    def to_library(self) -> str:
        made = tokenizers.Tokenizer(models.BPE(vocab=_byte_letters(), merges=[]))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.decoder = decoders.ByteLevel()
        return made.to_str()


class CharTokenizer:
    """A token for every character of an alphabet, in its order.

    Args:
        alphabet: the characters.
        replacement: one of them, which replaces all others; by default these are refused.
    """

    def __init__(self, alphabet: str, replacement: str | None = None):
        self.alphabet, self.replacement = alphabet, replacement
        self.vocab_size = len(alphabet)

    @cached_property
    def _table(self) -> np.ndarray:
        table = np.full(0x110000, -1, np.int32)
        table[code_points(self.alphabet)] = np.arange(self.vocab_size)
        return table

    def encode(self, text: str) -> np.ndarray:
        tokens = self._table[code_points(text)]
        outside = np.flatnonzero(tokens < 0)
        if not outside.size:
            return tokens
        if self.replacement is None:
            raise UserError(
                f"The character {text[outside[0]]!r} is not among the {self.vocab_size} that this model was trained on; "
                "leave it out, have it replaced (--unknown replace; in training, data.unknown=replace), or train with "
                "data.tokenizer=byte or bpe:N."
            )
        tokens[outside] = self._table[ord(self.replacement)]
        return tokens

    def decode(self, tokens: np.ndarray) -> str:
        return "".join(self.alphabet[token] for token in _in_range(tokens, self.vocab_size))

    def unknown(self, text: str) -> Counter[str]:
        outside = np.flatnonzero(self._table[code_points(text)] < 0)
        return Counter(text[place] for place in outside)

    def with_unknown(self, unknown: str) -> "CharTokenizer":
        """The same vocabulary, with unknown characters refused, or replaced by U+FFFD if it contains that, else by a question
        mark, a space or its first character."""
        if unknown == "refuse":
            return CharTokenizer(self.alphabet)
        stand_ins = [character for character in (REPLACEMENT, "?", " ") if character in self.alphabet]
        return CharTokenizer(self.alphabet, self.replacement or (stand_ins or self.alphabet)[0])

    def to_json(self) -> dict[str, Any]:
        replacement = {} if self.replacement is None else {"replacement": self.replacement}
        return {"kind": "char", "alphabet": self.alphabet} | replacement

    def to_library(self) -> str:
        vocabulary = {character: token for token, character in enumerate(self.alphabet)}
        # Without an unknown token in the vocabulary, the library refuses unknown characters.
        made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=self.replacement or "<unknown>"))
        made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        made.decoder = decoders.Fuse()
        return made.to_str()


class BpeTokenizer:
    """Byte-level byte-pair encoding by the `tokenizers` library; every text can be encoded."""

    def __init__(self, serialized: str):
        self._tokenizer = tokenizers.Tokenizer.from_str(serialized)
        self.vocab_size = self._tokenizer.get_vocab_size()

    @classmethod
    def train(cls, pieces: Iterable[str], vocab_size: int) -> "BpeTokenizer":
        """Learn merges from a text in pieces until the vocabulary is full or no pair occurs twice."""
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = _words()
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        paragraphs = (paragraph for piece in pieces for paragraph in re.split(r"(?<=\n\n)", piece))
        tokenizer.train_from_iterator(paragraphs, trainer)
        return cls(tokenizer.to_str())

    def encode(self, text: str) -> np.ndarray:
        _utf8(text)
        found = self._tokenizer.encode_batch_fast(parted(text, _PART), add_special_tokens=False)
        return np.concatenate([np.array(part.ids, np.int32) for part in found])

    def decode(self, tokens: np.ndarray) -> str:
        return self._tokenizer.decode(_in_range(tokens, self.vocab_size).tolist())

    def unknown(self, text: str) -> Counter[str]:
        return Counter()

    def to_json(self) -> dict[str, Any]:
        return {"kind": "bpe", "serialized": self._tokenizer.to_str()}

    def to_library(self) -> str:
        return self._tokenizer.to_str()


class FileTokenizer:
    """A tokenizer.json from elsewhere, with its own handling of unknown characters; no special tokens are added around a text.

    Args:
        serialized: the file's content.
        path: its origin, for the configuration.
    """

    def __init__(self, serialized: str, path: str):
        self._tokenizer, self.path = tokenizers.Tokenizer.from_str(serialized), path
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1  # ids may have gaps

    def encode(self, text: str) -> np.ndarray:
        _utf8(text)
        return np.array(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids, np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        return self._tokenizer.decode(_in_range(tokens, self.vocab_size).tolist())

    def unknown(self, text: str) -> Counter[str]:
        return Counter()

    def to_json(self) -> dict[str, Any]:
        return {"kind": "file", "serialized": self._tokenizer.to_str(), "path": self.path}

    def to_library(self) -> str:
        return self._tokenizer.to_str()


def cuts_words(serialized: str) -> bool:
    """Whether a `tokenizer.json` splits a text into words as `bpe:N` does."""
    other = tokenizers.Tokenizer.from_str(serialized)
    words = other.pre_tokenizer
    return words is not None and words.__getstate__() == _words().__getstate__() and other.normalizer is None


def _words() -> pre_tokenizers.PreTokenizer:
    # Merging takes quadratic time in the length of a word, and a text without spaces is one word.
    cut = pre_tokenizers.Split(Regex(f".{{{_LONGEST_WORD}}}"), "isolated")
    return pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False), cut])


def code_points(text: str) -> np.ndarray:
    """The code points of a text's characters, `[T]` uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _byte_letters() -> dict[str, int]:
    """The character for each byte in byte-level vocabularies: itself if printable, else one from code point 256 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


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
