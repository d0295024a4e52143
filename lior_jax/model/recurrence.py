"""The network as a recurrence, at a cost per position independent of the length of the history.

The carried state consists of the last few directions for the taps, the poles of the long convolution and of the field state,
and a ring buffer of the last `context` keys and values for retrieval. Up to `context` positions the states are those of
`network.run`; beyond, retrieval reaches back `context` positions, while the poles cover the whole history.

Shapes: `B` sequences, `C` positions in a chunk, `L` slots of the ring (`config.context`), others as in `parameters`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lior_jax.model import block, charges, field_recurrence, network
from lior_jax.model.charges import Charge
from lior_jax.model.charts import see, split_heads
from lior_jax.model.operators import Operators, prepare
from lior_jax.model.parameters import Params
from lior_jax.physics import kernel
from lior_jax.physics.kernel import Poles
from lior_jax.physics.pairwise import heads_first
from lior_jax.physics.retrieval import Retrieved, retrieve_window
from lior_jax.physics.taps import taps
from lior_jax.settings import ModelConfig


class Layer(NamedTuple):
    """A block's operators, and the poles of its recurrent parts, None for absent ones. Stacked `[N, …]`."""

    operators: Operators
    long_convolution: Poles | None
    field: field_recurrence.Systems | None


class BlockHistory(NamedTuple):
    """The recurrent state of one block. Stacked `[N, …]`."""

    directions: Array
    """`[B, τ − 1, d]`, the most recent last."""
    keys: Array
    """`[B, H, L, m]`, a ring buffer."""
    values: Array
    """`[B, H, L, v]`, a ring buffer."""
    long_convolution: Charge | None
    """The charges of its poles, `[B, H, P, v]`."""
    field: field_recurrence.Held | None


class History(NamedTuple):
    """The recurrent state of the network after the positions read so far."""

    blocks: BlockHistory
    count: Array
    """`[B]`, positions read."""
    slot: Array
    """`[]`, the ring slot of the next position, shared by all sequences."""
    last: Array
    """`[B, d]`, the state of the last position after the last block."""
    query: Array
    """`[B, H, m]`, the whitened query point of the last position in the last block."""


class Attention(NamedTuple):
    """Retrieval by the last position of each sequence in every block and head, by lag: `weight` and geodesic `cost`
    `[N, B, H, L]`, with weight 0 at lags beyond the history; and its `resilience` `[N, B, H]`."""

    weight: Array
    cost: Array
    resilience: Array


def layers(params: Params, config: ModelConfig) -> Layer:
    """The operators of the recurrence, computed once for all positions."""
    blocks = params.blocks
    long = None if blocks.long_convolution is None else jax.vmap(kernel.poles)(blocks.long_convolution.kernel)
    return Layer(prepare(params, config.context, config), long, field_recurrence.systems(blocks.field, config))


def empty(params: Params, batch: int, config: ModelConfig) -> History:
    """The history of `batch` sequences before the first position."""
    heads, n = config.heads, config.blocks
    m, v = config.geometry.whitened_dim, config.width // config.heads
    ring, zeros = (n, batch, heads, config.context), partial(jnp.zeros, dtype=params.embedding.dtype)
    long = params.blocks.long_convolution
    charge = None if long is None else charges.empty(jax.eval_shape(jax.vmap(kernel.poles), long.kernel), batch, v)

    blocks = BlockHistory(
        directions=zeros((n, batch, config.convolution.taps - 1, config.width)),
        keys=zeros((*ring, m)),
        values=zeros((*ring, v)),
        long_convolution=charge,
        field=field_recurrence.empty(params.blocks.field, batch, config),
    )
    last, query = zeros((batch, config.width)), zeros((batch, heads, m))
    return History(blocks, jnp.zeros(batch, jnp.int32), jnp.zeros((), jnp.int32), last, query)


def extend(
    params: Params, applied: Layer, history: History, tokens: Array, lengths: Array, config: ModelConfig
) -> tuple[History, Array]:
    """Continue by a chunk of positions, processed in parallel.

    Args:
        applied: from `layers`.
        tokens: `[B, C]`, `C ≤ config.context`.
        lengths: `[B]`, from 0 to `C`: how many of the chunk's positions each sequence has; the rest is padding and has no
            effect.

    Returns:
        The history, and the states after the last block `[B, C, d]`, undefined past a sequence's length.
    """
    ring, chunk = config.context, tokens.shape[1]
    place = jnp.arange(ring + chunk)[None]
    lag = ring + jnp.arange(chunk)[:, None] - place
    written = place >= ring - history.count[:, None]
    visible = ((lag >= 0) & (lag < ring))[None] & written[:, None]

    def step(phase, scanned):
        layer, known = scanned

        def window(key, value):
            # The ring in temporal order, followed by the chunk.
            keys, values = (
                jnp.concatenate([jnp.roll(heads_first(x), -history.slot, axis=1), new], 1)
                for x, new in ((known.keys, key), (known.values, value))
            )
            return (keys, values), (heads_first(_last(keys, lengths, ring)), heads_first(_last(values, lengths, ring)))

        known, phase, found = _block(layer, known, phase, window, lag, visible, lengths, config)
        return phase, (known, newest(found.query))

    def newest(x):
        row = jnp.maximum(lengths - 1, 0).reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.take_along_axis(x, row, axis=1)[:, 0]

    def renew(new, old):
        return jnp.where((lengths > 0).reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    s = network.embed(params.embedding, tokens)
    (s, _), (blocks, queries) = lax.scan(step, (s, jnp.zeros_like(s)), (applied, history.blocks))
    last, query = renew(newest(s), history.last), renew(queries[-1], history.query)
    return History(blocks, history.count + lengths, jnp.zeros_like(history.slot), last, query), s


def advance(params: Params, applied: Layer, history: History, tokens: Array, config: ModelConfig) -> tuple[History, Attention]:
    """Continue by one token `[B]` of every sequence; returns the history, and the attention of that position."""
    ring, slot = config.context, history.slot
    lag = (slot - jnp.arange(ring)) % ring
    visible = lag[None] <= history.count[:, None]

    def step(phase, scanned):
        layer, known = scanned

        def window(key, value):
            put = partial(lax.dynamic_update_slice_in_dim, start_index=slot, axis=2)
            rings = put(known.keys, heads_first(key)), put(known.values, heads_first(value))
            return (heads_first(rings[0]), heads_first(rings[1])), rings

        known, phase, found = _block(layer, known, phase, window, lag[None], visible[:, None], None, config)
        return phase, (known, found)

    s = network.embed(params.embedding, tokens[:, None])
    (s, _), (blocks, found) = lax.scan(step, (s, jnp.zeros_like(s)), (applied, history.blocks))
    # From ring slots to lags; the map is its own inverse.
    weight, cost = (x[..., 0, lag] for x in (found.retrieved.weight, found.retrieved.cost))
    history = History(blocks, history.count + 1, (slot + 1) % ring, s[:, 0], found.query[-1, :, 0])
    return history, Attention(weight, cost, found.resilience[:, :, 0])


class _Found(NamedTuple):
    """A block's retrieval, its query points `[B, C, H, m]`, and their resilience `[B, C, H]`."""

    retrieved: Retrieved
    query: Array
    resilience: Array


def _block(
    layer: Layer,
    known: BlockHistory,
    phase: tuple[Array, Array],
    window: Callable[[Array, Array], tuple[tuple[Array, Array], tuple[Array, Array]]],
    lag: Array,
    visible: Array,
    lengths: Array | None,
    config: ModelConfig,
) -> tuple[BlockHistory, tuple[Array, Array], _Found]:
    """Apply one block to the phase-space points `(s, p)` of a chunk; without `lengths`, of a single position.

    Args:
        window: maps the chunk's keys and values to those of the retrieval window, and to the new ring buffers.
    """
    s, p = phase
    operators = layer.operators
    project = partial(field_recurrence.project, layer.field, known.field, lengths)
    seen = see(operators, s, config, partial(_gather, layer, known, lengths), project)
    directions, charge = seen.kept
    seen_from, (keys, values) = window(seen.key, seen.value)
    retrieved = retrieve_window(seen.query, *seen_from, seen.resilience, operators.couplings, lag, visible, config.precision)
    field, read = field_recurrence.read(layer.field, known.field, seen.held, operators, seen.points, seen.pull, lengths, config)
    s, p, _ = block.move(operators, s, p, block.push(operators, retrieved.values + read, config), config)
    found = _Found(retrieved, seen.query, seen.resilience)
    return BlockHistory(directions, keys, values, charge, field), (s, p), found


def _gather(
    layer: Layer, known: BlockHistory, lengths: Array | None, operators: Operators, direction: Array, config: ModelConfig
) -> tuple[Array, tuple[Array, Charge | None]]:
    """The context of positions that continue a history, with their last directions and the charges of the poles."""
    along, delays = jnp.concatenate([known.directions, direction], 1), known.directions.shape[1]
    directions = along[:, 1:] if lengths is None else _last(along, lengths, delays)
    context, charge = taps(operators.taps, along)[:, delays:], known.long_convolution
    if layer.long_convolution is not None:
        assert charge is not None
        assert operators.long_convolution is not None
        channels = split_heads(direction, config)
        if lengths is None:
            charge, remembered = charges.step(kernel.convolve_step, layer.long_convolution, charge, channels[:, 0])
        else:
            more = partial(kernel.convolve_more, x=channels, lengths=lengths, precision=config.precision)
            charge, remembered = charges.chunk(more, layer.long_convolution, charge)
        context = context + operators.long_convolution.gain[None, None] * remembered.reshape(direction.shape)
    return context, (directions, charge)


def _last(x: Array, lengths: Array, count: int) -> Array:
    """The last `count` valid rows of each sequence in `x` `[B, count + C, …]`, of which `count + lengths` `[B]` are valid."""
    rows = lengths[:, None] + jnp.arange(count)[None]
    return jnp.take_along_axis(x, rows.reshape(*rows.shape, *(1,) * (x.ndim - 2)), axis=1)
