"""The corpus of a run: text, split into a training and a validation part, and tokenised."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lior_jax import config as configuration
from lior_jax.data import shards, sources
from lior_jax.data import tokenizer as tokenizers
from lior_jax.data.sources import Report, Source, unreported
from lior_jax.data.survey import beginning
from lior_jax.data.tokenizer import Tokenizer
from lior_jax.errors import UserError
from lior_jax.settings import REQUIRED, Config, DataConfig
from lior_jax.storage import sums
from lior_jax.storage.checkpoint import Metadata

IN_MEMORY = 2**24
"""Largest number of characters of a text that is read by every run and kept in memory."""


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus. Training and validation text do not overlap: one ends where the other starts."""

    train: np.ndarray
    """`[T]` int32; or, mapped from a file, uint16 or uint32."""
    validation: np.ndarray
    """`[T']`, likewise."""
    tokenizer: Tokenizer
    characters_per_token: float
    """Ratio of characters to tokens in the validation text; turns nats per token into nats per character."""
    fingerprint: str
    """SHA-256 of the text, by which a resumed run recognises its corpus."""
    beginning: str
    """Its first characters: the default prompt of samples."""
    unknown: Mapping[str, int]
    """Replaced characters outside the vocabulary, with their counts."""
    folder: Path | None = None
    """Folder of the tokens of a long text."""


def load(config: Config, saved: Metadata | None = None, another: bool = False, report: Report = unreported) -> Corpus:
    """Read, split and tokenise the corpus of a configuration: in memory, or into the cache (`shards`) if it is long.

    Args:
        saved: corpus metadata of a run to resume, whose tokenizer is used.
        another: whether the text may differ from that run's.
        report: reports the progress of a long text.

    Raises:
        UserError: no such file, no text in it, not UTF-8, too short for one window in each part, or not the saved one; or the
            configuration requires a text and none is given.
    """
    data = config.data
    if data.path == REQUIRED:
        raise UserError(
            "data.path: this configuration is for a text of your own; give it with --set data.path=FILE "
            "(or take the embedded one with --set data.path=null)."
        )
    source = sources.find(data.path, data.field)

    def check(fingerprint: str) -> None:
        if saved is not None and saved.corpus != fingerprint and not another:
            raise UserError(
                f"{source.name} is not the corpus that {config.run.directory} was started with; restore it to resume, or take "
                "the new one by --force."
            )

    words = None
    if saved is not None:
        words = tokenizers.with_unknown(tokenizers.from_json(saved.tokenizer), data.unknown).to_json()
    text = source.short(IN_MEMORY)
    corpus = _read(text, data, words, check) if text is not None else _mapped(source, data, words, check, report)
    # Including one for characters outside the text, with `replace`.
    if corpus.tokenizer.vocab_size < (3 if data.unknown == "replace" else 2):
        raise UserError(f"{source.name} consists of one character, over and over; give a text with something to learn.")
    for name, tokens in (("training", corpus.train), ("validation", corpus.validation)):
        if len(tokens) <= config.model.context:
            raise UserError(
                f"The {name} part of {source.name} has {len(tokens)} tokens, but one window needs model.context + 1 = "
                f"{config.model.context + 1}; give a longer text, a shorter context or another data.validation_fraction."
            )
    return corpus


def _read(text: str, data: DataConfig, words: dict[str, Any] | None, check: Callable[[str], object]) -> Corpus:
    """The corpus of a short text."""
    fingerprint = sums.of([text.encode("utf-8")])
    check(fingerprint)
    cut = len(text) - round(len(text) * data.validation_fraction)
    parts = text[:cut], text[cut:]
    if words is not None:
        tokenizer = tokenizers.from_json(words)
    else:
        tokenizer = tokenizers.build(data.tokenizer, text, [parts[0]], data.unknown)
    train, validation = (tokenizer.encode(part) for part in parts)
    return Corpus(
        train=train,
        validation=validation,
        tokenizer=tokenizer,
        characters_per_token=len(parts[1]) / max(1, len(validation)),
        fingerprint=fingerprint,
        beginning=beginning(text),
        unknown=tokenizer.unknown(text),
    )


def _mapped(
    source: Source, data: DataConfig, words: dict[str, Any] | None, check: Callable[[str], object], report: Report
) -> Corpus:
    """The corpus of a long text."""
    found = shards.load(source, data, words, check, report)
    about = found.about
    check(about["fingerprint"])
    return Corpus(
        *found.tokens,
        tokenizer=tokenizers.from_json(about["tokenizer"]),
        characters_per_token=about["characters"]["validation"] / max(1, about["tokens"]["validation"]),
        fingerprint=about["fingerprint"],
        beginning=about["beginning"],
        unknown=about["unknown"],
        folder=found.folder,
    )


def with_vocabulary(config: Config, corpus: Corpus) -> Config:
    """The configuration completed from its corpus: the vocabulary size, and the prompt of the samples if not set.

    Raises:
        UserError: the configuration sets another vocabulary size.
    """
    size, given = corpus.tokenizer.vocab_size, config.model.vocab_size
    if given not in (None, size):
        raise UserError(f"model.vocab_size is {given}, but the tokenizer has {size} tokens; leave the key out.")
    prompt = corpus.beginning if config.sample.prompt is None else config.sample.prompt
    return configuration.replace(configuration.replace(config, "model", vocab_size=size), "sample", prompt=prompt)


def check_sample(config: Config, corpus: Corpus) -> None:
    """Refuse a prompt that cannot be encoded, before the first evaluation."""
    assert config.sample.prompt is not None  # the first characters of the text, unless set
    try:
        corpus.tokenizer.encode(config.sample.prompt)
    except UserError as problem:
        raise UserError(f"sample.prompt: {problem}") from None
