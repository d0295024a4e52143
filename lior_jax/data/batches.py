"""Batches as a pure function of `(seed, step)`, so that resuming needs no saved data state."""

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np

TABLE = 2**20
"""Largest number of windows whose order in an epoch is a table; for more, it is computed on the fly in constant memory."""

_ROUNDS = 6


def batch_at(
    tokens: np.ndarray, seed: int, step: int, batch_size: int, context: int, rows: slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Windows and their targets at a step: a pure function, so that a resumed run sees the same batches.

    Every epoch cuts the text into windows at a new random offset and visits all of them in a new order. Each token is read
    once per epoch, except for less than a window at each end.

    Args:
        tokens: `[T]` of any integer type, in memory or mapped from a file, with `T > context`.
        step: from 0.
        rows: part of the batch to read, for a process that holds no more; all by default.

    Returns:
        Tokens and targets, each `[batch_size, context]` int32, or their `rows`; targets are the tokens one position later.
    """
    windows = windows_per_epoch(tokens, context)
    offsets = []
    for index in range(step * batch_size, (step + 1) * batch_size)[rows]:
        epoch, place = divmod(index, windows)
        first, order = _epoch(windows, min(context, len(tokens) - windows * context), seed, epoch)
        offsets.append(first + order(place) * context)
    windowed = tokens[np.array(offsets)[:, None] + np.arange(context + 1)].astype(np.int32, copy=False)
    return windowed[:, :-1], windowed[:, 1:]


def windows_per_epoch(tokens: np.ndarray, context: int) -> int:
    """Number of windows in an epoch."""
    return max(1, (len(tokens) - context) // context)


def shuffled(place: int, count: int, keys: tuple[int, ...]) -> int:
    """The image of an index below `count` under a permutation selected by the keys, without a table.

    A Feistel network permutes the numbers of an even number of bits, the fewest that hold `count`: in each round
    `(a, b) → (b, a ⊕ F(b, key))`, which is invertible for any `F`. Results beyond `count` are permuted again (cycle
    walking, Black and Rogaway 2002), fewer than four times on average.

    Args:
        keys: a 64-bit number for each round.
    """
    bits = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << bits) - 1
    while True:
        high, low = place >> bits, place & mask
        for key in keys:
            high, low = low, high ^ (_mixed(low ^ key) & mask)
        place = high << bits | low
        if place < count:
            return place


def _mixed(x: int) -> int:
    """The finaliser of SplitMix64 (Steele et al. 2014): every bit of 64 depends on all."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31


@lru_cache(maxsize=2)
def _epoch(windows: int, offsets: int, seed: int, epoch: int) -> tuple[int, Callable[[int], int]]:
    """Offset of the first window of an epoch, below `offsets`, and the window at each place of its order."""
    random = np.random.default_rng((seed, epoch))
    first = int(random.integers(offsets))
    if windows <= TABLE:
        return first, random.permutation(windows).item
    keys = tuple(random.integers(2**64, size=_ROUNDS, dtype=np.uint64).tolist())
    return first, partial(shuffled, count=windows, keys=keys)
