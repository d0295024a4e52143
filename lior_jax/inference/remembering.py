"""Reading texts into a geometric memory, scoring texts with it, and fitting its mixture with the model.

Retrieval never sees the text being scored: a window's entries are written only after it has been scored. The weight of the
memory is fitted by expectation-maximisation (Dempster et al. 1977).
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lior_jax.errors import UserError
from lior_jax.inference import memory_bank, scoring
from lior_jax.inference.memory_bank import MemoryBank, Mixture
from lior_jax.inference.scoring import Progress, Windows, unseen
from lior_jax.model import Params
from lior_jax.settings import ModelConfig

SHARPNESS = (6.0, 8.0, 11.0, 16.0, 23.0, 32.0, 45.0, 64.0)
"""Inverse temperatures tried by `choose`, in units of the inverse typical distance of a query from an entry."""

_WINDOWS_AT_ONCE = 16


class RememberedScore(NamedTuple):
    """Mean nats of the counted targets, by the model alone and with its memory."""

    model: float
    mixed: float


class _Batch(NamedTuple):
    """Windows `[K, L]` and their counted positions: `places` and `targets` `[K, S]`, with `valid` false for padding. `S` is the
    largest number of counted positions in a window."""

    tokens: np.ndarray
    places: np.ndarray
    targets: np.ndarray
    valid: np.ndarray


def remember(
    bank: MemoryBank, params: Params, tokens: np.ndarray, config: ModelConfig, progress: Progress = unseen
) -> MemoryBank:
    """Read a text: the coordinates of each of its tokens but the last, and the token after it.

    Args:
        tokens: `[T]`, read in windows such that each entry has at least half a context of history, except at the start.

    Raises:
        UserError: fewer than two tokens.
    """
    if len(tokens) < 2:
        raise UserError("The text to remember needs at least two tokens: one, and the one that follows it.")
    windows = scoring.cover(tokens, config.context, max(1, config.context // 2))
    bank = jax.tree.map(jnp.copy, bank)  # the given one is kept; the copy's buffers are donated
    for batch in _batches(windows, _WINDOWS_AT_ONCE, "remembering", progress):
        _, points = _look(params, batch, config)
        bank = _commit(bank, points, batch)
    return bank


def score(
    bank: MemoryBank,
    params: Params,
    windows: Windows,
    config: ModelConfig,
    mixture: Mixture,
    commit: bool = False,
    progress: Progress = unseen,
) -> tuple[RememberedScore, MemoryBank]:
    """Score a text with model and memory.

    Args:
        windows: from `scoring.cover`.
        commit: add each window's counted positions to the memory once it is scored, for use by later windows.

    Returns:
        The score, and the memory, unchanged unless `commit`.
    """
    total, count = np.zeros(2), int(windows.counts.sum())
    bank = jax.tree.map(jnp.copy, bank) if commit else bank
    for batch in _batches(windows, 1 if commit else _WINDOWS_AT_ONCE, "scoring", progress):
        logits, points = _look(params, batch, config)
        nats = -np.stack(_log_probabilities(bank, logits, points, batch.targets, mixture))
        total += nats.sum((1, 2), dtype=np.float64, where=batch.valid)
        bank = _commit(bank, points, batch) if commit else bank
    return RememberedScore(*map(float, total / count)), bank


def choose(
    bank: MemoryBank, params: Params, windows: Windows, config: ModelConfig, progress: Progress = unseen
) -> tuple[Mixture, RememberedScore]:
    """The mixture that predicts a held-out text best: inverse temperature from a grid, weight by expectation-maximisation.

    Args:
        bank: not empty; it is not changed.
        windows: of the held-out text, from `scoring.cover`; a few thousand counted targets suffice.

    Returns:
        The mixture, and its score on the held-out text.

    Raises:
        UserError: the memory is empty.
    """
    if not int(bank.present):
        raise UserError("The memory is empty, so there is nothing to mix; let it read a text first.")
    seen = []
    for batch in _batches(windows, _WINDOWS_AT_ONCE, "choosing", progress):
        logits, points = _look(params, batch, config)
        log_model = np.asarray(_of_targets(jax.nn.log_softmax(logits), jnp.asarray(batch.targets)))
        seen.append((np.asarray(points)[batch.valid], batch.targets[batch.valid], log_model[batch.valid]))
    queries, targets, log_model = (np.concatenate(x) for x in zip(*seen, strict=True))
    p_model = np.exp(np.float64(log_model))

    best = Mixture(0.0, 1.0), RememberedScore(-np.log(p_model).mean(), np.inf)
    for beta in np.array(SHARPNESS) / float(_typical_distance(bank, queries)):
        p_memory = np.exp(np.float64(_read_targets(bank, queries, targets, beta, config)))
        weight = mixing_weight(p_model, p_memory)
        nats = -np.log((1 - weight) * p_model + weight * p_memory).mean()
        if nats < best[1].mixed:
            best = Mixture(weight, float(beta)), best[1]._replace(mixed=float(nats))
    return best


def mixing_weight(p_model: np.ndarray, p_memory: np.ndarray, steps: int = 200) -> float:
    """The λ that maximises `Σ ln((1 − λ) p_model + λ p_memory)` over targets `[T]`, by expectation-maximisation.

    Each step sets λ to the memory's mean share of the targets' probabilities, which never lowers the sum; it is concave in λ,
    so the maximum is unique. λ stays below 1, or tokens without entries would be impossible.
    """
    weight = 0.5
    for _ in range(steps):
        weight = float(np.mean(weight * p_memory / ((1 - weight) * p_model + weight * p_memory)))
    return min(weight, 0.999)


@jax.jit
def _typical_distance(bank: MemoryBank, queries: Array) -> Array:
    """Root of the mean square distance of queries from entries: `E‖q − k‖² = E‖q − o‖² + E‖k − o‖² − 2 E(q − o)·E(k − o)`."""
    # In empty slots both the point relative to the origin and its square are zero.
    origin, tiles, squares = bank.points
    queries = queries - origin
    squares = jnp.mean(jnp.sum(queries * queries, -1)) + jnp.sum(squares) / bank.present
    return jnp.sqrt(squares - 2 * jnp.mean(queries, 0) @ jnp.sum(tiles, (0, 2)) / bank.present)


def _read_targets(bank: MemoryBank, queries: np.ndarray, targets: np.ndarray, beta: float, config: ModelConfig) -> np.ndarray:
    size = min(512, len(queries))
    missing = -len(queries) % size
    pieces = zip(
        np.pad(queries, ((0, missing), (0, 0))).reshape(-1, size, queries.shape[1]),
        np.pad(targets, (0, missing)).reshape(-1, size),
        strict=True,
    )
    found = [_memory_of_targets(bank, *piece, beta, config) for piece in pieces]
    return np.concatenate(found)[: len(queries)]


def _batches(windows: Windows, size: int, what: str, progress: Progress) -> Iterator[_Batch]:
    most = int(windows.counts.max())
    for start in progress(range(0, len(windows), size), what):
        some = windows[start : start + size]
        counted = some.counted
        places = np.argsort(~counted, axis=1, kind="stable")[:, :most].astype(np.int32)
        pick = partial(np.take_along_axis, indices=places, axis=1)
        batch = _Batch(some.tokens, places, pick(some.targets), pick(counted))
        missing = size - len(places)
        yield _Batch(*(np.pad(x, ((0, missing), (0, 0))) for x in batch))


@partial(jax.jit, static_argnums=2)
def _look(params: Params, batch: _Batch, config: ModelConfig) -> tuple[Array, Array]:
    """Logits `[K, S, V]` and coordinates `[K, S, m]` of the counted positions."""
    seen = memory_bank.observe(params, jnp.asarray(batch.tokens), config)
    logits, points = (jnp.take_along_axis(x, batch.places[..., None], axis=1) for x in seen)
    return logits, points


@partial(jax.jit, donate_argnums=0)
def _commit(bank: MemoryBank, points: Array, batch: _Batch) -> MemoryBank:
    return memory_bank.write(bank, points.reshape(-1, points.shape[-1]), *(jnp.ravel(x) for x in (batch.targets, batch.valid)))


@jax.jit
def _log_probabilities(bank: MemoryBank, logits: Array, points: Array, targets: Array, mixture: Mixture) -> tuple[Array, Array]:
    """Log probabilities of the targets `[K, S]`, by the model and by the mixture."""
    log_model = jax.nn.log_softmax(logits)
    flat = points.reshape(-1, points.shape[-1])
    log_memory = memory_bank.read(bank, flat, mixture.inverse_temperature, logits.shape[-1]).reshape(logits.shape)
    mixed = memory_bank.mix(bank, log_model, log_memory, mixture.weight)
    return _of_targets(log_model, targets), _of_targets(mixed, targets)


@partial(jax.jit, static_argnums=4)
def _memory_of_targets(bank: MemoryBank, queries: Array, targets: Array, beta: Array, config: ModelConfig) -> Array:
    return _of_targets(memory_bank.read(bank, queries, beta, config.vocabulary), targets)


def _of_targets(log_p: Array, targets: Array) -> Array:
    return jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
