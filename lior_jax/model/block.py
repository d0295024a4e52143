"""One block: a kick by retrieval from the context, followed by a Hamiltonian flow or a relaxation.

`operators` prepares the applied operators from the parameters. `kick` and its adjoint are the non-Hamiltonian part; `action`
measures the flow. In the block of a transformer (Vaswani et al. 2017), attention and a feed-forward layer take these roles.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lior_jax.model import field
from lior_jax.model.charts import correlate_heads, from_heads, see, see_adjoint, to_heads
from lior_jax.model.dropout import KEEP_BLOCK, BlockMasks
from lior_jax.model.operators import Operators
from lior_jax.model.retrieval import retrieve, retrieve_and_adjoint
from lior_jax.physics import flow, hamiltonian, integrators, relaxation
from lior_jax.physics.action import length, length_adjoint
from lior_jax.physics.numerics import contract, masked, rms_normalize, rms_normalize_adjoint
from lior_jax.physics.resilience import Law, resilience, resilience_adjoint
from lior_jax.registry import INTEGRATORS, POTENTIALS
from lior_jax.settings import ModelConfig


class Motion(NamedTuple):
    """Measurements of a flow or relaxation: `action` `[H]` of the path, averaged over sequences and positions; `residual` `[]`
    of a relaxation before its last step, None for a flow; `kept`, stored units if requested, a tree of `[kicks, ...]`."""

    action: Array
    residual: Array | None
    kept: Any = None


class Observation(NamedTuple):
    """Observations of one block's free run: those of `Motion`; and `moment` `[H, n, n]`, the mean `E[xxᵀ]` of the keys in
    whitened coordinates, for a derived frame."""

    action: Array
    residual: Array | None
    moment: Array | None


def schedule(config: ModelConfig) -> integrators.Schedule:
    """Kicks and drifts of a block; the final kick is omitted if the momentum is discarded."""
    own = config.flow
    return integrators.schedule(INTEGRATORS[own.integrator], own.steps, own.step_size, final_kick=own.carry_momentum)


def system(operators: Operators, config: ModelConfig, masks: BlockMasks = KEEP_BLOCK) -> flow.System:
    """The block's Hamiltonian, in the form that a flow takes."""
    return hamiltonian.system(POTENTIALS[config.flow.potential], operators.hamiltonian, config.precision, masks.units)


def landscape(
    operators: Operators, s_in: Array, kicked: Array, config: ModelConfig, masks: BlockMasks = KEEP_BLOCK
) -> relaxation.Landscape:
    """The energy of the block's relaxation, given its input and its kick `[..., d]`."""
    given = POTENTIALS[config.flow.potential], operators.hamiltonian
    return relaxation.landscape(*given, s_in, kicked, config.precision, masks.units)


def apply(
    operators: Operators, s: Array, p: Array, config: ModelConfig, masks: BlockMasks = KEEP_BLOCK
) -> tuple[tuple[Array, Array], Observation]:
    """Apply one block to `(s, p)`, each `[B, L, d]`."""
    after, observed, _ = apply_keeping(operators, s, p, config, masks, keep=False)
    return after, observed


def apply_keeping(
    operators: Operators, s: Array, p: Array, config: ModelConfig, masks: BlockMasks, keep: bool
) -> tuple[tuple[Array, Array], Observation, Any]:
    """`apply`, with `Motion.kept` as a third result."""
    kicked, moment = kick(operators, s, config, masks)
    s, p, moved = move(operators, s, p, kicked, config, masks, keep)
    return (s, p), Observation(moved.action, moved.residual, moment), moved.kept


def move(
    operators: Operators,
    s: Array,
    p: Array,
    kicked: Array,
    config: ModelConfig,
    masks: BlockMasks = KEEP_BLOCK,
    keep: bool = False,
) -> tuple[Array, Array, Motion]:
    """The second half of a block, independent for each position: the flow, or a relaxation, which does not change the momentum.

    Args:
        s, p: `[..., d]`, state and momentum at the block's start.
        kicked: `[..., d]`, the kick.
        keep: store the potential's units at every kick for the echo; not supported with carried momentum.
    """
    positions = tuple(range(s.ndim - 1))

    def observe(before: Array, after: Array) -> Array:
        return jnp.mean(action(operators, before, after, config), positions)

    if config.dynamics == "dissipative":
        held = relaxation.anchor(operators.hamiltonian, s, kicked)
        relaxed, residuals = relaxation.relax(landscape(operators, s, kicked, config, masks), held, descent(config))
        return relaxed, p, Motion(observe(s, relaxed), residuals[-1])
    start = entering_momentum(p, config) + kicked
    run, times = system(operators, config, masks), schedule(config)
    if keep:
        s, p, observed, kept = flow.flow_keeping(run, s, start, times, observe)
        return s, p, Motion(observed, None, kept)
    s, p, observed = flow.flow(run, s, start, times, observe)
    return s, p, Motion(observed, None)


def descent(config: ModelConfig) -> relaxation.Descent:
    """The descent of a free relaxation."""
    return relaxation.Descent(config.relaxation.steps, config.relaxation.rate, config.relaxation.momentum)


def entering_momentum(p: Array, config: ModelConfig) -> Array:
    """The momentum at the start of a block: the carried one, or zero."""
    return p if config.flow.carry_momentum else jnp.zeros_like(p)


def push(operators: Operators, retrieved: Array, config: ModelConfig) -> Array:
    """The kick `A_o y` `[B, L, d]` from the retrieved means `y` `[B, L, H, v]`."""
    return from_heads(retrieved, operators.output, config)


def kick(operators: Operators, s: Array, config: ModelConfig, masks: BlockMasks = KEEP_BLOCK) -> tuple[Array, Array | None]:
    """The kick of the momentum by retrieval, `A_o y` (docs/design.md sections 2.2 to 2.5): `[B, L, d]`; and the keys'
    moment."""
    seen = see(operators, s, config)
    retrieved = retrieve(seen.points, operators.couplings, config)
    if operators.evidence is not None:
        assert seen.pull is not None
        retrieved = retrieved + field.read(operators.evidence, *seen.points[:3], seen.pull, config)
    moment = None
    if config.geometry.frame == "derived":
        rigid = seen.key[..., : config.geometry.chart_dim]
        moment = contract("blhm,blhn->hmn", rigid, rigid, config.precision) / (s.shape[0] * s.shape[1])
    return masked(push(operators, retrieved, config), masks.kick), moment


def kick_and_adjoint(
    operators: Operators, s: Array, cotangent: Array, config: ModelConfig, masks: BlockMasks = KEEP_BLOCK
) -> tuple[Array, tuple[Operators, Array]]:
    """`kick` and its adjoint in one pass.

    Args:
        cotangent: `[B, L, d]`, of the kick.

    Returns:
        The kick, and the cotangents of the operators (zero for the Hamiltonian) and of `s`.
    """
    seen = see(operators, s, config)
    c_pushed = masked(cotangent, masks.kick)
    c_retrieved = to_heads(c_pushed, operators.output, config)
    retrieved, (*c_points, c_couplings) = retrieve_and_adjoint(seen.points, operators.couplings, c_retrieved, config)
    c_query, c_key, c_value, c_resilience = c_points
    c_evidence = c_pull = None
    if operators.evidence is not None:
        assert seen.pull is not None
        read, (c_evidence, *c_by_field, c_pull) = field.read_and_adjoint(
            operators.evidence, *seen.points[:3], seen.pull, c_retrieved, config
        )
        retrieved = retrieved + read
        c_query, c_key, c_value = map(jnp.add, (c_query, c_key, c_value), c_by_field)
    gradient, c_s = see_adjoint(operators, seen, (c_query, c_key, c_value, c_resilience), c_pull, config)
    gradient = gradient._replace(evidence=jax.tree.map(jnp.add, gradient.evidence, c_evidence))
    gradient = gradient._replace(output=correlate_heads(retrieved, c_pushed, config), couplings=c_couplings)
    kicked = masked(push(operators, retrieved, config), masks.kick)
    return kicked, (gradient, c_s)


def action(operators: Operators, before: Array, after: Array, config: ModelConfig) -> Array:
    """LIoR action of the move from one state to another, each `[B, L, d]`: `[B, L, H]`.

    It is the metric length of the straight path of the position's chart points `A_q ŝ`, weighted by the resilience at its
    start.
    """
    (begin, inverse), (end, _) = rms_normalize(before), rms_normalize(after)
    moved = length(to_heads(end - begin, operators.query, config))
    return resilience(operators.resilience, to_heads(begin, operators.query, config), inverse) * moved


class ActionGradient(NamedTuple):
    """Cotangents of the action's arguments other than the states."""

    query: Array
    resilience: Law


def action_adjoint(
    operators: Operators, before: Array, after: Array, cotangent: Array | float, config: ModelConfig
) -> tuple[ActionGradient, Array, Array]:
    """Adjoint of `cotangent × Σ action`, over sequences, positions and heads: cotangents of the operators and both states."""
    (begin, inverse), (end, inverse_end) = rms_normalize(before), rms_normalize(after)
    displacement = to_heads(end - begin, operators.query, config)
    points = to_heads(begin, operators.query, config)
    moved = length(displacement)
    c_displacement = length_adjoint(displacement, cotangent * resilience(operators.resilience, points, inverse))
    c_end = from_heads(c_displacement, operators.query, config)
    c_query = correlate_heads(c_displacement, end - begin, config)
    c_begin, c_before, c_law = -c_end, 0.0, None
    if operators.resilience is not None:
        c_law, c_points, c_before = resilience_adjoint(operators.resilience, points, begin, inverse, cotangent * moved)
        c_begin = c_begin + from_heads(c_points, operators.query, config)
        c_query = c_query + correlate_heads(c_points, begin, config)
    c_before = c_before + rms_normalize_adjoint(begin, inverse, c_begin)
    return ActionGradient(c_query, c_law), c_before, rms_normalize_adjoint(end, inverse_end, c_end)
