"""Scoring a text: windows that cover it, and the cross-entropy of its tokens."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np

from lior_jax.errors import UserError
from lior_jax.model import Params, token_losses
from lior_jax.settings import ModelConfig

_WINDOWS_AT_ONCE = 16

Progress = Callable[[Sequence, str], Iterable]
"""Yields the given items, under a name; may report progress, or raise an exception to stop."""


def unseen(items: Sequence, what: str) -> Iterable:
    """A `Progress` without output."""
    return items


@dataclass(frozen=True)
class Windows:
    """Windows of a text, cut on access, so the text may be larger than memory. A slice is a subset of the windows.

    `tokens` and `targets` `[K, L]` int32, and `counted` `[K, L]`: which targets a window scores.
    """

    text: np.ndarray
    """`[T]`, in memory or mapped from a file."""
    context: int
    stride: int
    scored: Sequence[int] | np.ndarray
    """Index in the text of each window's first counted position, `[K]`."""

    def __len__(self) -> int:
        return len(self.scored)

    def __getitem__(self, some: slice) -> "Windows":
        return replace(self, scored=self.scored[some])

    @property
    def tokens(self) -> np.ndarray:
        return self._cut(0)

    @property
    def targets(self) -> np.ndarray:
        return self._cut(1)

    @property
    def counted(self) -> np.ndarray:
        scored = np.asarray(self.scored)[:, None]
        return (self._places >= scored) & (self._places < scored + self.counts[:, None])

    @property
    def counts(self) -> np.ndarray:
        """Number of targets that each window scores, `[K]`."""
        return np.minimum(self.stride, len(self.text) - 1 - np.asarray(self.scored))

    @property
    def _places(self) -> np.ndarray:
        first = np.maximum(0, np.asarray(self.scored) + self.stride - self.context)
        return first[:, None] + np.arange(self.context)

    def _cut(self, later: int) -> np.ndarray:
        # Padding at the end of the text comes after every counted target, so by causality it has no effect.
        places = self._places + later
        there = places < len(self.text)
        return np.where(there, self.text[np.minimum(places, len(self.text) - 1)], 0).astype(np.int32)


def cover(tokens: np.ndarray, context: int, stride: int | None = None, count: int | None = None) -> Windows:
    """Windows that together score each token of a text but its first exactly once.

    Each window scores its last `stride` targets, so that each has at least `context − stride` tokens of history
    unless the text begins there. By default windows are disjoint.

    Args:
        tokens: `[T]`, `T ≥ 2`.
        stride: from 1 to `context`, which is the default.
        count: largest number of windows, evenly spaced and always the same ones; by default all.

    Raises:
        UserError: a stride that would leave targets out.
    """
    stride = context if stride is None else stride
    if not 1 <= stride <= context:
        raise UserError(f"stride is {stride}, but must be between 1 and the context, {context}.")
    scored: range | np.ndarray = range(0, len(tokens) - 1, stride)
    if count is not None and count < len(scored):
        scored = np.linspace(0, len(scored) - 1, count).round().astype(int) * stride
    return Windows(tokens, context, stride, scored)


def half_window(context: int) -> int:
    """The default stride of scoring: half of a window is scored, the other half is history."""
    return max(1, context // 2)


def mean_nats(params: Params, windows: Windows, config: ModelConfig, progress: Progress = unseen) -> float:
    """Mean nats of the counted targets."""
    total, count = 0.0, 0
    for losses, counted in _losses(params, windows, config, progress):
        total += float((losses * counted).sum(dtype=np.float64))
        count += int(counted.sum())
    return total / count


def _losses(
    params: Params, windows: Windows, config: ModelConfig, progress: Progress
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    size = min(_WINDOWS_AT_ONCE, len(windows))
    for start in progress(range(0, len(windows), size), "scoring"):
        piece = windows[start : start + size]
        tokens, targets = (np.pad(x, ((0, size - len(piece)), (0, 0))) for x in (piece.tokens, piece.targets))
        losses = np.asarray(_token_losses(params, tokens, targets, config))
        yield losses[: len(piece)], piece.counted


@partial(jax.jit, static_argnums=3)
def _token_losses(params: Params, tokens: jax.Array, targets: jax.Array, config: ModelConfig) -> jax.Array:
    return token_losses(params, tokens, targets, config)
