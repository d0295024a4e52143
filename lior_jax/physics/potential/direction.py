"""The shared part of potentials `V(s) = ½ κ ‖s‖² + U(ŝ)`: forces and contrasts of the state from those of the direction `ŝ`.

With a potential of the state itself instead of its direction, training diverges within a few hundred steps.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from lior_jax.physics.numerics import Precision, correlate, rms_normalize, rms_normalize_adjoint
from lior_jax.physics.pair import Pair, pair


def well(curvature: Array, s: Array) -> Array:
    """`½ κ ‖s‖²` of every point `[..., d]`: `[...]`."""
    return 0.5 * curvature * jnp.sum(s * s, -1)


def state_force(curvature: Array, s: Array, s_hat: Array, inverse: Array, on_direction: Array) -> Array:
    """`−∂V/∂s = (F̂ − ŝ mean(F̂ ⊙ ŝ)) / sqrt(mean(s²) + ε) − κ s`, from the force `F̂ = −∂U/∂ŝ` on the direction: `[..., d]`.

    Args:
        s_hat, inverse: from `rms_normalize(s, softness)`.
    """
    return rms_normalize_adjoint(s_hat, inverse, on_direction) - curvature * s


class Directions(NamedTuple):
    """A nudged pair of states: the two states `ends`, `hats` and `inverses` of their normalisations, and the `pair` of
    directions; `[B, L, d]`."""

    ends: tuple[Array, Array]
    hats: tuple[Array, Array]
    inverses: tuple[Array, Array]
    pair: Pair

    def forces(self, curvature: Array, on_direction: Pair, span: Array) -> Pair:
        """`state_force` on both runs."""
        of_ends = zip(self.ends, self.hats, self.inverses, on_direction.ends(span), strict=True)
        plus, minus = (state_force(curvature, *end) for end in of_ends)
        return pair(plus, minus, span)

    def correlate(self, x: Pair, precision: Precision) -> Array:
        """`Σ (x₊ ŝ₊ᵀ − x₋ ŝ₋ᵀ) / span` over positions, in a form without cancellation: `[M, d]`, for `x` `[B, L, M]`."""
        return correlate(x.slope, self.pair.mean, precision) + correlate(x.mean, self.pair.slope, precision)


def directions(s: Pair, span: Array, softness: float) -> Directions:
    """The directions of a nudged pair of states."""
    ends = s.ends(span)
    (plus, inverse_plus), (minus, inverse_minus) = (rms_normalize(x, softness) for x in ends)
    return Directions(ends, (plus, minus), (inverse_plus, inverse_minus), pair(plus, minus, span))


def well_contrast(s: Pair) -> Array:
    """`[∂V/∂κ(s₊) − ∂V/∂κ(s₋)] / span` over positions: `[]`."""
    return jnp.sum(s.mean * s.slope)
