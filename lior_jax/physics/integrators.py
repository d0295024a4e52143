"""Symplectic rollouts: a palindromic list of coefficients, given to one generator of kicks and drifts.

`flow` runs forward in time. `echo` runs two nudged copies of the end point backwards and reads, from their
difference alone, the cotangents of the start point and of every parameter of the Hamiltonian.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lior_jax.physics.hamiltonian import Hamiltonian, Pair, drift_contrast, force, kick_contrast, velocity
from lior_jax.physics.numerics import Precision

# kick, drift, kick, …, in units of the step size. A palindrome makes the step its own inverse in negative time.
VELOCITY_VERLET = (0.5, 1.0, 0.5)


class Schedule(NamedTuple):
    """Lengths of the kicks and drifts in time order: `kicks[0], drifts[0], kicks[1], …, final_kick`."""

    kicks: np.ndarray
    drifts: np.ndarray
    final_kick: float


def schedule(coefficients: tuple[float, ...], steps: int, step_size: float, final_kick: bool = True) -> Schedule:
    """`steps` steps of an integrator, neighbouring half-kicks merged.

    Without `final_kick` the last one is left out: it moves only the momentum, so a caller who throws the momentum
    away saves one evaluation of the force. What remains is still symplectic and still undone exactly.
    """
    kicks, drifts = coefficients[::2], coefficients[1::2]
    joined = [*kicks[:-1]] + [kicks[-1] + kicks[0], *kicks[1:-1]] * (steps - 1)
    return Schedule(
        kicks=np.array(joined) * step_size,
        drifts=np.array([*drifts] * steps) * step_size,
        final_kick=kicks[-1] * step_size if final_kick else 0.0,
    )


Observe = Callable[[Array, Array], Any]
"""Of the states before and after a drift, a tree of what is summed over all drifts."""

Source = Callable[[Array, Array], tuple[Array, Array, Any]]
"""A cost's part in one drift: from the states before and after it, the cotangents of both, and a tree of others that is
summed over all drifts."""


def flow(
    hamiltonian: Hamiltonian,
    s: Array,
    p: Array,
    times: Schedule,
    precision: Precision = "float32",
    observe: Observe = lambda before, after: None,
    mask: Array | None = None,
) -> tuple[Array, Array, Any]:
    """Follow the Hamiltonian flow from `(s, p)`, each `[B, L, d]`, every position by itself.

    Args:
        mask: `[B, L, M]`, of the potential's units.

    Returns:
        State and momentum at the end, and the sum of what `observe` returned.
    """

    def step(state, lengths):
        s, p = state
        kick, drift = lengths
        p = p + kick * force(hamiltonian, s, precision, mask=mask)
        after = s + drift * velocity(hamiltonian, p)
        return (after, p), observe(s, after)

    (s, p), observed = lax.scan(step, (s, p), _lengths(times, s.dtype))
    if times.final_kick:
        p = p + times.final_kick * force(hamiltonian, s, precision, mask=mask)
    return s, p, _sum(observed)


def echo(
    hamiltonian: Hamiltonian,
    s: Pair,
    p: Pair,
    span: Array,
    times: Schedule,
    precision: Precision = "float32",
    source: Source | None = None,
    middle: Array | float = 0.0,
    mask: Array | None = None,
) -> tuple[Pair, Pair, Hamiltonian, Any]:
    """Run a nudged pair of end points backwards through `flow`.

    Args:
        s, p: the pair at the end, `[B, L, d]` each.
        span: `[B, L, 1]`, the distance of the two nudges, `slope` being the difference divided by it.
        times, mask: as given to `flow`.
        source: a cost along the path; it nudges the pair again before and after every drift.
        middle: `[B, L, 1]`, the nudge of the pair's mean, 0 if the two runs are pushed to opposite sides.

    Returns:
        The pair at the start, `Σ length × [∂H/∂θ(+) − ∂H/∂θ(−)] / span` over all kicks and drifts, and the sum of the
        source's other cotangents.
    """
    contrast = jax.tree.map(jnp.zeros_like, hamiltonian)

    def unkick(s, p, contrast, length):
        forces, local = kick_contrast(hamiltonian, s, span, precision, mask=mask)
        p = jax.tree.map(lambda x, f: x - length * f, p, forces)
        return p, jax.tree.map(lambda total, x: total + length * x, contrast, local)

    if times.final_kick:
        p, contrast = unkick(s, p, contrast, times.final_kick)

    def step(state, lengths):
        s, p, contrast = state
        kick, drift = lengths
        others = None
        if source is not None:
            before = s.mean - drift * velocity(hamiltonian, p.mean)
            c_before, c_after, others = source(before, s.mean)
            p = Pair(p.mean + middle * c_after, p.slope + c_after)
        s = jax.tree.map(lambda x, y: x - drift * velocity(hamiltonian, y), s, p)
        contrast = contrast._replace(inverse_mass=contrast.inverse_mass + drift * drift_contrast(p))
        if source is not None:
            p = Pair(p.mean + middle * c_before, p.slope + c_before)
        p, contrast = unkick(s, p, contrast, kick)
        return (s, p, contrast), others

    (s, p, contrast), others = lax.scan(step, (s, p, contrast), _lengths(times, span.dtype), reverse=True)
    return s, p, contrast, _sum(others)


def _lengths(times: Schedule, dtype: jnp.dtype) -> tuple[Array, Array]:
    return jnp.asarray(times.kicks, dtype), jnp.asarray(times.drifts, dtype)


def _sum(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.sum(x, 0), tree)
