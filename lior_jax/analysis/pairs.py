"""Average distances between tokens: geodesic costs over many texts, by pair of tokens."""

from typing import NamedTuple

import numpy as np


class Pairs(NamedTuple):
    """Costs of a head by pair. A constant per row cancels in retrieval, so each query's mean over its keys is subtracted."""

    cost: np.ndarray
    """`[A, A]`, mean of each query token (row) and key token; NaN for pairs that are too rare."""
    explained: float
    """Fraction of the variance of the costs that the pair explains; the rest is due to context."""


def by_token(cost: np.ndarray, tokens: np.ndarray, alphabet: np.ndarray, least: int = 10) -> Pairs:
    """Average a head's costs by the tokens of query and key.

    Args:
        cost: `[B, L, L]` of queries and keys (`probe.View.cost` of a block and head).
        tokens: `[B, L]`.
        alphabet: `[A]`, the tokens to include.
        least: least number of occurrences of a pair.
    """
    length = cost.shape[1]
    past = np.tril(np.ones((length, length), bool), -1)
    count = np.maximum(past.sum(1), 1)
    relative = cost - (np.where(past, cost, 0).sum(2) / count)[..., None]
    place = np.full(max(tokens.max(), alphabet.max()) + 1, -1)
    place[alphabet] = np.arange(len(alphabet))
    queries, keys = (np.broadcast_to(x, cost.shape) for x in (place[tokens][:, :, None], place[tokens][:, None, :]))
    known = past & (queries >= 0) & (keys >= 0)
    pair, values = queries[known] * len(alphabet) + keys[known], relative[known].astype(np.float64)
    size = len(alphabet) ** 2
    times, total = np.bincount(pair, minlength=size), np.bincount(pair, values, size)
    mean = total / np.maximum(times, 1)
    left = np.mean((values - mean[pair]) ** 2)
    means = np.where(times >= least, mean, np.nan).reshape(len(alphabet), -1)
    return Pairs(means, float(1 - left / np.var(values)))
