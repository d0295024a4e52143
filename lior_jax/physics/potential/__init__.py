"""Potentials `V(s)` of a block, passed as values to flows and relaxations.

`gated` and `hopfield` are built in; others are added as records (`registry.POTENTIALS.register`). Both have the form

    V(s) = ½ κ ‖s‖² + U(ŝ),   ŝ = s / sqrt(mean(s²) + softness),

whose shared part is in `direction`; nothing else depends on it. Source: docs/design.md section 2.6.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from jax import Array

from lior_jax.physics.numerics import RMS_EPSILON, Precision
from lior_jax.physics.pair import Pair

Parameters = Any
"""A NamedTuple of a potential's arrays. Its class attribute `MATRICES` names those that are matrices: weight decay shrinks
them, and their spectra are reported."""


class Energy(Protocol):
    """`V(s)` of every point `[..., d]`: `[...]`."""

    def __call__(
        self, parameters: Parameters, s: Array, softness: float = RMS_EPSILON, mask: Array | None = None, /
    ) -> Array: ...


class Force(Protocol):
    """`−∂V/∂s` of every point `[..., d]`: `[..., d]`."""

    def __call__(
        self,
        parameters: Parameters,
        s: Array,
        precision: Precision = "float32",
        softness: float = RMS_EPSILON,
        mask: Array | None = None,
        /,
    ) -> Array: ...


class Contrast(Protocol):
    """The forces on both nudged runs of points `[B, L, d]` with a span `[B, L, 1]`; and `[∂V/∂θ(s₊) − ∂V/∂θ(s₋)] / span`
    summed over positions, in the structure of the parameters."""

    def __call__(
        self,
        parameters: Parameters,
        s: Pair,
        span: Array,
        precision: Precision = "float32",
        softness: float = RMS_EPSILON,
        mask: Array | None = None,
        /,
    ) -> tuple[Pair, Parameters]: ...


def _as_it_is(raw: Parameters, relaxes: bool) -> Parameters:
    return raw


def _adjoint_as_it_is(raw: Parameters, relaxes: bool, cotangent: Parameters) -> Parameters:
    return cotangent


def _none(parameters: Parameters) -> float:
    return 0.0


def _one_each(units: int) -> int:
    return units


@dataclass(frozen=True)
class Potential:
    """A potential as functions of its parameters, all of them pure.

    With a `mask` `[..., mask_size(M)]`, of which every point has its own, what each unit adds is multiplied by its element
    (dropout): another potential, but still one.
    """

    init: Callable[[Array, int, int, float], Parameters]
    """Raw parameters, from a key, the width `d`, the number of units `M` and the size that the force should have."""
    energy: Energy
    force: Force
    contrast: Contrast
    prepare: Callable[[Parameters, bool], Parameters] = _as_it_is
    """What is applied, from raw parameters: positive where it must be; and, if a relaxation is to settle in it (the flag),
    restrained, so that it bends less than a spring of unit stiffness."""
    prepare_adjoint: Callable[[Parameters, bool, Parameters], Parameters] = _adjoint_as_it_is
    """Adjoint of `prepare`: its arguments and the cotangent."""
    stiffness: Callable[[Parameters], Array | float] = _none
    """The part of V's curvature that does not depend on the state, `[]` or `[d]`."""
    mask_size: Callable[[int], int] = _one_each
    """Elements of a mask for `M` units."""
