"""How near tokens are to each other on the average of many texts: geodesic costs by the pair that they lie between."""

from typing import NamedTuple

import numpy as np


class Pairs(NamedTuple):
    """Costs of a head by pair; a row's constant cancels in its retrieval, so each query's mean over its keys is taken off."""

    cost: np.ndarray
    """`[A, A]`, mean of each query token (row) and key token; NaN where a pair is rarer than asked for."""
    explained: float
    """Share of the variance of the cost between these tokens that the pair alone decides; the rest is context."""


def by_token(cost: np.ndarray, tokens: np.ndarray, alphabet: np.ndarray, least: int = 10) -> Pairs:
    """Average a head's costs by the tokens of query and key.

    Args:
        cost: `[B, L, L]` of queries and keys (`probe.View.cost` of a block and head).
        tokens: `[B, L]`.
        alphabet: `[A]`, the tokens to tell apart; others are left out.
        least: occurrences of a pair below which its mean is not given.
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
