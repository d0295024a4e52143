"""The corpus of a run: text, split into a training and a validation part, and tokenised."""

from dataclasses import dataclass

import numpy as np

from lior_jax import config as configuration
from lior_jax.data import tokenizer as tokenizers
from lior_jax.data.text import read_text
from lior_jax.data.tokenizer import Tokenizer
from lior_jax.errors import UserError
from lior_jax.settings import Config
from lior_jax.storage import sums
from lior_jax.storage.checkpoint import Metadata


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
    fingerprint = sums.of([text.encode("utf-8")])
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
