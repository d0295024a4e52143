"""Parameters of the network: their shapes, their initial values, and which of them have weight decay.

Shapes: `V` vocabulary, `d` width, `N` blocks, `H` heads, `n` chart dimension, `r` low rank, `v = d / H` value
dimension, `τ` taps, `M` potential units, `C` curvature terms. Everything in `blocks` and `carried` has a leading axis
`N`. Parts that the configuration leaves out are None. Initial scales decrease with depth as `1 / √N` (Radford et al. 2019).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lior_jax.errors import UserError
from lior_jax.model import field, terms
from lior_jax.model.field import FieldState
from lior_jax.physics import action
from lior_jax.physics.action import ActionState
from lior_jax.physics.frames import Derived, initial_derived
from lior_jax.physics.geometry import Metric
from lior_jax.physics.hamiltonian import Hamiltonian, init_hamiltonian
from lior_jax.physics.kernel import Kernel
from lior_jax.physics.numerics import raw_positive
from lior_jax.physics.resilience import Constitutive, Curvature
from lior_jax.physics.rotor_planes import max_rotor_layers
from lior_jax.registry import POTENTIALS
from lior_jax.settings import ModelConfig


class LongConvolution(NamedTuple):
    """The context's convolution over all earlier positions: a LIoR `kernel` for the channels of each head, and the `gain` `[d]`
    of its result."""

    kernel: Kernel
    gain: Array


class Block(NamedTuple):
    """Parameters of a block. `metric`, the kernels, `inverse_temperature` and `hamiltonian` are raw
    (`operators.prepare`)."""

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
    """The metric of each head, with a leading axis `H`."""
    inverse_temperature: Array
    """`[H]`, β by softplus."""
    hamiltonian: Hamiltonian
    """Parameters of the configured potential, and `inverse_mass` `[d]`."""
    long_convolution: LongConvolution | None
    field: FieldState | None
    scores: dict[str, Any]
    """Retrieval's score terms by name, raw (`terms`)."""
    resilience: Constitutive | Curvature | None


class Carried(NamedTuple):
    """Running statistics that are carried from step to step and saved with the parameters, but not learned.

    `frame` of each head `[N, H, …]`; `action` `[N, H]`, the LIoR integral and the fractional order.
    """

    frame: Derived | None
    action: ActionState | None


class Params(NamedTuple):
    """All parameters of the network, and the carried statistics."""

    embedding: Array
    """`[V, d]`."""
    blocks: Block
    """Stacked, `[N, …]`."""
    readout: Array
    """`[V, d]`, W_out."""
    carried: Carried
    """Not learned: zero in a gradient."""


def init(key: Array, config: ModelConfig) -> Params:
    """Draw initial parameters.

    Raises:
        UserError: `config.vocab_size` is not set.
    """
    if config.vocab_size is None:
        raise UserError("model.vocab_size is not set; training takes it from the tokenizer, other callers must give it.")
    embedding_key, blocks_key, readout_key = jax.random.split(key, 3)
    shape = config.vocab_size, config.width
    return Params(
        embedding=jax.random.normal(embedding_key, shape),
        blocks=jax.vmap(lambda block_key: _init_block(block_key, config))(jax.random.split(blocks_key, config.blocks)),
        readout=0.02 * jax.random.normal(readout_key, shape),
        carried=_init_carried(config),
    )


def _init_block(key: Array, config: ModelConfig) -> Block:
    d, heads, n, rank, units = config.width, config.heads, config.geometry.chart_dim, config.geometry.rank, config.flow.units
    v = d // heads
    keys = iter(jax.random.split(key, 11))

    def normal(*shape: int, scale: float) -> Array:
        return scale * jax.random.normal(next(keys), shape)

    # The kicks and forces of N blocks add up in the state: each is scaled so that the sum stays of order one.
    depth_scale = 1 / np.sqrt(config.blocks)
    current_only = jnp.zeros((config.convolution.taps, d)).at[0].set(1.0)
    return Block(
        taps=current_only + normal(config.convolution.taps, d, scale=0.1),
        query=normal(heads, n, d, scale=d**-0.5),
        key=normal(heads, n, d, scale=d**-0.5),
        value=normal(heads, v, d, scale=d**-0.5),
        output=normal(heads, v, d, scale=d**-0.5 * depth_scale),
        metric=Metric(
            # Unequal: for equal values the metric is independent of the frame, and the angles have no gradient.
            stiffness=raw_positive(np.geomspace(0.5, 2.0, n))[None].repeat(heads, 0),
            scale=raw_positive(1.0, heads),
            angles=jnp.zeros((heads, rotor_layers(config), n // 2)),
            low_rank=normal(heads, n, rank, scale=n**-0.5),
            low_rank_stiffness=raw_positive(0.1, heads, rank),
        ),
        inverse_temperature=raw_positive(1.0, heads),
        hamiltonian=init_hamiltonian(POTENTIALS[config.flow.potential], next(keys), d, units, depth_scale),
        long_convolution=_init_long_convolution(config) if config.convolution.long else None,
        field=field.init(config, normal),
        scores=terms.init(config, normal),
        resilience=_init_resilience(config, normal),
    )


def rotor_layers(config: ModelConfig) -> int:
    """Layers of learned rotors: 0 for other frames, all layers of a small block, or as configured."""
    if config.geometry.frame != "rotor":
        return 0
    return max_rotor_layers(config.geometry.block) if config.geometry.metric == "block_rot" else config.geometry.rotor_layers


def _init_long_convolution(config: ModelConfig) -> LongConvolution:
    # Sums to about one: the power law alone, a₁ Δ^{−½}, is about five at lag 0.
    return LongConvolution(terms.initial_kernel(config, (0.3, -0.1, 0.2), order=0.5), jnp.zeros(config.width))


def _init_resilience(config: ModelConfig, normal) -> Constitutive | Curvature | None:
    """Resilience starts at 1, up to ε."""
    heads, n, terms = config.heads, config.geometry.chart_dim, config.geometry.curvature_terms
    if config.geometry.resilience == "constitutive":
        return Constitutive(jnp.zeros(heads))
    if config.geometry.resilience == "curvature":
        # B^c near g₀ (constant curvature), with a little noise so that the terms differ; the levels normalise their sum.
        constant, inverse = (jnp.asarray(x, jnp.float32)[None, None] for x in config.geometry.base[:2])
        forms = constant + normal(heads, terms, n, n, scale=0.3)
        trace = jnp.sum(forms * inverse, (-2, -1)) / n
        return Curvature(forms, jnp.zeros((heads, terms, n + config.geometry.rank)), 1 / (terms * trace**2))
    return None


def _init_carried(config: ModelConfig) -> Carried:
    shape = config.blocks, config.heads
    frame = None
    if config.geometry.frame == "derived":
        frame = jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *x.shape)), initial_derived(config.geometry.chart_dim))
    return Carried(
        frame, action.initial(config.retrieval.fractional_order, *shape) if config.retrieval.adaptive_order else None
    )


def count(params: Params) -> int:
    """Number of learned parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params._replace(carried=Carried(None, None))))


def matrix_axes(params: Params, matrix: Callable[[tuple[int, ...], tuple[int, ...]], Any], other: Any) -> Any:
    """A tree with `matrix(input axes, output axes)` at each of the blocks' matrices, and `other` at every other leaf.

    Query, key and value maps of all heads together are one matrix from `d`, the output map is one to `d`, and a potential's
    matrices map from `d` to its units. The block axis is a batch axis: each block has its own matrices.
    """
    axes = jax.tree.map(lambda _: other, params)
    potential = axes.blocks.hamiltonian.potential
    potential = potential._replace(**dict.fromkeys(potential.MATRICES, matrix((2,), (1,))))
    hamiltonian = axes.blocks.hamiltonian._replace(potential=potential)
    projections = dict.fromkeys(("query", "key", "value"), matrix((3,), (1, 2)))
    return axes._replace(blocks=axes.blocks._replace(**projections, output=matrix((1, 2), (3,)), hamiltonian=hamiltonian))


def decay_mask(params: Params) -> Any:
    """True for matrices with weight decay; False for metrics, kernels, gates, biases, taps and scalars."""
    return matrix_axes(params, lambda *_: True, False)._replace(embedding=True, readout=True)
