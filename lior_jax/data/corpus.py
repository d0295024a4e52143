"""The corpus of a run: text, split into a training and a validation part, and tokenised."""

from dataclasses import dataclass

import numpy as np

from lior_jax import config as configuration
from lior_jax.data import tokenizer as tokenizers
from lior_jax.data.text import read_text
from lior_jax.data.tokenizer import Tokenizer
from lior_jax.errors import UserError
from lior_jax.settings import REQUIRED, Config
from lior_jax.storage import sums
from lior_jax.storage.checkpoint import Metadata

_BEGINNING = 24
"""Characters of a text's beginning, at most."""


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus. Training and validation text never overlap: the one ends where the other begins."""

    train: np.ndarray
    """`[T]` int32."""
    validation: np.ndarray
    """`[T']` int32."""
    tokenizer: Tokenizer
    characters_per_token: float
    """Ratio of characters to tokens in the validation text; turns nats per token into nats per character."""
    fingerprint: str
    """SHA-256 of the text, by which a resumed run knows its corpus again."""
    beginning: str
    """Its first characters: the prompt of samples that have none of their own."""


def load(config: Config, saved: Metadata | None = None, another: bool = False) -> Corpus:
    """Read, split and tokenise the corpus of a configuration.

    Args:
        saved: of a run to resume, whose tokenizer is used.
        another: whether the text may be another one than that run's.

    Raises:
        UserError: no such file, no text in it, not UTF-8, too short for one window in each part, or not the saved one; or the
            configuration requires a text and was given none.
    """
    if config.data.path == REQUIRED:
        raise UserError(
            "data.path: this configuration is for a text of your own; give it with --set data.path=FILE "
            "(or take the embedded one with --set data.path=null)."
        )
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
        beginning=_beginning(text),
    )


def _beginning(text: str) -> str:
    """The text's first characters, to the end of its first line if there is something on it."""
    first = text[:_BEGINNING]
    line = first.splitlines()[0]
    return line if line.strip() else first


def with_vocabulary(config: Config, corpus: Corpus) -> Config:
    """The configuration with what its corpus decides: the vocabulary, and the prompt of the samples unless it has its own.

    Raises:
        UserError: it names another vocabulary.
    """
    size, given = corpus.tokenizer.vocab_size, config.model.vocab_size
    if given not in (None, size):
        raise UserError(f"model.vocab_size is {given}, but the tokenizer has {size} tokens; leave the key out.")
    prompt = corpus.beginning if config.sample.prompt is None else config.sample.prompt
    return configuration.replace(configuration.replace(config, "model", vocab_size=size), "sample", prompt=prompt)


def check_sample(config: Config, corpus: Corpus) -> None:
    """Refuse a prompt that cannot be encoded now, not at the first evaluation."""
    try:
        corpus.tokenizer.encode(config.sample.prompt)
    except UserError as problem:
        raise UserError(f"sample.prompt: {problem}") from None
