"""Equilibrium propagation: the gradient as the contrast of free and nudged relaxations (docs/design.md section 4).

The free phase relaxes every block to a minimum of its energy. The nudged phases relax again from there, with a small multiple
of the loss added to the energy. The response of a minimum to a pull is the inverse Hessian of the energy, which is symmetric;
hence the difference of the local statistic `∂E/∂θ` between two nudges, divided by their distance, is the gradient of the loss.
Literature: Scellier and Bengio 2017; two-sided nudging, Laborieux et al. 2021.
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
from lior_jax.model.operators import Operators, carry, prepare, prepare_adjoint
from lior_jax.model.parameters import Block, Params
from lior_jax.physics import relaxation
from lior_jax.physics.pair import Pair
from lior_jax.settings import LearningConfig, ModelConfig


class Stored(NamedTuple):
    """What the free phase stores for a block, `[B, L, d]` each: its input and its kick."""

    s_in: Array
    kicked: Array


class End(NamedTuple):
    """A block's free state, and the loss's cotangent of it: `[B, L, d]` each. With `targets` `[B, L]` the cotangent is
    recomputed at every step."""

    s: Array
    c_s: Array
    targets: Array | None


class Health(NamedTuple):
    """Health of one block's nudged relaxation: residual of the slope, and mean strength of the push; `[]` each."""

    residual: Array
    nudge: Array


def estimate(
    params: Params,
    batch: tuple[Array, Array],
    model: ModelConfig,
    learning: LearningConfig,
    key: Array | None = None,
) -> tuple[Params, Info]:
    """The estimate of `learning.estimate` by equilibrium propagation. With `learning.update: geometry`, or a `learning.pull`
    other than the loss's, it is the update that these define, not the gradient of the loss."""
    tokens, targets = batch
    chex.assert_rank([tokens, targets], 2)
    chex.assert_equal_shape([tokens, targets])
    operators = prepare(params, tokens.shape[1], model)
    keys = dropout.keys(learning.dropout, key, model.blocks, tokens.shape[0])
    kept = dropout.embedding_mask(keys.embedding, tokens.shape[1], learning.dropout, model)
    s_first = network.embed(params.embedding, tokens, kept)
    s_last, (stored, observed) = _free_phase(operators, s_first, keys.blocks, model, learning)
    loss, c_readout, c_s = network.readout_loss_and_adjoint(params.readout, s_last, targets, model.precision)
    if learning.pull == "target_embedding":
        c_s = nudge.target_embedding_adjoint(params.embedding, s_last, targets)
    if learning.pull == "off":
        c_s = jnp.zeros_like(c_s)

    sides = nudge.sides_of(learning.nudge, tokens)
    run = partial(_nudged_block, readout=params.readout, size=tokens.size, model=model, learning=learning)

    def nudge_block(end: End, scanned):
        operators, stored, keys = scanned
        operators, end = parallel.gathered(operators), parallel.by_sequence(end)
        c_s, gradient, health = in_chunks(partial(run, operators), learning.chunk, end, stored, keys, sides)
        return End(stored.s_in, c_s, None), (gradient, Health(jnp.max(health.residual), jnp.mean(health.nudge)))

    end, blocks = End(s_last, c_s, None), (operators, stored, keys.blocks)
    if learning.pull == "force":
        # The last block is separate: only its pull can depend on its state.
        end, top = nudge_block(end._replace(targets=targets), _at(blocks, -1))
        start, below = lax.scan(nudge_block, end, _at(blocks, slice(-1)), reverse=True)
        c_operators, health = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), below, top)
    else:
        start, (c_operators, health) = lax.scan(nudge_block, end, blocks, reverse=True)

    gradient = Params(
        embedding=network.embed_adjoint(params.embedding, tokens, start.c_s, kept),
        blocks=prepare_adjoint(params, c_operators, model),
        readout=c_readout,
        carried=jax.tree.map(jnp.zeros_like, params.carried),
    )
    if learning.pull == "off":
        # Without a push, the difference of the two runs is rounding error, which Adam would scale up to full steps.
        gradient = jax.tree.map(jnp.zeros_like, gradient)
    elif learning.update == "geometry":
        gradient = _geometry_only(gradient)
    assert observed.residual is not None  # a relaxation has one
    residual = jnp.maximum(observed.residual, health.residual)
    info = Info(
        loss=loss,
        reversibility=jnp.max(residual),
        residual=residual,
        nudge=health.nudge,
        gradient_norm=optax.tree.norm(gradient),
        action=jnp.sum(observed.action, -1),
        carried=params.carried if learning.pull == "off" else carry(params, observed.action, observed.moment, model),
        observed=None if learning.pull == "off" else Observed(observed.action, observed.moment),
    )
    return gradient, info


def _nudged_block(
    operators: Operators,
    end: End,
    stored: Stored,
    keys: Array | None,
    sides: tuple[Array, Array],
    readout: Array,
    size: int,
    model: ModelConfig,
    learning: LearningConfig,
) -> tuple[Array, Operators, Health]:
    """Relax a nudged pair from a block's free state: the cotangent of its input, and the gradient of its operators.

    Args:
        size: number of targets in the mean that is the loss, over all chunks.
    """
    masks = dropout.block_masks(keys, end.s.shape[1], learning.dropout, model)
    c_s, c_before, by_action = end.c_s, 0.0, None
    if learning.action_weight:
        weight = learning.action_weight / size
        by_action, c_before, c_after = block.action_adjoint(operators, stored.s_in, end.s, weight, model)
        c_s = c_s + c_after

    def pull(s: Array) -> Array:
        if end.targets is None:
            return c_s
        _, _, anew = network.readout_loss_and_adjoint(readout, s, end.targets, model.precision)
        return anew * (end.targets.size / size) + (c_s - end.c_s)

    epsilon = nudge.strength(learning.nudge_size, end.s, c_s)
    span = (sides[0] - sides[1]) * epsilon
    landscape = block.landscape(operators, stored.s_in, stored.kicked, model, masks)
    descent = block.descent(model)
    descent = descent._replace(steps=learning.nudged_steps or descent.steps)
    pair, residuals = relaxation.relax_pair(landscape, end.s, pull, sides, epsilon, descent)
    _, contrast = landscape.contrast(pair, span)

    _, (gradient, c_s_by_kick) = block.kick_and_adjoint(operators, stored.s_in, contrast.push, model, masks)
    gradient = gradient._replace(hamiltonian=contrast.hamiltonian)
    if by_action is not None:
        law = jax.tree.map(jnp.add, gradient.resilience, by_action.resilience)
        gradient = gradient._replace(query=gradient.query + by_action.query, resilience=law)
    if learning.update == "geometry":
        gradient = _action_contrast(operators, stored.s_in, pair, span, model)
    return contrast.s_in + c_s_by_kick + c_before, gradient, Health(residuals[-1], jnp.mean(epsilon))


def _action_contrast(operators: Operators, s_in: Array, s: Pair, span: Array, model: ModelConfig) -> Operators:
    """Gradient of ΔLIoR, `Σ [action(s_in → s₊) − action(s_in → s₋)] / span`, by the metric, through the whitened chart."""
    (plus, *_), (minus, *_) = (
        block.action_adjoint(operators, s_in, end, sign / span, model) for sign, end in zip((1, -1), s.ends(span), strict=True)
    )
    return jax.tree.map(jnp.zeros_like, operators)._replace(query=plus.query + minus.query)


def _geometry_only(gradient: Params) -> Params:
    still = jax.tree.map(jnp.zeros_like, gradient)
    blocks: Block = still.blocks._replace(metric=gradient.blocks.metric)
    return still._replace(blocks=blocks)


def _at(blocks: Any, index: int | slice) -> Any:
    return jax.tree.map(lambda x: x[index], blocks)


def _free_phase(operators: Operators, s: Array, keys: Array | None, model: ModelConfig, learning: LearningConfig):
    """Relax all blocks; returns what the nudged phases need, and the observations of each block."""

    def step(s, scanned):
        operators, keys = scanned
        operators, s = parallel.gathered(operators), parallel.by_sequence(s)
        masks = dropout.block_masks(keys, s.shape[1], learning.dropout, model)
        kicked, moment = block.kick(operators, s, model, masks)
        relaxed, _, moved = block.move(operators, s, jnp.zeros_like(s), kicked, model, masks)
        return relaxed, (Stored(s, kicked), block.Observation(moved.action, moved.residual, moment))

    return lax.scan(step, s, (operators, keys))
