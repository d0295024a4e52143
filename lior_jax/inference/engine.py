"""Generating and scoring text with a trained model.

Decoding computes the whole window of the last `context` tokens for each new one.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lior_jax import checkpoint, config, model, tokenizer
from lior_jax.config import ModelConfig
from lior_jax.errors import UserError
from lior_jax.inference import sampling, scoring
from lior_jax.model import Params
from lior_jax.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
_REPLACEMENT = "�"


class Score(NamedTuple):
    """Of a text, its first token excepted, which nothing precedes."""

    tokens: int
    nats_per_token: float
    nats_per_character: float
    """Nats per token times the text's tokens per character."""

    @property
    def bits_per_character(self) -> float:
        return self.nats_per_character / float(np.log(2))


@dataclass(frozen=True)
class Engine:
    """A model ready for use: `Engine.from_checkpoint("runs/quickstart").generate("The ")`."""

    params: Params
    config: ModelConfig
    tokenizer: Tokenizer

    @classmethod
    def from_checkpoint(cls, path: str | Path, step: int | None = None) -> "Engine":
        """Load a run's best checkpoint, or the one of a step.

        If the best one is damaged, that is logged as a warning, and the newest whole one is loaded.

        Raises:
            UserError: no such run or step, or a damaged checkpoint and no other to use instead.
        """
        with checkpoint.open_run(path) as checkpoints:
            if step is None:
                steps = dict.fromkeys([checkpoints.best, *reversed(checkpoints.steps)])
            elif step in checkpoints.steps:
                steps = [step]
            else:
                raise UserError(f"{path} has no checkpoint of step {step}; it has {', '.join(map(str, checkpoints.steps))}.")
            _, engine, passed = checkpoints.first_whole(steps, partial(cls._read, checkpoints))
        for sentence in passed:
            _log.warning("%s", sentence)
        return engine

    @classmethod
    def _read(cls, checkpoints: checkpoint.Checkpoints, step: int) -> "Engine":
        metadata = checkpoints.metadata(step)
        saved = {"model": metadata.config.get("model")}
        model_config = config.validate(saved, f"The configuration saved in {checkpoints.run}").model
        words = tokenizer.from_json(metadata.tokenizer)
        if words.vocab_size != model_config.vocab_size:
            raise UserError(
                f"The checkpoint of step {step} in {checkpoints.run} has a model of {model_config.vocab_size} tokens and a "
                f"tokenizer of {words.vocab_size}; use another checkpoint."
            )
        like = checkpoint.abstract(partial(model.init, config=model_config), jax.random.key(0))
        return cls(checkpoints.params(step, like), model_config, words)

    def stream(
        self,
        prompt: str,
        max_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        sample: int = 0,
    ) -> Iterator[str]:
        """Yield pieces of the continuation as they are decoded; together they are what `generate` returns.

        Args:
            prompt: at least one character.
            max_tokens: length of the continuation.
            temperature: Boltzmann temperature; 0 always takes the most probable token.
            top_k: choose among the `top_k` most probable tokens only; 0 for all.
            top_p: choose among the most probable tokens that reach this probability together; 1 for all.
            seed, sample: the same two give the same text.

        Raises:
            UserError: an empty prompt, one that the tokenizer cannot encode, or a setting out of range.
        """
        _check_settings(max_tokens, temperature, top_k, top_p, seed)
        if not prompt:
            raise UserError("The prompt is empty, but the model needs at least one character to start from.")
        prompt_tokens = self.tokenizer.encode(prompt)
        settings = temperature, min(top_k, self.tokenizer.vocab_size), top_p
        return self._stream(prompt_tokens, max_tokens, settings, seed, sample)

    def _stream(self, prompt: np.ndarray, max_tokens: int, settings: tuple[float, int, float], seed: int, sample: int):
        key = jax.random.fold_in(jax.random.key(seed), sample)
        length = min(len(prompt), self.config.context)
        window = np.zeros((1, self.config.context), np.int32)
        window[0, :length] = prompt[-length:]
        window, length = jnp.asarray(window), jnp.asarray(length)
        tokens, shown = list(prompt), self.tokenizer.decode(prompt)
        for place in range(max_tokens):
            token, window, length = _decode_step(
                self.params, window, length, jax.random.fold_in(key, place), *settings, self.config
            )
            tokens.append(int(token))
            text = self.tokenizer.decode(np.array(tokens))
            # A character of several bytes is shown when its last byte is there.
            if not text.endswith(_REPLACEMENT) or place == max_tokens - 1:
                yield text[len(shown) :]
                shown = text

    def generate(self, prompt: str, **settings) -> str:
        """The continuation of a prompt; arguments and errors as in `stream`."""
        return "".join(self.stream(prompt, **settings))

    def score(self, text: str, stride: int | None = None) -> Score:
        """How well the model predicts a text: each token but the first, given the window before it.

        Args:
            text: at least two tokens.
            stride: targets scored per window (see `scoring.cover`); half the context by default.
        """
        tokens = self.tokenizer.encode(text)
        if len(tokens) < 2:
            raise UserError("The text to score needs at least two tokens, since the first one is only given.")
        stride = max(1, self.config.context // 2) if stride is None else stride
        nats = scoring.mean_nats(self.params, scoring.cover(tokens, self.config.context, stride), self.config)
        return Score(len(tokens) - 1, nats, nats * len(tokens) / len(text))


@partial(jax.jit, static_argnums=7, donate_argnums=1)
def _decode_step(
    params: Params,
    window: Array,
    length: Array,
    key: Array,
    temperature: Array,
    top_k: Array,
    top_p: Array,
    config: ModelConfig,
) -> tuple[Array, Array, Array]:
    """Draw the token after the first `length` of `window` `[1, L]`; put it there, sliding the window when it is full."""
    logits = model.logits(params, window, config)[0, length - 1]
    token = sampling.sample(key, logits, temperature, top_k, top_p)
    full = length == config.context
    window = jnp.where(full, jnp.roll(window, -1, axis=1), window)
    place = jnp.where(full, config.context - 1, length)
    return token, window.at[0, place].set(token), place + 1


def _check_settings(max_tokens: int, temperature: float, top_k: int, top_p: float, seed: int) -> None:
    for name, value, is_good, allowed in (
        ("max-tokens", max_tokens, max_tokens >= 0, "0 or more"),
        ("temperature", temperature, 0 <= temperature < float("inf"), "0 or more"),
        ("top-k", top_k, top_k >= 0, "0 (all) or more"),
        ("top-p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
        ("seed", seed, 0 <= seed < 2**32, "between 0 and 4294967295"),
    ):
        if not is_good:
            raise UserError(f"{name} is {value}, but must be {allowed}.")
