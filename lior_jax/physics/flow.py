"""Symplectic rollouts: one generator of kicks and drifts, for any separable Hamiltonian over arrays or trees of them.

`flow` runs forward in time. `echo` runs two nudged copies of the end point backwards and reads, from their difference alone,
the cotangents of the start point and of every parameter of the Hamiltonian. Both take the Hamiltonian and its integrator as
arguments. Literature: leapfrog, Verlet 1967 (see `integrators`); the echo, López-Pastor and Marquardt 2023 and Pourcel and
Ernoult 2025. Source: docs/design.md section 4.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lior_jax.physics.integrators import Schedule
from lior_jax.physics.pair import Pair

State = Any
"""An array or a tree of arrays; state, momentum, force and velocity all have one structure."""

Contrast = Callable[[Pair, Array], tuple[Pair, Any]]
"""From a nudged pair and its span to the pair of what a function makes of it, and the local statistic: the difference of the
Hamiltonian's derivatives by its parameters, divided by the span."""


class System(NamedTuple):
    """A separable Hamiltonian `H(s, p) = V(s) + K(p)` as a flow sees it.

    `force`: `−∂V/∂s` of a state. `velocity`: `∂K/∂p` of a momentum. `kick_contrast`: the forces on a nudged pair, and
    `[∂V/∂θ(s₊) − ∂V/∂θ(s₋)] / span`. `drift_contrast`: the pair of velocities, and `[∂K/∂θ(p₊) − ∂K/∂θ(p₋)] / span`.
    """

    force: Callable[[State], State]
    velocity: Callable[[State], State]
    kick_contrast: Contrast
    drift_contrast: Contrast


Observe = Callable[..., Any]
"""From the states before and after a drift, and the drift's own entries of what lies along the path, a tree of what is summed
over all drifts."""

Source = Callable[..., tuple[State, State, Any]]
"""A cost's part in one drift: from what `Observe` gets, the cotangents of both states, and a tree of others that is summed
over all drifts."""


def flow(
    system: System,
    s: State,
    p: State,
    times: Schedule,
    observe: Observe = lambda before, after, *along: None,
    along: tuple[Any, ...] = (),
) -> tuple[State, State, Any]:
    """Follow the Hamiltonian flow from `(s, p)`.

    Args:
        along: trees of arrays `[drifts, ...]`, of which `observe` gets every drift's own entries.

    Returns:
        State and momentum at the end, and the sum of what `observe` returned.
    """

    def step(state, scanned):
        s, p = state
        (kick, drift), own = scanned
        p = _move(p, kick, system.force(s))
        after = _move(s, drift, system.velocity(p))
        return (after, p), observe(s, after, *own)

    (s, p), observed = lax.scan(step, (s, p), (_lengths(times, s), along))
    if times.final_kick:
        p = _move(p, times.final_kick, system.force(s))
    return s, p, _sum(observed)


def echo(
    system: System,
    s: Pair,
    p: Pair,
    span: Array,
    times: Schedule,
    source: Source | None = None,
    middle: Array | float = 0.0,
    along: tuple[Any, ...] = (),
) -> tuple[Pair, Pair, tuple[Any, Any], Any]:
    """Run a nudged pair of end points backwards through `flow`.

    Args:
        s, p: the pair at the end.
        span: the distance of the two nudges, `slope` being the difference divided by it; it broadcasts to every array.
        times: as given to `flow`.
        source: a cost along the path; it nudges the pair again before and after every drift.
        middle: the nudge of the pair's mean, like `span`; 0 if the two runs are pushed to opposite sides.
        along: as given to `flow`, for the source.

    Returns:
        The pair at the start; `Σ length × [∂H/∂θ(+) − ∂H/∂θ(−)] / span` over all kicks, and over all drifts; and the sum of
        the source's other cotangents.
    """

    def unkick(s: Pair, p: Pair, total: Any, length: Any) -> tuple[Pair, Any]:
        forces, local = system.kick_contrast(s, span)
        return _move(p, -length, forces), _move(total, length, local)

    def push(p: Pair, by: State) -> Pair:
        return Pair(_move(p.mean, middle, by), _move(p.slope, 1, by))

    by_kicks, by_drifts = (
        jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(contrast, pair, span)[1])
        for contrast, pair in ((system.kick_contrast, s), (system.drift_contrast, p))
    )
    if times.final_kick:
        p, by_kicks = unkick(s, p, by_kicks, times.final_kick)

    def step(state, scanned):
        s, p, by_kicks, by_drifts = state
        (kick, drift), own = scanned
        c_before = others = None
        if source is not None:
            before = _move(s.mean, -drift, system.velocity(p.mean))
            c_before, c_after, others = source(before, s.mean, *own)
            p = push(p, c_after)
        velocities, local = system.drift_contrast(p, span)
        s, by_drifts = _move(s, -drift, velocities), _move(by_drifts, drift, local)
        if source is not None:
            p = push(p, c_before)
        p, by_kicks = unkick(s, p, by_kicks, kick)
        return (s, p, by_kicks, by_drifts), others

    start = s, p, by_kicks, by_drifts
    (s, p, *contrast), others = lax.scan(step, start, (_lengths(times, s), along), reverse=True)
    return s, p, tuple(contrast), _sum(others)


def _move(x: Any, length: Any, by: Any) -> Any:
    """`x + length × by`, for trees alike."""
    return jax.tree.map(lambda x, y: x + length * y, x, by)


def _lengths(times: Schedule, state: Any) -> tuple[Array, Array]:
    dtype = jnp.result_type(*jax.tree.leaves(state))
    return jnp.asarray(times.kicks, dtype), jnp.asarray(times.drifts, dtype)


def _sum(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.sum(x, 0), tree)
