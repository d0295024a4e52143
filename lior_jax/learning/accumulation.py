"""Gradient accumulation: the estimate of a batch from its micro-batches, processed in sequence. Less memory, the same step."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from lior_jax import parallel
from lior_jax.learning.info import Info, Observed
from lior_jax.learning.rule import estimate
from lior_jax.model import dropout
from lior_jax.model.operators import carry
from lior_jax.model.parameters import Params
from lior_jax.settings import LearningConfig, ModelConfig


def accumulated(
    params: Params,
    batch: tuple[Array, Array],
    model: ModelConfig,
    learning: LearningConfig,
    key: Array | None = None,
    pieces: int = 1,
) -> tuple[Params, Info]:
    """`learning.estimate` of a batch `[B, L]`, computed in `pieces` micro-batches of `B / pieces` sequences each.

    Gradient, loss and running statistics equal those of the whole batch, with the same dropout masks, since all of them are
    means over sequences or functions of such means. Residuals are maxima over the micro-batches.

    Args:
        params, batch, model, learning, key: as for `learning.estimate`.
        pieces: number of micro-batches; must divide `B`. `learning.chunk`, which splits the nudged runs only, applies to each
            micro-batch.
    """
    if pieces == 1:
        return estimate(params, batch, model, learning, key)
    keys = dropout.split(learning.dropout, key, model.blocks, batch[0].shape[0])
    by_sequence = None if keys is None else keys.T

    def step(total: Params, piece: tuple[Array, tuple[Array, Array], Array | None]) -> tuple[Params, Info]:
        place, batch, own = piece
        drawn = own.T if own is not None else None if key is None else jax.random.fold_in(key, place)
        gradient, info = estimate(params, batch, model, learning, drawn)
        return jax.tree.map(jnp.add, total, gradient), info

    zero = jax.tree.map(jnp.zeros_like, params)
    micro = parallel.in_pieces((batch, by_sequence), pieces)
    total, infos = lax.scan(step, zero, (jnp.arange(pieces), *micro))
    gradient = jax.tree.map(lambda x: x / pieces, total)
    return gradient, _of_all(infos, pieces, gradient, params, model)


def _of_all(infos: Info, pieces: int, gradient: Params, params: Params, model: ModelConfig) -> Info:
    """Diagnostics of a batch from the stacked ones of its micro-batches."""
    mean, largest = partial(jax.tree.map, lambda x: jnp.mean(x, 0)), partial(jnp.max, axis=0)
    observed: Observed | None = mean(infos.observed)
    if observed is None:
        carried = jax.tree.map(lambda x: x[-1], infos.carried)
    else:
        carried = carry(params, observed.action, observed.moment, model)
    return Info(
        loss=mean(infos.loss),
        reversibility=largest(infos.reversibility),
        residual=largest(infos.residual),
        nudge=pieces * mean(infos.nudge),  # a mean over fewer targets has larger cotangents, hence a smaller ε
        gradient_norm=optax.tree.norm(gradient),
        action=mean(infos.action),
        carried=carried,
        observed=observed,
    )
