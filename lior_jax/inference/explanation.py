"""Explanation of predicted tokens by the tokens they were retrieved from, with geodesic cost, resilience and Boltzmann
weight."""

from typing import NamedTuple

import numpy as np

from lior_jax.inference.decoder import MeanAttention

SHOWN = 40
"""Default number of explained tokens."""
_WIDTH = 100  # largest width of a table


class Recollection(NamedTuple):
    """An entry of the memory that a token was retrieved from."""

    text: str
    """The text up to the entry, and the token that followed."""
    cost: float
    """Geodesic cost of its point from the querying position."""
    weight: float
    """Its share of the token's distribution: the memory's weight times its Boltzmann weight."""


class Explanation(NamedTuple):
    """The sources of the `T` tokens that continue a prompt, in a text of `S` tokens."""

    tokens: list[str]
    """The text, token by token: the prompt and its continuation."""
    first: int
    """Index of the continuation's first token."""
    weight: np.ndarray
    """`[T, S]`, mean Boltzmann weight over blocks and heads of each token of the text; rows sum to 1."""
    cost: np.ndarray
    """`[T, S]`, geodesic cost, averaged with the weights of blocks and heads."""
    resilience: np.ndarray
    """`[T]`, resilience in the costs, mean over blocks and heads."""
    memory_share: np.ndarray | None
    """`[T]`, the memory's share of each token's probability; None without a memory."""
    memories: list[list[Recollection]]
    """The nearest entries for each of the `T` tokens, nearest first; empty without a memory."""

    def table(self, count: int | None = None) -> str:
        """A line for each of the first `count` tokens of the continuation, by default all: its resilience, the memory's share
        if any, and the sources of largest weight, each as `token@place weight (cost)`; at most 100 columns."""
        rows = self.weight.shape[0] if count is None else min(count, self.weight.shape[0])
        share = "" if self.memory_share is None else " memory"
        lines = [f"    token      R{share}  retrieved from: token@place weight (geodesic cost)"]
        for row in range(rows):
            lines.append(self._line(row))
            for entry in self.memories[row] if self.memories else []:
                lines.append(f"{'':16} memory {_clip(repr(entry.text), 60, -1)} {entry.weight:.3f} ({entry.cost:.2f})")
        if rows < self.weight.shape[0]:
            lines.append(f"and {self.weight.shape[0] - rows} tokens more")
        return "\n".join(lines)

    def _line(self, row: int) -> str:
        weight, cost = self.weight[row], self.cost[row]
        line = f"{_clip(repr(self.tokens[self.first + row]), 9):>9} {self.resilience[row]:6.3f}"
        if self.memory_share is not None:
            line += f" {self.memory_share[row]:6.3f}"
        for source in np.argsort(-weight, kind="stable")[: self.first + row]:
            token = _clip(repr(self.tokens[source]), 8)
            found = f"  {token:>5}@{source:<4} {weight[source]:4.2f} ({cost[source]:.2f})"
            if len(line) + len(found) > _WIDTH:
                break
            line += found
        return line.rstrip()


def _clip(text: str, width: int, end: int = 1) -> str:
    """At most `width` characters: the first ones, or with `end = −1` the last ones, with an ellipsis."""
    if len(text) <= width:
        return text
    return text[: width - 1] + "…" if end > 0 else "…" + text[1 - width :]


def by_position(
    attention: MeanAttention,
    tokens: list[str],
    first: int,
    memory_share: np.ndarray | None,
    memories: list[list[Recollection]],
) -> Explanation:
    """From lags to positions in the text: the token at `first + t` was retrieved by the position before it."""
    rows, lags = attention.weight.shape
    weight, cost = np.zeros((rows, len(tokens)), np.float32), np.zeros((rows, len(tokens)), np.float32)
    for row in range(rows):
        place = first - 1 + row
        known = min(place + 1, lags)
        for there, by_lag in ((weight, attention.weight), (cost, attention.cost)):
            there[row, place + 1 - known : place + 1] = by_lag[row, :known][::-1]
    return Explanation(tokens, first, weight, cost, attention.resilience, memory_share, memories)
