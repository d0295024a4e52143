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
"""Maps a nudged pair and its span to the pair of a function's values, and the local statistic: the difference of the
Hamiltonian's derivatives with respect to its parameters, divided by the span."""


class Keeping(NamedTuple):
    """A system's kicks, with intermediate results of the free run stored so that the echo need not recompute them: `force`
    maps a state to the force and the stored data; `kick_contrast` takes a nudged pair, its span, the stored data, and the
    nudge of the pair's mean relative to the free run."""

    force: Callable[[State], tuple[State, Any]]
    kick_contrast: Callable[[Pair, Array, Any, Array | float], tuple[Pair, Any]]


class System(NamedTuple):
    """A separable Hamiltonian `H(s, p) = V(s) + K(p)`, as the functions that a flow needs.

    `force`: `−∂V/∂s` of a state. `velocity`: `∂K/∂p` of a momentum. `kick_contrast`: the forces on a nudged pair, and
    `[∂V/∂θ(s₊) − ∂V/∂θ(s₋)] / span`. `drift_contrast`: the pair of velocities, and `[∂K/∂θ(p₊) − ∂K/∂θ(p₋)] / span`.
    `keeping`: the same kicks with stored intermediate results; None if unsupported.
    """

    force: Callable[[State], State]
    velocity: Callable[[State], State]
    kick_contrast: Contrast
    drift_contrast: Contrast
    keeping: Keeping | None = None


Observe = Callable[..., Any]
"""Maps the states before and after a drift, and the drift's entries of the arrays along the path, to a tree that is summed over
all drifts."""

Source = Callable[..., tuple[State, State, Any]]
"""The contribution of one drift to a cost along the path: maps the arguments of `Observe` to the cotangents of both states, and
a tree of other cotangents that is summed over all drifts."""


def flow(
    system: System,
    s: State,
    p: State,
    times: Schedule,
    observe: Observe = lambda before, after, *along: None,
    along: tuple[Any, ...] = (),
) -> tuple[State, State, Any]:
    """Integrate the Hamiltonian flow from `(s, p)`.

    Args:
        along: trees of arrays `[drifts, ...]`; `observe` receives the entries of each drift.

    Returns:
        State and momentum at the end, and the sum of what `observe` returned.
    """
    s, p, observed, _ = _follow(system, lambda s: (system.force(s), None), s, p, times, observe, along)
    if times.final_kick:
        p = _move(p, times.final_kick, system.force(s))
    return s, p, observed


def flow_keeping(
    system: System, s: State, p: State, times: Schedule, observe: Observe = lambda before, after: None
) -> tuple[State, State, Any, Any]:
    """`flow` of a system with `keeping` and a schedule without a final kick; also returns the data stored by the kicks,
    `[kicks, ...]`, for `echo`."""
    assert system.keeping is not None
    assert not times.final_kick
    return _follow(system, system.keeping.force, s, p, times, observe, ())


def _follow(system: System, force: Callable[[State], tuple[State, Any]], s, p, times: Schedule, observe: Observe, along):
    """All but the final kick, with a force that also returns data to store."""

    def step(state, scanned):
        s, p = state
        (kick, drift), own = scanned
        by, kept = force(s)
        p = _move(p, kick, by)
        after = _move(s, drift, system.velocity(p))
        return (after, p), (observe(s, after, *own), kept)

    (s, p), (observed, kept) = lax.scan(step, (s, p), (_lengths(times, s), along))
    return s, p, _sum(observed), kept


def echo(
    system: System,
    s: Pair,
    p: Pair,
    span: Array,
    times: Schedule,
    source: Source | None = None,
    middle: Array | float = 0.0,
    along: tuple[Any, ...] = (),
    kept: Any = None,
) -> tuple[Pair, Pair, tuple[Any, Any], Any]:
    """Run a nudged pair of end points backwards through `flow`.

    Args:
        s, p: the pair at the end.
        span: difference of the two nudges, by which `slope` is divided; it broadcasts to every array.
        times: as given to `flow`.
        source: a cost along the path; it nudges the pair again before and after every drift.
        middle: the nudge of the pair's mean, shaped like `span`; 0 for two-sided nudging.
        along: as given to `flow`, for the source.
        kept: data stored by `flow_keeping` in the free run; None to recompute it.

    Returns:
        The pair at the start; `Σ length × [∂H/∂θ(+) − ∂H/∂θ(−)] / span` over all kicks, and over all drifts; and the sum of
        the source's other cotangents.
    """

    def unkick(s: Pair, p: Pair, total: Any, length: Any, kept: Any = None) -> tuple[Pair, Any]:
        if kept is None:
            forces, local = system.kick_contrast(s, span)
        else:
            assert system.keeping is not None
            forces, local = system.keeping.kick_contrast(s, span, kept, middle)
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
        (kick, drift), own, kept = scanned
        c_before = others = None
        if source is not None:
            before = _move(s.mean, -drift, system.velocity(p.mean))
            c_before, c_after, others = source(before, s.mean, *own)
            p = push(p, c_after)
        velocities, local = system.drift_contrast(p, span)
        s, by_drifts = _move(s, -drift, velocities), _move(by_drifts, drift, local)
        if source is not None:
            p = push(p, c_before)
        p, by_kicks = unkick(s, p, by_kicks, kick, kept)
        return (s, p, by_kicks, by_drifts), others

    start = s, p, by_kicks, by_drifts
    (s, p, *contrast), others = lax.scan(step, start, (_lengths(times, s), along, kept), reverse=True)
    return s, p, tuple(contrast), _sum(others)


def _move(x: Any, length: Any, by: Any) -> Any:
    """`x + length × by`, for trees of the same structure."""
    return jax.tree.map(lambda x, y: x + length * y, x, by)


def _lengths(times: Schedule, state: Any) -> tuple[Array, Array]:
    dtype = jnp.result_type(*jax.tree.leaves(state))
    return jnp.asarray(times.kicks, dtype), jnp.asarray(times.drifts, dtype)


def _sum(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.sum(x, 0), tree)
