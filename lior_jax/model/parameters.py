"""Parameters of the network: their shapes, their initial values, and which of them weight decay may touch.

Shapes: `V` vocabulary, `d` width, `N` blocks, `H` heads, `n` chart dimension, `r` low rank, `v = d / H` value
dimension, `τ` taps, `M` potential units. Everything inside `blocks` has a leading axis `N`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lior_jax.config import ModelConfig
from lior_jax.errors import UserError
from lior_jax.physics.geometry import Metric
from lior_jax.physics.hamiltonian import Hamiltonian
from lior_jax.physics.numerics import softplus_inverse
from lior_jax.physics.retrieval import Couplings


class Block(NamedTuple):
    """Parameters of a block. `couplings`, `metric` and the `curvature` and `inverse_mass` of `hamiltonian` are raw:
    softplus makes them positive (`block.prepare`)."""

    taps: Array
    """`[τ, d]`."""
    query: Array
    """`[H, n, d]`, A_q."""
    key: Array
    """`[H, n, d]`, A_k."""
    value: Array
    """`[H, v, d]`, A_v."""
    output: Array
    """`[H, v, d]`, A_o."""
    metric: Metric
    """Of each head, with a leading axis `H`."""
    couplings: Couplings
    """`[H]` each."""
    hamiltonian: Hamiltonian
    """`units` `[2, M, d]`, `bias` `[M]`, `curvature` `[]`, `inverse_mass` `[d]`."""


class Params(NamedTuple):
    """All parameters of the network."""

    embedding: Array
    """`[V, d]`."""
    blocks: Block
    """Stacked, `[N, …]`."""
    readout: Array
    """`[V, d]`, W_out."""


def init(key: Array, config: ModelConfig) -> Params:
    """Draw initial parameters.

    Raises:
        UserError: `config.vocab_size` is not known yet.
    """
    if config.vocab_size is None:
        raise UserError("model.vocab_size is not set; training takes it from the tokenizer, other callers must give it.")
    embedding_key, blocks_key, readout_key = jax.random.split(key, 3)
    shape = config.vocab_size, config.width
    return Params(
        embedding=jax.random.normal(embedding_key, shape),
        blocks=jax.vmap(lambda block_key: _init_block(block_key, config))(jax.random.split(blocks_key, config.blocks)),
        readout=0.02 * jax.random.normal(readout_key, shape),
    )


def _init_block(key: Array, config: ModelConfig) -> Block:
    d, heads, n, rank, units = config.width, config.heads, config.chart_dim, config.metric_rank, config.potential_units
    v = d // heads
    keys = iter(jax.random.split(key, 7))

    def normal(*shape: int, scale: float) -> Array:
        return scale * jax.random.normal(next(keys), shape)

    def raw(value: float, *shape: int) -> Array:
        return jnp.full(shape, softplus_inverse(value))

    # The kick and the force of N blocks add up in the state: each is scaled so that the sum stays of order one.
    depth_scale = 1 / np.sqrt(config.blocks)
    current_only = jnp.zeros((config.taps, d)).at[0].set(1.0)
    return Block(
        taps=current_only + normal(config.taps, d, scale=0.1),
        query=normal(heads, n, d, scale=d**-0.5),
        key=normal(heads, n, d, scale=d**-0.5),
        value=normal(heads, v, d, scale=d**-0.5),
        output=normal(heads, v, d, scale=d**-0.5 * depth_scale),
        metric=Metric(
            # Not all equal, or every frame would be the same metric and the angles would have no gradient.
            stiffness=jnp.tile(jnp.asarray(softplus_inverse(np.geomspace(0.5, 2.0, n))), (heads, 1)),
            scale=raw(1.0, heads),
            angles=jnp.zeros((heads, config.rotor_layers, n // 2)),
            low_rank=normal(heads, n, rank, scale=n**-0.5),
            low_rank_stiffness=raw(0.1, heads, rank),
        ),
        couplings=Couplings(
            inverse_temperature=raw(1.0, heads),
            # From about two positions to about the whole context.
            lag_rate=jnp.asarray(softplus_inverse(np.geomspace(0.5, 1 / config.context, heads))),
            lag_order=raw(0.1, heads),
        ),
        hamiltonian=Hamiltonian(
            units=normal(2, units, d, scale=d**-0.5) * jnp.array([1.0, depth_scale])[:, None, None],
            bias=jnp.zeros(units),
            curvature=raw(0.01),
            inverse_mass=raw(1.0, d),
        ),
    )


def count(params: Params) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def decay_mask(params: Params) -> Params:
    """True for the matrices that weight decay may shrink; False for metric parameters, biases, taps and scalars."""
    mask = jax.tree.map(lambda _: False, params)
    blocks = mask.blocks._replace(
        query=True, key=True, value=True, output=True, hamiltonian=mask.blocks.hamiltonian._replace(units=True)
    )
    return Params(embedding=True, blocks=blocks, readout=True)
