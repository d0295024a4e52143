"""How well a model predicts a text: windows that cover it, and the nats of each of its tokens."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from lior_jax.config import ModelConfig
from lior_jax.model import Params, token_losses

_WINDOWS_AT_ONCE = 16


class Windows(NamedTuple):
    """`tokens` and `targets` `[K, L]`, and `counted` `[K, L]`: which targets a window is there to score."""

    tokens: np.ndarray
    targets: np.ndarray
    counted: np.ndarray


def cover(tokens: np.ndarray, context: int, stride: int | None = None) -> Windows:
    """Windows that score each token of a text but its first exactly once.

    Each window scores its last `stride` targets, so that each has at least `context − stride` tokens of history
    unless the text begins there. By default windows are disjoint.

    Args:
        tokens: `[T]`, `T ≥ 2`.
    """
    stride = context if stride is None else stride
    scored = np.arange(0, len(tokens) - 1, stride)
    starts = np.maximum(0, scored + stride - context)
    # The padding at the end of the text lies after every counted target, where causality keeps it out.
    padded = np.concatenate([tokens, np.zeros(context + 1, tokens.dtype)])
    place = starts[:, None] + np.arange(context)
    counted = (place >= scored[:, None]) & (place < np.minimum(scored + stride, len(tokens) - 1)[:, None])
    return Windows(padded[place], padded[place + 1], counted)


def spread(windows: Windows, count: int | None) -> Windows:
    """At most `count` of the windows, evenly spaced, always the same ones."""
    total = len(windows.tokens)
    if count is None or count >= total:
        return windows
    chosen = np.linspace(0, total - 1, count).round().astype(int)
    return Windows(*(x[chosen] for x in windows))


def mean_nats(params: Params, windows: Windows, config: ModelConfig) -> float:
    """Mean nats of the counted targets."""
    total = sum(float((losses * counted).sum(dtype=np.float64)) for losses, counted in _losses(params, windows, config))
    return total / int(windows.counted.sum())


def _losses(params: Params, windows: Windows, config: ModelConfig) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    size = min(_WINDOWS_AT_ONCE, len(windows.tokens))
    for start in range(0, len(windows.tokens), size):
        piece = Windows(*(x[start : start + size] for x in windows))
        missing = size - len(piece.tokens)
        tokens, targets = (np.pad(x, ((0, missing), (0, 0))) for x in piece[:2])
        losses = np.asarray(_token_losses(params, tokens, targets, config))
        yield losses[: len(piece.tokens)], piece.counted


@partial(jax.jit, static_argnums=3)
def _token_losses(params: Params, tokens: jax.Array, targets: jax.Array, config: ModelConfig) -> jax.Array:
    return token_losses(params, tokens, targets, config)
