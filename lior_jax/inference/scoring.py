"""How well a model predicts a text: windows that cover it, and the nats of each of its tokens."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from lior_jax.errors import UserError
from lior_jax.model import Params, token_losses
from lior_jax.settings import ModelConfig

_WINDOWS_AT_ONCE = 16

Progress = Callable[[Sequence, str], Iterable]
"""Yields what it is given, under a name, and may show how far it has come, or raise an exception to give up."""


def unseen(items: Sequence, what: str) -> Iterable:
    """The `Progress` that shows nothing."""
    return items


class Windows(NamedTuple):
    """`tokens` and `targets` `[K, L]`, and `counted` `[K, L]`: which targets a window is there to score."""

    tokens: np.ndarray
    targets: np.ndarray
    counted: np.ndarray


def cover(tokens: np.ndarray, context: int, stride: int | None = None, count: int | None = None) -> Windows:
    """Windows that score each token of a text but its first exactly once.

    Each window scores its last `stride` targets, so that each has at least `context − stride` tokens of history
    unless the text begins there. By default windows are disjoint.

    Args:
        tokens: `[T]`, `T ≥ 2`.
        stride: from 1 to `context`, which is the default.
        count: take at most so many windows, evenly spaced, always the same ones; by default all.

    Raises:
        UserError: a stride that would leave targets out.
    """
    stride = context if stride is None else stride
    if not 1 <= stride <= context:
        raise UserError(f"stride is {stride}, but must be between 1 and the context, {context}.")
    scored = np.arange(0, len(tokens) - 1, stride)
    if count is not None and count < len(scored):
        scored = scored[np.linspace(0, len(scored) - 1, count).round().astype(int)]
    # The padding at the end of the text lies after every counted target, where causality keeps it out.
    padded = np.concatenate([tokens, np.zeros(context + 1, tokens.dtype)])
    place = np.maximum(0, scored + stride - context)[:, None] + np.arange(context)
    counted = (place >= scored[:, None]) & (place < np.minimum(scored + stride, len(tokens) - 1)[:, None])
    return Windows(padded[place], padded[place + 1], counted)


def half_window(context: int) -> int:
    """The stride of scoring by default: half of a window is scored, and the other half is history."""
    return max(1, context // 2)


def mean_nats(params: Params, windows: Windows, config: ModelConfig, progress: Progress = unseen) -> float:
    """Mean nats of the counted targets."""
    total = 0.0
    for losses, counted in _losses(params, windows, config, progress):
        total += float((losses * counted).sum(dtype=np.float64))
    return total / int(windows.counted.sum())


def _losses(
    params: Params, windows: Windows, config: ModelConfig, progress: Progress
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    size = min(_WINDOWS_AT_ONCE, len(windows.tokens))
    starts = range(0, len(windows.tokens), size)
    for start in progress(starts, "scoring"):
        piece = Windows(*(x[start : start + size] for x in windows))
        missing = size - len(piece.tokens)
        tokens, targets = (np.pad(x, ((0, missing), (0, 0))) for x in piece[:2])
        losses = np.asarray(_token_losses(params, tokens, targets, config))
        yield losses[: len(piece.tokens)], piece.counted


@partial(jax.jit, static_argnums=3)
def _token_losses(params: Params, tokens: jax.Array, targets: jax.Array, config: ModelConfig) -> jax.Array:
    return token_losses(params, tokens, targets, config)
