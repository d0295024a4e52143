"""The echo and the equilibrium estimate for any system: a Hamiltonian or an energy over trees of arrays, given as functions.

Nothing is differentiated automatically. Beside its force, a system defines how its energy depends on its parameters `θ`: the
local statistic `∂H/∂θ` or `∂E/∂θ`. The gradient is the difference of that statistic between two nudged runs (docs/design.md
section 4; López-Pastor and Marquardt 2023, Pourcel and Ernoult 2025; for energies Scellier and Bengio 2017).

States, momenta and parameters are trees of floating-point arrays of one type. A system has one state; for a batch use
`jax.vmap` over the start.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lior_jax.learning import nudge
from lior_jax.physics import relaxation
from lior_jax.physics.flow import Contrast, Observe, Source, State, System, echo, flow
from lior_jax.physics.integrators import Schedule
from lior_jax.physics.pair import Pair, pair

Parameters = Any
"""A tree of arrays."""


def separable_system(
    parameters: Parameters,
    force: Callable[[Parameters, State], State],
    velocity: Callable[[Parameters, State], State],
    potential_statistic: Callable[[Parameters, State], Parameters],
    kinetic_statistic: Callable[[Parameters, State], Parameters] | None = None,
) -> System:
    """The Hamiltonian `H(s, p) = V(θ, s) + K(θ, p)`, from plain functions of the parameters and a state or momentum.

    The contrasts are differences of these functions' values. Where single precision is insufficient, write a `System` whose
    contrasts work on mean and slope, so that nothing cancels; both of its local statistics must have the structure of the
    parameters.

    Args:
        force: `−∂V/∂s`, like `s`.
        velocity: `∂K/∂p`, like `s`.
        potential_statistic: `∂V/∂θ`, like `θ`.
        kinetic_statistic: `∂K/∂θ`, like `θ`; none if `K` has no parameters.
    """

    def still(theta: Parameters, p: State) -> Parameters:
        return jax.tree.map(jnp.zeros_like, theta)

    return System(
        lambda s: force(parameters, s),
        lambda p: velocity(parameters, p),
        _contrast(parameters, force, potential_statistic),
        _contrast(parameters, velocity, kinetic_statistic or still),
    )


def energy_landscape(
    parameters: Parameters,
    energy_gradient: Callable[[Parameters, State], State],
    statistic: Callable[[Parameters, State], Parameters],
    precondition: Callable[[State], State] = lambda s: s,
) -> relaxation.Landscape:
    """The energy `E(θ, s)`, from plain functions of the parameters and a state.

    Args:
        energy_gradient: `∂E/∂s`, like `s`.
        statistic: `∂E/∂θ`, like `θ`.
        precondition: applies an approximate inverse of the Hessian `∂²E/∂s²` to a state.
    """
    contrast = _contrast(parameters, energy_gradient, statistic)
    return relaxation.Landscape(lambda s: energy_gradient(parameters, s), contrast, precondition)


EndCost = Callable[[State, State], tuple[Array, tuple[State, State]]]
"""From the final state and momentum to the cost `[]` and its cotangents of both."""

PathCost = Callable[..., tuple[Array, tuple[State, State]]]
"""From the states before and after a drift, and the drift's entries of `along`, to the cost `[]` and its cotangents of both."""


class EchoGradient(NamedTuple):
    """Result of an echo: the `cost` `[]`, its `gradient` like the parameters, and its cotangents `c_s` and `c_p` of the start.

    `reversibility`: relative distance of the reconstructed start from the start. `nudge`: the ε of the nudge.
    """

    cost: Array
    gradient: Parameters
    c_s: State
    c_p: State
    reversibility: Array
    nudge: Array


def echo_gradient(
    system: System,
    s: State,
    p: State,
    times: Schedule,
    end_cost: EndCost | None = None,
    path_cost: PathCost | None = None,
    along: tuple[Any, ...] = (),
    nudge_size: float = 1e-3,
    sides: str = "centred",
) -> EchoGradient:
    """Gradient of a cost of the flow from `(s, p)`, by the Hamiltonian echo (docs/design.md section 4.1).

    With `(s±, p±) = (s_T ∓ ε λ_p, p_T ± ε λ_s)` run backwards, and `λ` the cotangents of the end,

        ∂C/∂θ = Σ (h / 2ε) [∂H/∂θ(+) − ∂H/∂θ(−)],    ∂C/∂s₀ = (p₊ − p₋) / 2ε,    ∂C/∂p₀ = −(s₊ − s₋) / 2ε

    over the kicks and drifts, of length `h`. A cost along the path nudges again at every drift. The error is O(ε²); with
    one-sided nudging it is O(ε).

    Args:
        system: with local statistics like the parameters, as from `separable_system`.
        s, p: the start, of equal structure.
        times: from `physics.integrators.schedule`.
        end_cost: cost of the final point.
        path_cost: cost of every drift, summed. It may read the parameters, but its direct dependence on them is not part of the
            gradient.
        along: trees of arrays `[drifts, ...]` whose entries are passed to `path_cost`, such as the points of a trajectory; a
            schedule has `len(times.drifts)` drifts.
        nudge_size: ε₀: all nudges together are at most this fraction of the state, `‖ε λ‖ ≤ ε₀ ‖(s, p)‖`.
        sides: `centred` or `one_sided`.

    Raises:
        ValueError: without any cost.
    """
    if end_cost is None and path_cost is None:
        raise ValueError("echo_gradient needs a cost of the end, of the path, or both")

    source = None
    if path_cost is None:
        s_end, p_end, observed = flow(system, s, p, times)
    else:
        observe, source = _along(path_cost)
        s_end, p_end, observed = flow(system, s, p, times, observe, along)
    cost, (c_s, c_p) = end_cost(s_end, p_end) if end_cost else (0.0, jax.tree.map(jnp.zeros_like, (s_end, p_end)))
    by_path, path_pull = observed or (0.0, 0.0)
    size = jnp.maximum(_norm((s, p)), _norm((s_end, p_end)))
    epsilon = _strength(nudge_size, size, _norm((c_s, c_p)) + path_pull)

    betas = nudge.SIDES[sides]
    pushed, middle = nudge.nudged_pair(s_end, p_end, c_s, c_p, epsilon, betas), nudge.middle(epsilon, betas)
    s_pair, p_pair, contrast, _ = echo(system, *pushed, times, source, middle, along)
    rebuilt = tuple(nudge.without_nudge(x, epsilon, betas) for x in (s_pair, p_pair))
    return EchoGradient(
        cost=jnp.asarray(cost + by_path),
        gradient=jax.tree.map(jnp.add, *contrast),
        c_s=p_pair.slope,
        c_p=jax.tree.map(jnp.negative, s_pair.slope),
        reversibility=_norm(jax.tree.map(jnp.subtract, rebuilt, (s, p))) / _positive(size),
        nudge=epsilon,
    )


def _along(path_cost: PathCost) -> tuple[Observe, Source]:
    """A cost along the path: its value at every drift, and its cotangents."""

    def observe(before: State, after: State, *own: Any) -> tuple[Array, Array]:
        cost, pulls = path_cost(before, after, *own)
        return cost, _norm(pulls)

    def source(before: State, after: State, *own: Any) -> tuple[State, State, None]:
        c_before, c_after = path_cost(before, after, *own)[1]
        return c_before, c_after, None

    return observe, source


class EquilibriumGradient(NamedTuple):
    """Result of equilibrium propagation: the `cost` `[]` of the free `state`, and its `gradient` like the parameters.

    `residual`: the larger of the final residuals of the free and the nudged relaxation, which bounds the gradient's accuracy.
    `nudge`: the ε of the nudge.
    """

    cost: Array
    gradient: Parameters
    state: State
    residual: Array
    nudge: Array


def equilibrium_gradient(
    landscape: relaxation.Landscape,
    start: State,
    descent: relaxation.Descent,
    cost_and_adjoint: Callable[[State], tuple[Array, State]],
    nudge_size: float = 1e-3,
    sides: str = "centred",
) -> EquilibriumGradient:
    """Gradient of a cost of an energy's minimum, by equilibrium propagation (docs/design.md section 4.2).

    The free phase descends from `start`; from its end `s*` the nudged phases descend `E ± ε c·s`, with `c = ∂C/∂s(s*)`:

        ∂C/∂θ = [∂E/∂θ(s₊) − ∂E/∂θ(s₋)] / 2ε

    Args:
        landscape: with a local statistic like the parameters, as from `energy_landscape`.
        start: the initial state of the free phase.
        descent: of both phases; `steps` must suffice for convergence, measured by `residual`.
        cost_and_adjoint: from the free state to the cost `[]` and its cotangent.
        nudge_size: ε₀: the nudge is this fraction of the state, `‖ε c‖ = ε₀ ‖s*‖`.
        sides: `centred` or `one_sided`.
    """
    free, free_residuals = relaxation.relax(landscape, start, descent)
    cost, pull = cost_and_adjoint(free)
    epsilon = _strength(nudge_size, _norm(free), _norm(pull))
    plus, minus = nudge.SIDES[sides]
    pulled, residuals = relaxation.relax_pair(landscape, free, lambda s: pull, (plus, minus), epsilon, descent)
    _, gradient = landscape.contrast(pulled, (plus - minus) * epsilon)
    return EquilibriumGradient(cost, gradient, free, jnp.maximum(free_residuals[-1], residuals[-1]), epsilon)


def _contrast(parameters: Parameters, function: Callable, statistic: Callable) -> Contrast:
    """Both functions at the ends of a pair: the values of the first as a pair, of the second the slope."""

    def contrast(x: Pair, span: Array) -> tuple[Pair, Parameters]:
        plus, minus = x.ends(span)
        local = pair(statistic(parameters, plus), statistic(parameters, minus), span).slope
        return pair(function(parameters, plus), function(parameters, minus), span), local

    return contrast


def _strength(nudge_size: float, size: Array, pull: Array) -> Array:
    """ε of a nudge `ε pull`, relative to the state's size; finite even without a pull."""
    return nudge_size * _positive(size) / jnp.maximum(pull, jnp.finfo(pull.dtype).tiny ** 0.25)


def _positive(size: Array) -> Array:
    """The norm of a state, or 1 if it vanishes."""
    return jnp.where(size > 0, size, 1)


def _norm(tree: Any) -> Array:
    return jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(tree)))
