"""Decoding: prompts are read in parallel chunks, then each new token costs one compiled step of the recurrence.

The loop over new tokens runs on the device. Time and memory per token are independent of the history's length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lior_jax.inference import memory_bank, sampling
from lior_jax.inference.memory_bank import MemoryBank, Mixture
from lior_jax.inference.sampling import Sampling
from lior_jax.model import Params, network, recurrence
from lior_jax.model.recurrence import History, Layer
from lior_jax.settings import ModelConfig

CHUNK = 128
"""Largest number of prompt positions that are read at once."""
SEGMENT = 256
"""Largest number of tokens drawn by one call of the loop on the device."""


class Prefix(NamedTuple):
    """Decoding state of `B` sequences."""

    history: History
    seen: Array
    """`[B, V]`, which tokens have occurred."""
    drawn: Array
    """`[B]`, number of tokens drawn so far; the position in each sequence's own stream of random numbers."""


class MeanAttention(NamedTuple):
    """The attention of `T` positions over all blocks and heads: the mean `weight` by lag and the geodesic `cost` averaged with
    these weights, `[T, L]`; the mean `resilience` `[T]`; the `point` `[T, m]` that queries a memory; and the `state`
    `[T, d]` after the last block, from which the next token is predicted."""

    weight: np.ndarray
    cost: np.ndarray
    resilience: np.ndarray
    point: np.ndarray
    state: np.ndarray


class Memory(NamedTuple):
    """A geometric memory and its mixture with the model."""

    bank: MemoryBank
    mixture: Mixture


@dataclass(frozen=True)
class Decoder:
    """A model prepared to read and draw tokens, with an optional memory."""

    params: Params
    config: ModelConfig
    memory: Memory | None = None

    @cached_property
    def layers(self) -> Layer:
        """Parameters prepared for the recurrence."""
        return _layers(self.params, self.config)

    def empty(self, batch: int) -> Prefix:
        """The initial state of `batch` sequences."""
        history = recurrence.empty(self.params, batch, self.config)
        seen = jnp.zeros((batch, self.config.vocab_size), bool)
        return self._placed(Prefix(history, seen, jnp.zeros(batch, jnp.int32)))

    def _placed(self, x: Any) -> Any:
        """`x` with the parameters' sharding: programs would be compiled again for arrays without a committed device."""
        return jax.device_put(x, self.params.embedding.sharding)

    def read(self, prefix: Prefix, texts: Sequence[np.ndarray]) -> Prefix:
        """Read further tokens of each sequence, `[T_b]` of any length, including zero."""
        size = min(CHUNK, self.config.context)
        history, seen = prefix.history, np.array(prefix.seen)
        for row, text in zip(seen, texts, strict=True):
            row[text] = True
        for start in range(0, max(map(len, texts), default=0), size):
            pieces = [text[start : start + size] for text in texts]
            chunk = np.stack([np.pad(piece, (0, size - len(piece))) for piece in pieces]).astype(np.int32)
            lengths = np.array([len(piece) for piece in pieces], np.int32)
            history = _extend(self.params, self.layers, history, chunk, lengths, self.config)
        return Prefix(history, self._placed(seen), prefix.drawn)

    def draw(self, prefix: Prefix, keys: Array, settings: Sampling, count: int) -> tuple[Prefix, np.ndarray]:
        """Draw the next `count ≤ SEGMENT` tokens of every sequence; sequences must not be empty.

        Args:
            keys: `[B]`, one per sequence, so that its tokens do not depend on the rest of the batch.

        Returns:
            The new state, and the tokens `[B, count]`.
        """
        prefix, tokens = _draw(self.params, self.layers, self.memory, prefix, keys, settings, count, self.config)
        return prefix, np.asarray(tokens)[:, :count]

    def stream(self, prefix: Prefix, keys: Array, settings: Sampling, count: int, pace: int = SEGMENT) -> Iterator[np.ndarray]:
        """Yield the next `count` tokens of every sequence, `[B, n]` with `n ≤ pace`, as they are drawn."""
        while count > 0:
            prefix, tokens = self.draw(prefix, keys, settings, min(pace, count, SEGMENT))
            count -= tokens.shape[1]
            yield tokens

    def attention(self, prefix: Prefix, text: np.ndarray) -> MeanAttention:
        """Read the tokens `[T]` of a single sequence one by one, and return their attention."""
        attention = _attention(self.params, self.layers, prefix.history, jnp.asarray(text, jnp.int32), self.config)
        return MeanAttention(*map(np.asarray, attention))


def sequence_keys(seed: int, samples: Sequence[int]) -> Array:
    """A key per sequence `[B]`, derived from the seed and the sequence's sample number only."""
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.asarray(samples, jnp.uint32))


@partial(jax.jit, static_argnums=1)
def _layers(params: Params, config: ModelConfig) -> Layer:
    return recurrence.layers(params, config)


@partial(jax.jit, static_argnums=5)
def _extend(params: Params, layers: Layer, history: History, chunk: Array, lengths: Array, config: ModelConfig) -> History:
    return recurrence.extend(params, layers, history, chunk, lengths, config)[0]


def next_logits(params: Params, memory: Memory | None, history: History, config: ModelConfig) -> Array:
    """Log probabilities, up to a constant, of every sequence's next token: `[B, V]`."""
    logits = network.readout(params.readout, history.last, config.precision)
    if memory is None:
        return logits
    bank, mixture = memory
    recalled = memory_bank.read(bank, memory_bank.flatten(history.query), mixture.inverse_temperature, config.vocabulary)
    return memory_bank.mix(bank, jax.nn.log_softmax(logits), recalled, mixture.weight)


@partial(jax.jit, static_argnums=4)
def _attention(params: Params, layers: Layer, history: History, text: Array, config: ModelConfig) -> tuple[Array, ...]:
    """The fields of `MeanAttention`, in order."""

    def step(known, token):
        known, seen = recurrence.advance(params, layers, known, token[None], config)
        total = jnp.sum(seen.weight, (0, 1, 2))
        cost = jnp.sum(seen.weight * seen.cost, (0, 1, 2)) / jnp.where(total > 0, total, 1)
        point = memory_bank.flatten(known.query)[0]
        weight = total / (config.blocks * config.heads)
        return known, (weight, cost, jnp.mean(seen.resilience), point, known.last[0])

    return lax.scan(step, history, text)[1]


@partial(jax.jit, static_argnums=7)
def _draw(
    params: Params,
    layers: Layer,
    memory: Memory | None,
    prefix: Prefix,
    keys: Array,
    settings: Sampling,
    count: Array,
    config: ModelConfig,
) -> tuple[Prefix, Array]:
    """`count` tokens of every sequence, in a buffer `[B, SEGMENT]`: one program for any count."""

    def draw(carried):
        place, (history, seen, drawn), tokens = carried
        logits = next_logits(params, memory, history, config)
        token = jax.vmap(sampling.sample, (0, 0, 0, None))(jax.vmap(jax.random.fold_in)(keys, drawn), logits, seen, settings)
        history, _ = recurrence.advance(params, layers, history, token, config)
        seen = seen.at[jnp.arange(token.shape[0]), token].set(True)
        return place + 1, Prefix(history, seen, drawn + 1), tokens.at[:, place].set(token)

    tokens = jnp.zeros((keys.shape[0], SEGMENT), jnp.int32)
    _, prefix, tokens = lax.while_loop(lambda carried: carried[0] < count, draw, (jnp.zeros((), jnp.int32), prefix, tokens))
    return prefix, tokens
