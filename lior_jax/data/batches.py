"""Batches as a pure function of `(seed, step)`: nothing of them needs to be saved to resume a run."""

from functools import lru_cache

import numpy as np


def batch_at(tokens: np.ndarray, seed: int, step: int, batch_size: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows and their targets at a step: a pure function, so that a resumed run sees what it would have seen.

    Every epoch cuts the text into windows at a new random offset and goes through all of them in a new order. Each token
    is read once an epoch, but for less than a window left over at each end.

    Args:
        tokens: `[T]`, with `T > context`.
        step: from 0.

    Returns:
        Tokens and targets, each `[batch_size, context]` int32; targets are the tokens one position later.
    """
    windows = windows_per_epoch(tokens, context)
    offsets = []
    for index in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(index, windows)
        first, order = _epoch(windows, min(context, len(tokens) - windows * context), seed, epoch)
        offsets.append(first + order[place] * context)
    rows = tokens[np.array(offsets)[:, None] + np.arange(context + 1)]
    return rows[:, :-1], rows[:, 1:]


def windows_per_epoch(tokens: np.ndarray, context: int) -> int:
    """How many windows an epoch has."""
    return max(1, (len(tokens) - context) // context)


@lru_cache(maxsize=2)
def _epoch(windows: int, offsets: int, seed: int, epoch: int) -> tuple[int, np.ndarray]:
    """Offset of the first window of an epoch, below `offsets`, and the order of its windows."""
    random = np.random.default_rng((seed, epoch))
    return int(random.integers(offsets)), random.permutation(windows)
