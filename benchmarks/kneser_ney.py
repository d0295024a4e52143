"""Interpolated Kneser-Ney n-grams: the strongest model that only counts.

One discount per order, `D = n₁ / (n₁ + 2 n₂)`, or a half where no count is one. The highest order uses counts, lower ones
how many different tokens came before (Kneser and Ney 1995; interpolated as in Chen and Goodman 1999):

    p_k(w | h) = (max(c(h w) − D, 0) + D N(h) p_{k−1}(w | h')) / c(h)

where `N(h)` is the number of different tokens seen after `h`, `h'` is `h` without its first token, and `p_0` is uniform.
"""

from typing import NamedTuple

import numpy as np


class Order(NamedTuple):
    """Counts of one order. An n-gram is one integer, its tokens being the digits to the base of the vocabulary."""

    grams: np.ndarray
    """`[G]`, sorted."""
    counts: np.ndarray
    """`[G]`; of lower orders, different tokens before."""
    contexts: np.ndarray
    """`[C]`, sorted."""
    totals: np.ndarray
    """`[C]`, sum of the counts that begin with the context."""
    kinds: np.ndarray
    """`[C]`, different tokens after the context."""
    discount: float


def fit(tokens: np.ndarray, order: int, vocab_size: int) -> list[Order]:
    """Orders 1 to `order` of a text `[T]`, `T ≥ order`.

    Raises:
        ValueError: n-grams that no 64-bit integer can name.
    """
    if vocab_size**order > 2**62:
        raise ValueError(f"{order}-grams of {vocab_size} tokens are too many for 64 bits; take a lower order.")
    grams, counts = np.unique(_encode(tokens, order, vocab_size), return_counts=True)
    orders = [_order(grams, counts, vocab_size)]
    for lower in range(order - 1, 0, -1):
        grams, counts = np.unique(grams % vocab_size**lower, return_counts=True)
        orders.append(_order(grams, counts, vocab_size))
    return orders[::-1]


def nats(orders: list[Order], tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Nats `[T − 1]` of every token of a text but its first; the first few have shorter histories."""
    p = np.full(len(tokens), 1 / vocab_size)
    for index, order in enumerate(orders):
        grams = _encode(tokens, index + 1, vocab_size)
        p[index:] = _interpolate(order, grams, p[index:], vocab_size)
    return -np.log(p[1:])


def _interpolate(order: Order, grams: np.ndarray, lower: np.ndarray, vocab_size: int) -> np.ndarray:
    count = _look_up(order.grams, order.counts, grams)
    total, kinds = (_look_up(order.contexts, values, grams // vocab_size) for values in (order.totals, order.kinds))
    share = (np.maximum(count - order.discount, 0) + order.discount * kinds * lower) / np.maximum(total, 1)
    return np.where(total > 0, share, lower)


def _order(grams: np.ndarray, counts: np.ndarray, vocab_size: int) -> Order:
    contexts, place = np.unique(grams // vocab_size, return_inverse=True)
    once, twice = (int(np.sum(counts == times)) for times in (1, 2))
    discount = once / (once + 2 * twice) if once else 0.5
    return Order(grams, counts, contexts, np.bincount(place, counts), np.bincount(place), discount)


def _encode(tokens: np.ndarray, order: int, vocab_size: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(tokens, np.int64), order)
    return windows @ vocab_size ** np.arange(order - 1, -1, -1, dtype=np.int64)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
