"""Integrators as data: palindromic lists of coefficients, and the schedules of kicks and drifts built from them.

A list holds the lengths of kick, drift, kick, …, kick in units of the step size. Kicks and drifts each sum to one, and a
palindromic step is inverted by the same step with negative size. `physics.flow` runs them. Nothing here needs JAX.
Literature: splitting methods and their symmetry, Hairer et al. 2006.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

Coefficients = tuple[float, ...]

VELOCITY_VERLET: Coefficients = (0.5, 1.0, 0.5)
"""Störmer–Verlet, second order (Verlet 1967)."""

_OUTER = 1 / (2 - 2 ** (1 / 3))
_INNER = 1 - 2 * _OUTER

YOSHIDA4: Coefficients = (
    *(_OUTER / 2, _OUTER),
    *((_OUTER + _INNER) / 2, _INNER, (_INNER + _OUTER) / 2),
    *(_OUTER, _OUTER / 2),
)
"""Fourth order: Verlet steps of `w₁`, `w₀` and `w₁`, with `w₁ = 1 / (2 − 2^⅓)` and `w₀ = 1 − 2 w₁` (Yoshida 1990)."""


class Schedule(NamedTuple):
    """Lengths of kicks and drifts in time order: `kicks[0], drifts[0], kicks[1], …, final_kick`."""

    kicks: np.ndarray
    drifts: np.ndarray
    final_kick: float


def schedule(coefficients: Coefficients, steps: int, step_size: float, final_kick: bool = True) -> Schedule:
    """`steps` steps of an integrator, neighbouring kicks merged.

    Without `final_kick` the last kick is left out: it changes the momentum only, so a caller who discards the momentum saves
    one evaluation of the force. The remaining map is still symplectic and exactly reversible.
    """
    kicks, drifts = coefficients[::2], coefficients[1::2]
    joined = [*kicks[:-1]] + [kicks[-1] + kicks[0], *kicks[1:-1]] * (steps - 1)
    return Schedule(
        kicks=np.array(joined) * step_size,
        drifts=np.array([*drifts] * steps) * step_size,
        final_kick=kicks[-1] * step_size if final_kick else 0.0,
    )


@cache
def stability_limit(coefficients: Coefficients) -> float:
    """Smallest step size at which the integrator is unstable for a harmonic oscillator of unit frequency, to 1/1024.

    A step is a linear map of determinant one, stable while the absolute value of its trace is below two.
    """
    sizes = np.arange(1, 8 * 1024) / 1024
    s, p = np.ones((2, 1, 1)) * np.eye(2)[:, :, None]  # both basis vectors at once, `[2, 1]`
    for index, length in enumerate(coefficients):
        s, p = (s, p - length * sizes * s) if index % 2 == 0 else (s + length * sizes * p, p)
    unstable = np.abs(s[0] + p[1]) > 2 + 1e-9
    return float(sizes[max(np.argmax(unstable) - 1, 0)])
