"""The Hamiltonian echo: the exact gradient as a difference of two nudged rollouts (docs/design.md section 4).

The free phase runs the network forward. The nudged phases run every block's flow backwards in time from the free
end point, perturbed slightly along and against the loss's force. Because the flow is symplectic, the response of the
past to that perturbation is the adjoint of the past. Literature: Hamiltonian echo backpropagation, López-Pastor and Marquardt
2023; its recurrent form, Pourcel and Ernoult 2025; the Lagrangian view of both, Pourcel et al. 2025. With `carry_momentum`
blocks are reversible and store no activations (Gomez et al. 2017; Sander et al. 2021).
"""

from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from lior_jax import parallel
from lior_jax.learning import nudge
from lior_jax.learning.chunks import in_chunks
from lior_jax.learning.info import Info, Observed
from lior_jax.model import block, dropout, network
from lior_jax.model.dropout import BlockMasks
from lior_jax.model.operators import Operators, carry, prepare, prepare_adjoint
from lior_jax.model.parameters import Params
from lior_jax.physics import flow
from lior_jax.physics.hamiltonian import Hamiltonian
from lior_jax.settings import LearningConfig, ModelConfig


class Stored(NamedTuple):
    """Data of a block that the free phase stores: the size of its input (`nudge.mean_square`), `[B, L, 1]`; if its momentum
    starts at zero, its input and its final momentum, `[B, L, d]` each; and, with `learning.keep: units`, the potential's units
    at every kick, a tree of `[B, kicks, L, ...]`."""

    size: Array
    s_in: Array | None = None
    p_out: Array | None = None
    units: Any = None


def estimate(
    params: Params,
    batch: tuple[Array, Array],
    model: ModelConfig,
    learning: LearningConfig,
    key: Array | None = None,
) -> tuple[Params, Info]:
    """Contrastive estimate of the gradient of `model.loss`, without automatic differentiation.

    With `learning.action_weight` the cost is the loss plus that weight times the sum of the blocks' mean actions
    (`model.actions`), which nudges the echo at every step of every flow.

    Args:
        params: from `model.init`.
        batch: tokens and targets, each `[B, L]` integers.
        model, learning: static.
        key: PRNG key of the dropout masks; required only with dropout.

    Returns:
        An estimate in the structure of `params`, and diagnostics.
    """
    tokens, targets = batch
    chex.assert_rank([tokens, targets], 2)
    chex.assert_equal_shape([tokens, targets])
    operators = prepare(params, tokens.shape[1], model)
    keys = dropout.keys(learning.dropout, key, model.blocks, tokens.shape[0])
    kept = dropout.embedding_mask(keys.embedding, tokens.shape[1], learning.dropout, model)
    s_first = network.embed(params.embedding, tokens, kept)
    (s_last, p_last), (stored, observed) = _free_phase(operators, s_first, keys.blocks, model, learning)
    c_action = learning.action_weight / tokens.size
    loss, c_readout, c_s = network.readout_loss_and_adjoint(params.readout, s_last, targets, model.precision)

    def back(end: PhasePoint, scanned):
        operators, stored, keys = scanned
        operators, end = parallel.gathered(operators), parallel.by_sequence(end)
        if stored.s_in is not None:
            end = end._replace(p=stored.p_out, c_p=jnp.zeros_like(end.p))
        run = partial(echo_block, operators, c_action=c_action, model=model, learning=learning)
        start, gradient, health = in_chunks(run, learning.chunk, end, stored, keys)
        return start, (gradient, Health(jnp.max(health.reversibility), jnp.mean(health.nudge)))

    end = PhasePoint(s_last, p_last, c_s, jnp.zeros_like(c_s))
    start, (c_operators, health) = lax.scan(back, end, (operators, stored, keys.blocks), reverse=True)
    reversibility = jnp.max(health.reversibility)
    if stored.s_in is None:
        reversibility = _rms(start.s - s_first) / _rms(s_first)

    gradient = Params(
        embedding=network.embed_adjoint(params.embedding, tokens, start.c_s, kept),
        blocks=prepare_adjoint(params, c_operators, model),
        readout=c_readout,
        carried=jax.tree.map(jnp.zeros_like, params.carried),
    )
    info = Info(
        loss=loss,
        reversibility=reversibility,
        residual=health.reversibility,
        nudge=health.nudge,
        gradient_norm=optax.tree.norm(gradient),
        action=jnp.sum(observed.action, -1),
        carried=carry(params, observed.action, observed.moment, model),
        observed=Observed(observed.action, observed.moment),
    )
    return gradient, info


class PhasePoint(NamedTuple):
    """State and momentum of every position, and the loss's cotangents of both; `[B, L, d]` each."""

    s: Array
    p: Array
    c_s: Array
    c_p: Array


class Health(NamedTuple):
    """Health of one block's echo: relative distance of the reconstructed input, and mean strength of the nudge; `[]` each."""

    reversibility: Array
    nudge: Array


def echo_block(
    operators: Operators,
    end: PhasePoint,
    stored: Stored,
    keys: Array | None,
    c_action: float,
    model: ModelConfig,
    learning: LearningConfig,
) -> tuple[PhasePoint, Operators, Health]:
    """Run the nudged pair backwards through one block; returns its start, the gradient of its operators, and its health.

    Args:
        stored: from the free phase; if it lacks the block's input, input and initial momentum are reconstructed.
        keys: PRNG keys of the block's dropout masks, one per sequence.
        c_action: cotangent of the block's actions, summed over positions.
    """
    masks = dropout.block_masks(keys, end.s.shape[1], learning.dropout, model)
    sides = nudge.SIDES[learning.nudge]
    system = block.system(operators, model, masks)
    pulls = [end.c_s, end.c_p]
    if c_action:
        # Nudges along the path: those of every drift are about as strong as those of the last one.
        before = end.s - model.flow.step_size * system.velocity(end.p)
        *_, c_after = block.action_adjoint(operators, before, end.s, c_action * model.flow.steps, model)
        pulls.append(c_after)
    epsilon = nudge.strength(learning.nudge_size, end.s, *pulls, start=stored.size)
    s_pair, p_pair, span = nudge.nudged_pair(end.s, end.p, end.c_s, end.c_p, epsilon, sides)

    def source(before: Array, after: Array) -> tuple[Array, Array, block.ActionGradient]:
        c_operators, c_before, c_after = block.action_adjoint(operators, before, after, c_action, model)
        return c_before, c_after, c_operators

    path = source if c_action else None
    s_pair, p_pair, contrast, by_action = flow.echo(
        system,
        s_pair,
        p_pair,
        span,
        block.schedule(model),
        path,
        nudge.middle(epsilon, sides),
        kept=_swapped(stored.units),
    )
    c_s, c_p = p_pair.slope, -s_pair.slope

    rebuilt = nudge.without_nudge(s_pair, epsilon, sides)
    s = rebuilt if stored.s_in is None else stored.s_in
    kicked, (gradient, c_s_by_kick) = block.kick_and_adjoint(operators, s, c_p, model, masks)
    # A momentum that started at zero need not be reconstructed, which saves half of the last forces.
    p = nudge.without_nudge(p_pair, epsilon, sides) - kicked if stored.s_in is None else jnp.zeros_like(s)
    health = Health(_rms(rebuilt - s) / _rms(s), jnp.mean(epsilon))
    gradient = gradient._replace(hamiltonian=Hamiltonian(*contrast))
    if by_action is not None:
        law = jax.tree.map(jnp.add, gradient.resilience, by_action.resilience)
        gradient = gradient._replace(query=gradient.query + by_action.query, resilience=law)
    return PhasePoint(s, p, c_s + c_s_by_kick, c_p), gradient, health


def apply_and_keep(
    operators: Operators, s: Array, p: Array, masks: BlockMasks, model: ModelConfig, learning: LearningConfig
) -> tuple[tuple[Array, Array], block.Observation, Stored]:
    """`block.apply`, and the data that the block's echo needs."""
    after, observed, units = block.apply_keeping(operators, s, p, model, masks, learning.keep == "units")
    size = nudge.mean_square(s)
    return after, observed, Stored(size) if model.flow.carry_momentum else Stored(size, s, after[1], _swapped(units))


def _swapped(tree: Any) -> Any:
    """`[kicks, B, …]` as `[B, kicks, …]`, or back: stored units have sequences as their first axis."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)


def _free_phase(operators: Operators, s: Array, keys: Array | None, model: ModelConfig, learning: LearningConfig):
    """Run all blocks; returns the data that the echoes need, and the observations of each block."""

    def step(state, scanned):
        operators, keys = scanned
        operators, state = parallel.gathered(operators), parallel.by_sequence(state)
        masks = dropout.block_masks(keys, s.shape[1], learning.dropout, model)
        after, observed, stored = apply_and_keep(operators, state[0], state[1], masks, model, learning)
        return after, (stored, observed)

    return lax.scan(step, (s, jnp.zeros_like(s)), (operators, keys))


def _rms(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(x * x))
