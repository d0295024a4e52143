"""One block: context, charts and retrieval give a kick, and a Hamiltonian flow, or a relaxation, follows it.

`operators` turns parameters into what blocks apply. `kick` and its adjoint are the part that is not Hamiltonian; `action`
measures the flow.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lior_jax.model.dropout import KEEP_BLOCK, BlockMasks
from lior_jax.model.operators import Operators
from lior_jax.physics import flow, hamiltonian, integrators, relaxation
from lior_jax.physics.action import length, length_adjoint
from lior_jax.physics.kernel import convolve, convolve_adjoint
from lior_jax.physics.numerics import contract, correlate, masked, project, project_back, rms_normalize, rms_normalize_adjoint
from lior_jax.physics.resilience import Law, resilience, resilience_adjoint
from lior_jax.physics.retrieval import retrieve, retrieve_adjoint
from lior_jax.physics.taps import taps, taps_adjoint
from lior_jax.registry import INTEGRATORS, POTENTIALS
from lior_jax.settings import ModelConfig


class Motion(NamedTuple):
    """How the states moved: `action` `[H]`, mean over sequences and positions of that along the way; `residual` `[]`, of the
    relaxation before its last step, if the dynamics is dissipative."""

    action: Array
    residual: Array | None


class Observation(NamedTuple):
    """Of one block's free run: what `Motion` says; and `moment` `[H, n, n]`, the mean `E[xxᵀ]` of the keys in whitened
    coordinates, where the frame is derived from it."""

    action: Array
    residual: Array | None
    moment: Array | None


def schedule(config: ModelConfig) -> integrators.Schedule:
    """Kicks and drifts of a block; the last kick is left out where its momentum would be thrown away."""
    own = config.flow
    return integrators.schedule(INTEGRATORS[own.integrator], own.steps, own.step_size, final_kick=own.carry_momentum)


def system(operators: Operators, config: ModelConfig, masks: BlockMasks = KEEP_BLOCK) -> flow.System:
    """The block's Hamiltonian, as a flow sees it."""
    return hamiltonian.system(POTENTIALS[config.flow.potential], operators.hamiltonian, config.precision, masks.units)


def landscape(
    operators: Operators, s_in: Array, kicked: Array, config: ModelConfig, masks: BlockMasks = KEEP_BLOCK
) -> relaxation.Landscape:
    """The energy that the block relaxes in, of its input and its kick `[..., d]`."""
    given = POTENTIALS[config.flow.potential], operators.hamiltonian
    return relaxation.landscape(*given, s_in, kicked, config.precision, masks.units)


def apply(
    operators: Operators, s: Array, p: Array, config: ModelConfig, masks: BlockMasks = KEEP_BLOCK
) -> tuple[tuple[Array, Array], Observation]:
    """Send `(s, p)`, each `[B, L, d]`, through one block."""
    kicked, moment = kick(operators, s, config, masks)
    s, p, moved = move(operators, s, p, kicked, config, masks)
    return (s, p), Observation(*moved, moment)


def move(
    operators: Operators, s: Array, p: Array, kicked: Array, config: ModelConfig, masks: BlockMasks = KEEP_BLOCK
) -> tuple[Array, Array, Motion]:
    """What a block does after its kick, every position by itself: follow the flow, or relax, which leaves the momentum alone.

    Args:
        s, p: `[..., d]`, state and momentum at the block's start.
        kicked: `[..., d]`, the kick.
    """
    positions = tuple(range(s.ndim - 1))

    def observe(before: Array, after: Array) -> Array:
        return jnp.mean(action(operators, before, after, config), positions)

    if config.dynamics == "dissipative":
        held = relaxation.anchor(operators.hamiltonian, s, kicked)
        relaxed, residuals = relaxation.relax(landscape(operators, s, kicked, config, masks), held, descent(config))
        return relaxed, p, Motion(observe(s, relaxed), residuals[-1])
    start = entering_momentum(p, config) + kicked
    s, p, observed = flow.flow(system(operators, config, masks), s, start, schedule(config), observe)
    return s, p, Motion(observed, None)


def descent(config: ModelConfig) -> relaxation.Descent:
    """The descent of a free relaxation."""
    return relaxation.Descent(config.relaxation.steps, config.relaxation.rate, config.relaxation.momentum)


def entering_momentum(p: Array, config: ModelConfig) -> Array:
    """The momentum that a block starts from: what it was, or zero."""
    return p if config.flow.carry_momentum else jnp.zeros_like(p)


class _Seen(NamedTuple):
    """What a block makes of a state on the way to its kick."""

    direction: Array
    inverse: Array
    remembered: Array | None
    context: Array
    query: Array
    key: Array
    value: Array
    resilience: Array | None

    @property
    def points(self) -> tuple[Array, Array, Array, Array | None]:
        """What retrieval works on."""
        return self.query, self.key, self.value, self.resilience


def _see(operators: Operators, s: Array, config: ModelConfig) -> _Seen:
    direction, inverse = rms_normalize(s)
    context, remembered = taps(operators.taps, direction), None
    if operators.long_convolution is not None:
        remembered = convolve(operators.long_convolution.by_lag, _split(direction, config), config.precision).reshape(s.shape)
        context = context + operators.long_convolution.gain[None, None] * remembered
    return _Seen(direction, inverse, remembered, context, *chart(operators, context, inverse, config))


def chart(
    operators: Operators, context: Array, inverse: Array, config: ModelConfig
) -> tuple[Array, Array, Array, Array | None]:
    """Whitened queries and keys `[B, L, H, m]`, values `[B, L, H, v]`, and the queries' resilience, of contexts `[B, L, d]`.

    Args:
        inverse: `[B, L, 1]`, one over the root mean square of the state.
    """
    query, key, value = (_to_heads(context, chart, config) for chart in _charts(operators))
    return query, key, value, resilience(operators.resilience, query, inverse)


def push(operators: Operators, retrieved: Array, config: ModelConfig) -> Array:
    """The kick `A_o y` `[B, L, d]` of what was retrieved, `[B, L, H, v]`."""
    return _from_heads(retrieved, operators.output, config)


def query_points(operators: Operators, s: Array, config: ModelConfig) -> Array:
    """The whitened chart points from which the positions of a state `[B, L, d]` query: `[B, L, H, n + r]`."""
    return _see(operators, s, config).query


def kick(operators: Operators, s: Array, config: ModelConfig, masks: BlockMasks = KEEP_BLOCK) -> tuple[Array, Array | None]:
    """The retrieval's push on the momentum, `A_o y` (docs/design.md sections 2.2 to 2.5): `[B, L, d]`; and the keys' moment."""
    seen = _see(operators, s, config)
    retrieved = retrieve(*seen.points, operators.couplings, config.precision, config.retrieval.tile)
    moment = None
    if config.geometry.frame == "derived":
        rigid = seen.key[..., : config.geometry.chart_dim]
        moment = contract("blhm,blhn->hmn", rigid, rigid, config.precision) / (s.shape[0] * s.shape[1])
    return masked(push(operators, retrieved, config), masks.kick), moment


def kick_adjoint(
    operators: Operators, s: Array, cotangent: Array, config: ModelConfig, masks: BlockMasks = KEEP_BLOCK
) -> tuple[Array, Array, Operators]:
    """`kick` and its adjoint in one pass.

    Args:
        cotangent: `[B, L, d]`, of the kick.

    Returns:
        The kick, the cotangent of `s`, and the cotangents of the operators (of the Hamiltonian: zeros).
    """
    seen = _see(operators, s, config)
    c_pushed = masked(cotangent, masks.kick)
    c_retrieved = _to_heads(c_pushed, operators.output, config)
    retrieved, (c_query, c_key, c_value, c_resilience, c_couplings) = retrieve_adjoint(
        *seen.points, operators.couplings, c_retrieved, config.precision, config.retrieval.tile
    )
    c_law, c_query_by_law, c_s_by_law = resilience_adjoint(
        operators.resilience, seen.query, seen.direction, seen.inverse, c_resilience
    )
    c_points = (c_query + c_query_by_law, c_key, c_value)

    c_context = sum(_from_heads(c, chart, config) for c, chart in zip(c_points, _charts(operators), strict=True))
    c_taps, c_direction = taps_adjoint(operators.taps, seen.direction, c_context)
    c_long = None
    if operators.long_convolution is not None:
        c_remembered = operators.long_convolution.gain[None, None] * c_context
        c_by_lag, c_channels = convolve_adjoint(
            operators.long_convolution.by_lag, _split(seen.direction, config), _split(c_remembered, config), config.precision
        )
        c_direction = c_direction + c_channels.reshape(s.shape)
        c_long = operators.long_convolution._replace(by_lag=c_by_lag, gain=jnp.sum(c_context * seen.remembered, (0, 1)))

    c_charts = (_correlate_heads(c, seen.context, config) for c in c_points)
    gradient = Operators(
        c_taps,
        *c_charts,
        output=_correlate_heads(retrieved, c_pushed, config),
        hamiltonian=jax.tree.map(jnp.zeros_like, operators.hamiltonian),
        couplings=c_couplings,
        long_convolution=c_long,
        resilience=c_law,
    )
    kicked = masked(push(operators, retrieved, config), masks.kick)
    return kicked, rms_normalize_adjoint(seen.direction, seen.inverse, c_direction) + c_s_by_law, gradient


def action(operators: Operators, before: Array, after: Array, config: ModelConfig) -> Array:
    """LIoR action of the move from one state to another, each `[B, L, d]`: `[B, L, H]`.

    It is the metric length of the straight path of the position's chart points `A_q ŝ`, weighed by the resilience where
    the move begins.
    """
    (begin, inverse), (end, _) = rms_normalize(before), rms_normalize(after)
    moved = length(_to_heads(end - begin, operators.query, config))
    weight = resilience(operators.resilience, _points(operators, begin, config), inverse)
    return moved if weight is None else weight * moved


class ActionGradient(NamedTuple):
    """Cotangents of what the action depends on beside the states."""

    query: Array
    resilience: Law


def action_adjoint(
    operators: Operators, before: Array, after: Array, cotangent: float, config: ModelConfig
) -> tuple[Array, Array, ActionGradient]:
    """Adjoint of `cotangent × Σ action`, over sequences, positions and heads: cotangents of both states, and the rest."""
    (begin, inverse), (end, inverse_end) = rms_normalize(before), rms_normalize(after)
    displacement = _to_heads(end - begin, operators.query, config)
    points = _points(operators, begin, config)
    weight = resilience(operators.resilience, points, inverse)
    moved = length(displacement)
    c_moved = jnp.full_like(moved, cotangent) if weight is None else cotangent * weight
    c_displacement = length_adjoint(displacement, c_moved)
    c_end = _from_heads(c_displacement, operators.query, config)
    c_query = _correlate_heads(c_displacement, end - begin, config)
    c_begin, c_before, c_law = -c_end, 0.0, None
    if operators.resilience is not None:
        c_law, c_points, c_before = resilience_adjoint(operators.resilience, points, begin, inverse, cotangent * moved)
        c_begin = c_begin + _from_heads(c_points, operators.query, config)
        c_query = c_query + _correlate_heads(c_points, begin, config)
    c_before = c_before + rms_normalize_adjoint(begin, inverse, c_begin)
    return c_before, rms_normalize_adjoint(end, inverse_end, c_end), ActionGradient(c_query, c_law)


def _points(operators: Operators, direction: Array, config: ModelConfig) -> Array | None:
    """The chart points `A_q ŝ`, where anything depends on them."""
    return None if operators.resilience is None else _to_heads(direction, operators.query, config)


def _charts(operators: Operators) -> tuple[Array, Array, Array]:
    return operators.query, operators.key, operators.value


def _split(x: Array, config: ModelConfig) -> Array:
    """Channels `[B, L, d]` by head: `[B, L, H, v]`."""
    return x.reshape(*x.shape[:-1], config.heads, -1)


def _to_heads(x: Array, chart: Array, config: ModelConfig) -> Array:
    """`x` `[B, L, d]` seen through charts `[H, m, d]`: `[B, L, H, m]`."""
    return project(x, chart.reshape(-1, chart.shape[-1]), config.precision).reshape(*x.shape[:-1], *chart.shape[:-1])


def _from_heads(x: Array, chart: Array, config: ModelConfig) -> Array:
    """The adjoint of `_to_heads` to its `x`: `[B, L, H, m]` to `[B, L, d]`."""
    return project_back(x.reshape(*x.shape[:-2], -1), chart.reshape(-1, chart.shape[-1]), config.precision)


def _correlate_heads(x: Array, y: Array, config: ModelConfig) -> Array:
    """The adjoint of `_to_heads` to its chart: `[B, L, H, m]` and `[B, L, d]` to `[H, m, d]`."""
    return correlate(x.reshape(*x.shape[:-2], -1), y, config.precision).reshape(*x.shape[-2:], y.shape[-1])
