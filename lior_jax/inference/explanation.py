"""Why a token: the earlier tokens that it was retrieved from, with geodesic cost, resilience and Boltzmann weight."""

from typing import NamedTuple

import numpy as np

from lior_jax.inference.decoder import MeanAttention


class Recollection(NamedTuple):
    """An entry of the memory that a token was retrieved from."""

    text: str
    """What was read up to the entry, and the token that followed."""
    cost: float
    """Geodesic cost of its point from the position that asks."""
    weight: float
    """Its share in the token's probability distribution: the memory's weight times its Boltzmann weight."""


class Explanation(NamedTuple):
    """What the `T` tokens that continue a prompt were retrieved from, in a text of `S` tokens."""

    tokens: list[str]
    """The text, token by token: the prompt and its continuation."""
    first: int
    """Index of the continuation's first token."""
    weight: np.ndarray
    """`[T, S]`, mean Boltzmann weight over blocks and heads of each token of the text; a row adds up to 1."""
    cost: np.ndarray
    """`[T, S]`, geodesic cost, averaged with the weights of blocks and heads."""
    resilience: np.ndarray
    """`[T]`, mean over blocks and heads of the resilience that the costs were weighed by."""
    memories: list[list[Recollection]]
    """The nearest entries for each of the `T` tokens, nearest first; empty without a memory."""

    def table(self, sources: int = 4) -> str:
        """A line for each token of the continuation: its resilience, and the sources of most weight, each as
        `token@place weight (cost)`."""
        lines = [f"{'token':>8}  {'R':>6}  retrieved from: token@place weight (geodesic cost)"]
        for row, (weight, cost, resilience) in enumerate(zip(self.weight, self.cost, self.resilience, strict=True)):
            best = np.argsort(-weight, kind="stable")[: min(sources, self.first + row)]
            found = "   ".join(f"{self.tokens[j]!r:>5}@{j:<4} {weight[j]:4.2f} ({cost[j]:.2f})" for j in best)
            lines.append(f"{self.tokens[self.first + row]!r:>8}  {resilience:6.3f}  {found}")
            for entry in self.memories[row] if self.memories else []:
                lines.append(f"{'':>18}memory {entry.text!r} {entry.weight:.3f} ({entry.cost:.2f})")
        return "\n".join(lines)


def by_position(attention: MeanAttention, tokens: list[str], first: int, memories: list[list[Recollection]]) -> Explanation:
    """From lags to places in the text: the token at `first + t` was retrieved by the position before it."""
    rows, lags = attention.weight.shape
    weight, cost = np.zeros((rows, len(tokens)), np.float32), np.zeros((rows, len(tokens)), np.float32)
    for row in range(rows):
        place = first - 1 + row
        known = min(place + 1, lags)
        for there, by_lag in ((weight, attention.weight), (cost, attention.cost)):
            there[row, place + 1 - known : place + 1] = by_lag[row, :known][::-1]
    return Explanation(tokens, first, weight, cost, attention.resilience, memories)
