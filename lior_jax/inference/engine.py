"""A trained model ready for inference: generating, streaming, scoring, remembering and explaining text."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lior_jax import config, model
from lior_jax.data import tokenizer
from lior_jax.data.tokenizer import Tokenizer
from lior_jax.errors import UserError
from lior_jax.inference import export, memory_bank, remembering, scoring
from lior_jax.inference.decoder import SEGMENT, Decoder, MeanAttention, Memory, sequence_keys
from lior_jax.inference.explanation import Explanation, Recollection, by_position
from lior_jax.inference.sampling import Sampling
from lior_jax.inference.scoring import Progress, unseen
from lior_jax.inference.text import Writer
from lior_jax.model import Params
from lior_jax.settings import ModelConfig
from lior_jax.storage import checkpoint

PACE = 8
"""Tokens per call of the device loop when text is streamed or may end at a stop string."""

CAPACITY = 2**20
"""Default number of entries of a memory."""

MIN_REMEMBERED = 320
"""Least number of tokens of a text to remember."""

_HELD_OUT = 4096  # largest number of targets on which the mixture is chosen
_RECOLLECTIONS = 3  # entries shown for each explained token
_SNIPPET = 24  # tokens shown of each
_log = logging.getLogger(__name__)


class Score(NamedTuple):
    """Losses of a text, excluding its first token, which has no context."""

    tokens: int
    nats_per_token: float
    nats_per_character: float
    """Nats per token times the text's tokens per character."""
    nats_per_character_alone: float
    """The same for the model without its memory."""

    @property
    def bits_per_character(self) -> float:
        return self.nats_per_character / float(np.log(2))

    @property
    def perplexity(self) -> float:
        """Perplexity per token: the number of equally probable tokens of the same entropy."""
        return float(np.exp(self.nats_per_token))


@dataclass(frozen=True)
class Engine:
    """A model ready for inference: `Engine.from_checkpoint("runs/quickstart").generate("The ")`."""

    params: Params
    config: ModelConfig
    tokenizer: Tokenizer
    memory: Memory | None = None

    @classmethod
    def from_checkpoint(cls, path: str | Path, step: int | None = None) -> "Engine":
        """Load a run's best checkpoint, or that of a given step; or an exported model.

        If the best checkpoint is damaged, a warning is logged and the newest intact one is loaded.

        Raises:
            UserError: no such run or step, or a damaged checkpoint without a replacement.
        """
        if export.is_export(path):
            if step is not None:
                raise UserError(f"{path} is an exported model and has no steps; leave the step out.")
            return cls(*export.load(path))
        with checkpoint.open_run(path) as checkpoints:
            if step is None:
                best = checkpoints.best
                steps = [*([] if best is None else [best]), *(x for x in reversed(checkpoints.steps) if x != best)]
            elif step in checkpoints.steps:
                steps = [step]
            else:
                raise UserError(f"{path} has no checkpoint of step {step}; it has {', '.join(map(str, checkpoints.steps))}.")
            found = checkpoints.first_whole(steps, partial(cls._read, checkpoints))
        assert found is not None  # `steps` is not empty
        _, engine, passed = found
        for sentence in passed:
            _log.warning("%s", sentence)
        return engine

    @classmethod
    def _read(cls, checkpoints: checkpoint.Checkpoints, step: int) -> "Engine":
        metadata = checkpoints.metadata(step)
        saved = {"model": metadata.config.get("model")}
        model_config = config.validate_model(saved, f"The configuration saved in {checkpoints.run}")
        words = tokenizer.from_json(metadata.tokenizer)
        if words.vocab_size != model_config.vocab_size:
            raise UserError(
                f"The checkpoint of step {step} in {checkpoints.run} has a model of {model_config.vocab_size} tokens and a "
                f"tokenizer of {words.vocab_size}; use another checkpoint."
            )
        like = checkpoint.abstract(partial(model.init, config=model_config), jax.random.key(0))
        return cls(checkpoints.params(step, like), model_config, words)

    @cached_property
    def decoder(self) -> Decoder:
        """The decoder of this model."""
        return Decoder(self.params, self.config, self.memory)

    def stream(
        self,
        prompt: str,
        max_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
        sample: int = 0,
    ) -> Iterator[str]:
        """Yield pieces of the continuation as they are decoded; joined, they equal the result of `generate`.

        Args:
            prompt: at least one character; read in full, whatever its length.
            max_tokens: length of the continuation, unless a stop string ends it earlier.
            temperature, top_k, top_p, min_p, repetition_penalty: see `sampling.Sampling`.
            stop: strings that end the continuation; not part of it.
            seed, sample: determine the text, alone or in a batch.

        Raises:
            UserError: an empty prompt, one that the tokenizer cannot encode, or a setting out of range.
        """
        settings = Sampling(temperature, top_k, top_p, min_p, repetition_penalty).check()
        _check(max_tokens, seed, stop)
        tokens = self.encode(prompt)
        return self._stream(tokens, max_tokens, settings, tuple(stop), seed, sample)

    def _stream(self, tokens: np.ndarray, max_tokens: int, settings: Sampling, stop: tuple[str, ...], seed: int, sample: int):
        writer = Writer(self.tokenizer.decode, stop)
        prefix = self.decoder.read(self.decoder.empty(1), [tokens])
        for drawn in self.decoder.stream(prefix, sequence_keys(seed, [sample]), settings, max_tokens, PACE):
            if piece := "".join(map(writer.write, drawn[0])):
                yield piece
            if writer.stopped:
                return
        if piece := writer.end():
            yield piece

    def generate(
        self,
        prompt: str | Sequence[str],
        max_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
        sample: int | Sequence[int] = 0,
    ) -> str | list[str]:
        """The continuation of a prompt, or of several decoded together; arguments and errors as in `stream`.

        Args:
            sample: of the prompt, or one per prompt.
        """
        settings = Sampling(temperature, top_k, top_p, min_p, repetition_penalty).check()
        _check(max_tokens, seed, stop)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        samples = [sample] * len(prompts) if isinstance(sample, int) else list(sample)
        if len(samples) != len(prompts):
            raise UserError(f"There are {len(prompts)} prompts and {len(samples)} sample numbers; give one for each prompt.")
        texts = [self.encode(text) for text in prompts]
        if not texts:
            return []
        writers = [Writer(self.tokenizer.decode, stop) for _ in texts]
        pieces: list[list[str]] = [[] for _ in texts]
        prefix = self.decoder.read(self.decoder.empty(len(texts)), texts)
        for drawn in self.decoder.stream(prefix, sequence_keys(seed, samples), settings, max_tokens, PACE if stop else SEGMENT):
            for writer, shown, row in zip(writers, pieces, drawn, strict=True):
                shown.extend(map(writer.write, row))
            if all(writer.stopped for writer in writers):
                break
        found = ["".join(shown) + writer.end() for writer, shown in zip(writers, pieces, strict=True)]
        return found[0] if isinstance(prompt, str) else found

    def score(self, text: str, stride: int | None = None, progress: Progress = unseen) -> Score:
        """Losses of a text: of each token but the first, given the tokens before it in a window.

        Args:
            text: at least two tokens.
            stride: targets scored per window (see `scoring.cover`); half the context by default.
            progress: reports the progress.
        """
        tokens = self.tokenizer.encode(text)
        if len(tokens) < 2:
            raise UserError("The text to score needs at least two tokens, since the first one is only given.")
        stride = scoring.half_window(self.config.context) if stride is None else stride
        windows = scoring.cover(tokens, self.config.context, stride)
        if self.memory is None:
            alone = nats = scoring.mean_nats(self.params, windows, self.config, progress)
        else:
            (alone, nats), _ = remembering.score(
                self.memory.bank, self.params, windows, self.config, self.memory.mixture, progress=progress
            )
        per_character = len(tokens) / len(text)
        return Score(len(tokens) - 1, nats, nats * per_character, alone * per_character)

    def remember(self, text: str, capacity: int = CAPACITY, progress: Progress = unseen) -> "Engine":
        """A new engine with the text added to its memory; no parameter changes.

        The mixture of memory and model is fitted on the last tenth of the text, before that is added too.

        Args:
            text: at least `MIN_REMEMBERED` tokens.
            capacity: entries of a new memory; the oldest are overwritten when it is full.
            progress: reports the progress.

        Raises:
            UserError: the text is too short, or the tokenizer cannot encode it.
        """
        tokens = self.tokenizer.encode(text)
        if len(tokens) < MIN_REMEMBERED:
            raise UserError(
                f"The text to remember has {len(tokens)} tokens, but at least {MIN_REMEMBERED} are needed: a tenth of them "
                "decides how far the memory is trusted."
            )
        cut = len(tokens) - len(tokens) // 10
        bank = memory_bank.empty(capacity, self.config) if self.memory is None else self.memory.bank
        bank = remembering.remember(bank, self.params, tokens[:cut], self.config, progress)
        stride = scoring.half_window(self.config.context)
        held_out = scoring.cover(tokens[cut:], self.config.context, stride, max(1, _HELD_OUT // stride))
        mixture, _ = remembering.choose(bank, self.params, held_out, self.config, progress)
        bank = remembering.remember(bank, self.params, tokens[cut:], self.config, progress)
        return replace(self, memory=Memory(bank, mixture))

    def save_memory(self, path: str | Path) -> None:
        """Write the memory to a file for this model only. Raises `UserError` without a memory, or if the file cannot be
        written."""
        if self.memory is None:
            raise UserError("There is no memory to save; let the model remember a text first.")
        memory_bank.save(path, self.memory.bank, self.params, self.memory.mixture)

    def with_memory(self, path: str | Path) -> "Engine":
        """A new engine with the memory from a file. Raises `UserError` for a damaged file or another model's memory."""
        return replace(self, memory=Memory(*memory_bank.load(path, self.params, self.config)))

    def explain(self, prompt: str, continuation: str | None = None, **settings) -> Explanation:
        """The earlier tokens from which each token of a continuation was retrieved.

        Args:
            continuation: the text to explain; by default it is generated, with the `settings` of `stream`.

        Raises:
            UserError: as `stream`, or an empty continuation.
        """
        if continuation is None:
            continuation = "".join(self.stream(prompt, **settings))
        before, after = self.encode(prompt), self.tokenizer.encode(continuation)
        if not len(after):
            raise UserError("There is no continuation to explain; let it have at least one token.")
        tokens = np.concatenate([before, after])
        prefix = self.decoder.read(self.decoder.empty(1), [before[:-1]])
        # A token is predicted by the retrieval at the position before it.
        attention = self.decoder.attention(prefix, tokens[len(before) - 1 : -1])
        names = [self.tokenizer.decode(tokens[place : place + 1]) for place in range(len(tokens))]
        share, memories = self._memory_share(attention, after), self._recollections(attention.point)
        return by_position(attention, names, len(before), share, memories)

    def _memory_share(self, attention: MeanAttention, tokens: np.ndarray) -> np.ndarray | None:
        """The memory's share of each token's probability, `[T]`; None without a memory."""
        if self.memory is None:
            return None
        bank, (weight, beta) = self.memory
        recalled = memory_bank.read(bank, jnp.asarray(attention.point), beta, self.config.vocabulary)
        log_model = jax.nn.log_softmax(
            model.network.readout(self.params.readout, jnp.asarray(attention.state), self.config.precision)
        )
        return np.asarray(memory_bank.share(bank, log_model, recalled, weight))[np.arange(len(tokens)), tokens]

    def _recollections(self, points: np.ndarray) -> list[list[Recollection]]:
        if self.memory is None:
            return []
        bank, mixture = self.memory
        recalled = memory_bank.recall(bank, jnp.asarray(points), mixture.inverse_temperature, _RECOLLECTIONS)
        # Entries are stored in reading order.
        near = np.asarray(recalled.place)[..., None] - np.arange(_SNIPPET)[::-1]
        texts = np.asarray(bank.tokens)[near % bank.capacity]
        found = zip(texts, near >= 0, *map(np.asarray, (recalled.cost, mixture.weight * recalled.weight)), strict=True)
        return [
            [
                Recollection(self.tokenizer.decode(text[there]), float(cost), float(weight))
                for text, there, cost, weight in zip(*row, strict=True)
                if there[-1]
            ]
            for row in found
        ]

    def export(self, folder: str | Path) -> Path:
        """Write the weights to `folder / "model.safetensors"`, with configuration and tokenizer; returns the folder.

        Raises:
            UserError: the folder cannot be written to.
        """
        export.export(self.params, self.config, self.tokenizer, folder)
        return Path(folder)

    def with_unknown(self, unknown: str) -> "Engine":
        """A new engine that refuses or replaces characters outside its vocabulary: `refuse` or `replace`."""
        return replace(self, tokenizer=tokenizer.with_unknown(self.tokenizer, unknown))

    def replaced(self, text: str) -> str | None:
        """A sentence about the characters of a text that are replaced, with their count; None if there are none.

        Raises:
            UserError: the text has such characters and they are refused.
        """
        if unknown := self.tokenizer.unknown(text):
            self.tokenizer.encode(text)
        return tokenizer.replaced(self.tokenizer, unknown)

    def encode(self, prompt: str) -> np.ndarray:
        """Tokens of a non-empty prompt."""
        if not prompt:
            raise UserError("The prompt is empty, but the model needs at least one character to start from.")
        return self.tokenizer.encode(prompt)


def _check(max_tokens: int, seed: int, stop: Sequence[str]) -> None:
    if not max_tokens >= 0:
        raise UserError(f"max-tokens is {max_tokens}, but must be 0 or more.")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}, but must be between 0 and 4294967295.")
    if isinstance(stop, str) or not all(stop):
        raise UserError("stop must be a list of strings that are not empty.")
