"""Two nudged runs stored as mean and slope, a form without differences of large numbers."""

from typing import Any, NamedTuple

import jax
from jax import Array


class Pair(NamedTuple):
    """Two nudged runs, stored as `mean = (x₊ + x₋) / 2` and `slope = (x₊ − x₋) / span`: arrays, or trees of them.

    Linear maps act on mean and slope separately, so nothing cancels, for any size of the nudge and any precision of the
    matrix products; only elementwise nonlinear functions form `x₊` and `x₋`.
    """

    mean: Any
    slope: Any

    def ends(self, span: Array) -> tuple[Any, Any]:
        """`x₊` and `x₋`; `span` broadcasts to every array."""
        half = jax.tree.map(lambda slope: 0.5 * span * slope, self.slope)
        return jax.tree.map(lambda x, h: x + h, self.mean, half), jax.tree.map(lambda x, h: x - h, self.mean, half)


def beside(free: Any, slope: Any, middle: Array | float) -> Pair:
    """The `Pair` with the given slope and the mean `free + middle × slope`: `free` is the value in the free run, and `middle`
    the nudge of the mean."""
    return Pair(jax.tree.map(lambda x, y: x + middle * y, free, slope), slope)


def pair(plus: Any, minus: Any, span: Array) -> Pair:
    """The `Pair` of `x₊` and `x₋`."""
    mean = jax.tree.map(lambda x, y: 0.5 * (x + y), plus, minus)
    return Pair(mean, jax.tree.map(lambda x, y: (x - y) / span, plus, minus))
