"""Potentials `V(s)` of a block, records of functions that flows and relaxations take as arguments.

`gated` and `hopfield` are built in; others are added as records (`registry.POTENTIALS.register`). Both have the form

    V(s) = ½ κ ‖s‖² + U(ŝ),   ŝ = s / sqrt(mean(s²) + softness),

whose shared part is in `direction`; no other module relies on this form. Source: docs/design.md section 2.6.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from jax import Array

from lior_jax.physics.numerics import RMS_EPSILON, Precision
from lior_jax.physics.pair import Pair

Parameters = Any
"""A NamedTuple of a potential's arrays. Its class attribute `MATRICES` names the matrices, to which weight decay applies and
whose spectra are reported."""


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


class KeepingForce(Protocol):
    """`Force`, which also returns a tree of `[..., M]` and `[..., d]`: intermediate results that `FreeContrast` reuses."""

    def __call__(
        self,
        parameters: Parameters,
        s: Array,
        precision: Precision = "float32",
        softness: float = RMS_EPSILON,
        mask: Array | None = None,
        /,
    ) -> tuple[Array, Any]: ...


class FreeContrast(Protocol):
    """`Contrast`, from the results of `KeepingForce` in the free run, `free`, and the nudge of the two runs' mean relative to
    it, `middle` `[B, L, 1]`: only the slopes need matrix products."""

    def __call__(
        self,
        parameters: Parameters,
        s: Pair,
        span: Array,
        free: Any,
        middle: Array | float,
        precision: Precision = "float32",
        softness: float = RMS_EPSILON,
        mask: Array | None = None,
        /,
    ) -> tuple[Pair, Parameters]: ...


class Keeping(NamedTuple):
    """`force` and `contrast` of a potential whose units are stored for the echo (`learning.keep`)."""

    force: KeepingForce
    contrast: FreeContrast


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
    """A potential, as pure functions of its parameters.

    A `mask` `[..., mask_size(M)]`, one per point, multiplies the contribution of each unit (dropout); the result is again a
    potential.
    """

    init: Callable[[Array, int, int, float], Parameters]
    """Draws raw parameters, from a key, the width `d`, the number of units `M` and the scale of the force."""
    energy: Energy
    force: Force
    contrast: Contrast
    prepare: Callable[[Parameters, bool], Parameters] = _as_it_is
    """Applied parameters from raw ones: positive where required; and, if the flag asks for it, as relaxations need to converge,
    scaled such that the curvature of V stays below that of a spring of unit stiffness."""
    prepare_adjoint: Callable[[Parameters, bool, Parameters], Parameters] = _adjoint_as_it_is
    """Adjoint of `prepare`: its arguments and the cotangent."""
    stiffness: Callable[[Parameters], Array | float] = _none
    """The part of V's curvature that does not depend on the state, `[]` or `[d]`."""
    mask_size: Callable[[int], int] = _one_each
    """Elements of a mask for `M` units."""
    keeping: Keeping | None = None
    """The same force and contrast with stored units of the free run; None if unsupported."""
