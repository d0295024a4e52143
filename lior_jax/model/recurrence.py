"""The network as a recurrence: further positions at a cost that does not grow with the length of the history.

What earlier positions can still act by is carried on: their last few directions for the taps, the poles of the long
convolution and of the field state, and a ring of the last `context` keys and values for retrieval. Up to `context`
positions the states are those of `network.run`; beyond, retrieval looks back `context` positions and the poles remember all.

Shapes: `B` sequences, `C` positions of a chunk, `L` places of the ring (`config.context`), the rest as in `parameters`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lior_jax.model import block, network
from lior_jax.model.operators import Operators, field_gain, prepare
from lior_jax.model.parameters import Params
from lior_jax.physics import field_state, kernel
from lior_jax.physics.kernel import Poles
from lior_jax.physics.numerics import rms_normalize
from lior_jax.physics.retrieval import Looked, retrieve_window
from lior_jax.physics.taps import taps
from lior_jax.settings import ModelConfig


class Layer(NamedTuple):
    """What a block applies, and the poles of its recurrent parts; None for what is left out. Stacked `[N, …]`."""

    operators: Operators
    long_convolution: Poles | None
    field: Poles | None


class BlockHistory(NamedTuple):
    """What one block knows of the positions before. Stacked `[N, …]`."""

    directions: Array
    """`[B, τ − 1, d]`, the latest last."""
    keys: Array
    """`[B, L, H, m]`, a ring."""
    values: Array
    """`[B, L, H, v]`, a ring."""
    long_convolution: Array | None
    """`[B, H, P, v]`, complex charges of the poles."""
    field: Array | None
    """`[B, H, P, v, m]`, complex."""


class History(NamedTuple):
    """What the network knows of the positions before."""

    blocks: BlockHistory
    count: Array
    """`[B]`, positions read."""
    slot: Array
    """`[]`, the place of the rings that the next position takes, the same for all sequences."""
    last: Array
    """`[B, d]`, the state of the last position after the last block."""
    query: Array
    """`[B, H, m]`, the whitened point from which the last position queried in the last block."""


class Look(NamedTuple):
    """What the last position of each sequence looked at in every block and head, by lag: `weight` and geodesic `cost`
    `[N, B, H, L]`, where lags beyond the history weigh nothing; its `resilience` `[N, B, H]`."""

    weight: Array
    cost: Array
    resilience: Array


def layers(params: Params, config: ModelConfig) -> Layer:
    """What the recurrence applies: once for all positions."""
    blocks = params.blocks
    memory = None if blocks.long_convolution is None else jax.vmap(kernel.poles)(blocks.long_convolution.kernel)
    field = None
    if blocks.field is not None:
        field = jax.vmap(kernel.poles)(blocks.field.kernel)
        field = field._replace(weight=field_gain(blocks.field.gate, config)[..., None] * field.weight)
    return Layer(prepare(params, config.context, config), memory, field)


def empty(params: Params, batch: int, config: ModelConfig) -> History:
    """The history of `batch` sequences of which nothing has been read."""
    heads, n = config.heads, config.blocks
    m, v = config.geometry.whitened_dim, config.width // config.heads
    ring = n, batch, config.context, heads
    poles = jax.eval_shape(partial(layers, config=config), params)

    def charge(system: Poles | None, *shape: int) -> Array | None:
        return None if system is None else jnp.zeros((n, batch, *system.rate.shape[1:], *shape), system.rate.dtype)

    blocks = BlockHistory(
        directions=jnp.zeros((n, batch, config.convolution.taps - 1, config.width)),
        keys=jnp.zeros((*ring, m)),
        values=jnp.zeros((*ring, v)),
        long_convolution=charge(poles.long_convolution, v),
        field=charge(poles.field, v, m),
    )
    last, query = jnp.zeros((batch, config.width)), jnp.zeros((batch, heads, m))
    return History(blocks, jnp.zeros(batch, jnp.int32), jnp.zeros((), jnp.int32), last, query)


def extend(
    params: Params, applied: Layer, history: History, tokens: Array, lengths: Array, config: ModelConfig
) -> tuple[History, Array]:
    """Read a chunk of further positions, all at once.

    Args:
        applied: from `layers`.
        tokens: `[B, C]`, `C ≤ config.context`.
        lengths: `[B]`, from 0 to `C`: how many of them each sequence has. The others leave no trace.

    Returns:
        The history, and the states after the last block `[B, C, d]`, meaningless past a sequence's length.
    """
    ring, chunk = config.context, tokens.shape[1]
    place = jnp.arange(ring + chunk)[None]
    lag = ring + jnp.arange(chunk)[:, None] - place
    written = place >= ring - history.count[:, None]
    visible = ((lag >= 0) & (lag < ring))[None] & written[:, None]

    def step(phase, scanned):
        layer, known = scanned

        def look(key, value):
            # The ring in the order of time, and the chunk behind it.
            keys, values = (
                jnp.concatenate([jnp.roll(x, -history.slot, axis=1), new], 1)
                for x, new in ((known.keys, key), (known.values, value))
            )
            return (keys, values), (_last(keys, lengths, ring), _last(values, lengths, ring))

        known, phase, seen = _block(layer, known, phase, look, lag, visible, lengths, config)
        return phase, (known, newest(seen.query))

    def newest(x):
        row = jnp.maximum(lengths - 1, 0).reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.take_along_axis(x, row, axis=1)[:, 0]

    def renew(new, old):
        return jnp.where((lengths > 0).reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    s = network.embed(params.embedding, tokens)
    (s, _), (blocks, queries) = lax.scan(step, (s, jnp.zeros_like(s)), (applied, history.blocks))
    last, query = renew(newest(s), history.last), renew(queries[-1], history.query)
    return History(blocks, history.count + lengths, jnp.zeros_like(history.slot), last, query), s


def advance(params: Params, applied: Layer, history: History, tokens: Array, config: ModelConfig) -> tuple[History, Look]:
    """Read one further token `[B]` of every sequence; returns the history, and what the position looked at."""
    ring, slot = config.context, history.slot
    lag = (slot - jnp.arange(ring)) % ring
    visible = lag[None] <= history.count[:, None]

    def step(phase, scanned):
        layer, known = scanned

        def look(key, value):
            put = partial(lax.dynamic_update_slice_in_dim, start_index=slot, axis=1)
            rings = put(known.keys, key), put(known.values, value)
            return rings, rings

        known, phase, seen = _block(layer, known, phase, look, lag[None], visible[:, None], None, config)
        return phase, (known, seen)

    s = network.embed(params.embedding, tokens[:, None])
    (s, _), (blocks, seen) = lax.scan(step, (s, jnp.zeros_like(s)), (applied, history.blocks))
    looked = seen.looked
    # From the places of the ring to lags, by the same reflection as back.
    resilience = jnp.ones(looked.weight.shape[:3]) if seen.resilience is None else seen.resilience[:, :, 0]
    look = Look(looked.weight[..., 0, lag], looked.cost[..., 0, lag], resilience)
    return History(blocks, history.count + 1, (slot + 1) % ring, s[:, 0], seen.query[-1, :, 0]), look


class _Seen(NamedTuple):
    """What a block looked at, from where, and the queries' resilience."""

    looked: Looked
    query: Array
    resilience: Array | None


def _block(
    layer: Layer,
    known: BlockHistory,
    phase: tuple[Array, Array],
    look: Callable[[Array, Array], tuple[tuple[Array, Array], tuple[Array, Array]]],
    lag: Array,
    visible: Array,
    lengths: Array | None,
    config: ModelConfig,
) -> tuple[BlockHistory, tuple[Array, Array], _Seen]:
    """One block for the phase-space points `(s, p)` of a chunk; without `lengths`, of a single position.

    Args:
        look: from the chunk's keys and values to those that are looked at, and to the rings that are kept.
    """
    s, p = phase
    operators = layer.operators
    direction, inverse = rms_normalize(s)
    along = jnp.concatenate([known.directions, direction], 1)
    delays = known.directions.shape[1]
    context, memory = taps(operators.taps, along)[:, delays:], known.long_convolution
    if layer.long_convolution is not None:
        channels = direction.reshape(*direction.shape[:2], config.heads, -1)
        if lengths is None:
            memory, remembered = kernel.convolve_step(layer.long_convolution, memory, channels[:, 0])
        else:
            memory, remembered = kernel.convolve_more(layer.long_convolution, memory, channels, lengths, config.precision)
        context = context + operators.long_convolution.gain[None, None] * remembered.reshape(s.shape)
    query, key, value, weight = block.chart(operators, context, inverse, config)
    seen, (keys, values) = look(key, value)
    looked = retrieve_window(query, *seen, weight, operators.couplings, lag, visible, config.precision)
    retrieved, field = looked.retrieved, known.field
    if layer.field is not None:
        if lengths is None:
            field, read = field_state.encode_step(layer.field, field, query[:, 0], key[:, 0], value[:, 0])
            read = read[:, None]
        else:
            field, read = field_state.encode_more(layer.field, field, query, key, value, lengths, config.precision)
        retrieved = retrieved + read
    s, p, _ = block.move(operators, s, p, block.push(operators, retrieved, config), config)
    directions = along[:, 1:] if lengths is None else _last(along, lengths, delays)
    return BlockHistory(directions, keys, values, memory, field), (s, p), _Seen(looked, query, weight)


def _last(x: Array, lengths: Array, count: int) -> Array:
    """The last `count` rows of each sequence's part of `x` `[B, count + C, …]`, which ends `lengths` `[B]` behind `count`."""
    rows = lengths[:, None] + jnp.arange(count)[None]
    return jnp.take_along_axis(x, rows.reshape(*rows.shape, *(1,) * (x.ndim - 2)), axis=1)
