"""Inspecting a model: the inputs of every block, its retrieval, and the learned geometry.

Shapes: `N` blocks, `B` sequences, `L` positions, `H` heads, `d` width, `n` chart dimension.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lior_jax.model import Params, block, network
from lior_jax.model.charts import see
from lior_jax.model.operators import Operators, prepare
from lior_jax.physics.geometry import whiten
from lior_jax.physics.pairwise import heads_first, of_sequence
from lior_jax.physics.retrieval import geodesic_cost, retrieve
from lior_jax.settings import ModelConfig


class View(NamedTuple):
    """Quantities of every block, with a leading axis `N`. `[i, j]` is the query at `i` and the key at `j`; above the diagonal,
    which is masked, costs are meaningless."""

    state: Array
    """`[B, L, d]`, input state of the block."""
    momentum: Array
    """`[B, L, d]`, at the start of the flow, after the kick."""
    cost: Array
    """`[B, H, L, L]`, geodesic."""
    weights: Array
    """`[B, H, L, L]`, Boltzmann weights: rows sum to 1."""
    resilience: Array
    """`[B, L, H]`."""
    action: Array
    """`[B, L, H]`, LIoR action of the flow."""


@partial(jax.jit, static_argnums=2)
def look(params: Params, tokens: Array, config: ModelConfig) -> View:
    """Run the network on `tokens` `[B, L]` and record the quantities of its blocks."""

    def step(state, operators):
        s, p = state
        view = _look_at_block(operators, s, p, config)
        (s, p), _ = block.apply(operators, s, p, config)
        return (s, p), view

    s = network.embed(params.embedding, tokens)
    _, view = lax.scan(step, (s, jnp.zeros_like(s)), prepare(params, tokens.shape[1], config))
    return view


def _look_at_block(operators: Operators, s: Array, p: Array, config: ModelConfig) -> View:
    queries, keys, _, resilience = see(operators, s, config).points
    length = s.shape[1]
    # Retrieving one-hot values gives the weight of each source.
    one_hot = jnp.broadcast_to(jnp.eye(length, dtype=s.dtype)[None, :, None], (s.shape[0], length, config.heads, length))
    couplings = operators.couplings._replace(mixing=())
    weights = retrieve(queries, keys, one_hot, resilience, couplings, config.precision)
    kicked, _ = block.kick(operators, s, config)

    def move(s, p, kicked):  # of a single position, so the mean action is its own
        s, p, kicked = (x[None, None] for x in (s, p, kicked))
        return block.move(operators, s, p, kicked, config)[2].action

    action = jax.vmap(jax.vmap(move))(s, p, kicked)
    pairs = of_sequence(heads_first(queries), heads_first(keys), config.precision)
    return View(
        state=s,
        momentum=block.entering_momentum(p, config) + kicked,
        cost=geodesic_cost(pairs.squared, heads_first(resilience)),
        weights=jnp.swapaxes(weights, 1, 2),
        resilience=resilience,
        action=action,
    )


def metrics(params: Params, config: ModelConfig) -> Array:
    """The metric `G` of each head, with `g(x, x) = xᵀ G x` for chart points `x`: `[N, H, n, n]`."""
    base = jnp.asarray(config.geometry.base.whitening, jnp.float32)
    size = config.geometry.block if config.geometry.metric == "block_rot" else None
    frame = params.carried.frame

    def gram(metric, axes):
        whitening = whiten(metric, base, axes, size)
        return whitening.T @ whitening

    by_head = jax.vmap(jax.vmap(gram, (0, None if frame is None else 0)), (0, None if frame is None else 0))
    return by_head(params.blocks.metric, None if frame is None else frame.axes)
