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
from lior_jax.model.charts import Seen, see, split_heads
from lior_jax.model.operators import Operators, field_gain, prepare
from lior_jax.model.parameters import Params
from lior_jax.physics import field_state, kernel
from lior_jax.physics.kernel import Poles
from lior_jax.physics.pairwise import heads_first
from lior_jax.physics.retrieval import Retrieved, retrieve_window
from lior_jax.physics.taps import taps
from lior_jax.settings import ModelConfig


class Layer(NamedTuple):
    """What a block applies, and the poles of its recurrent parts; None for what is left out. Stacked `[N, …]`."""

    operators: Operators
    long_convolution: Poles | None
    field: Poles | None


class Charge(NamedTuple):
    """What poles hold, `[B, H, P, …]`: all but the last in `real` numbers, and the last, the `wave`, complex."""

    real: Array
    wave: Array


class BlockHistory(NamedTuple):
    """What one block knows of the positions before. Stacked `[N, …]`."""

    directions: Array
    """`[B, τ − 1, d]`, the latest last."""
    keys: Array
    """`[B, H, L, m]`, a ring."""
    values: Array
    """`[B, H, L, v]`, a ring."""
    long_convolution: Charge | None
    """Of the poles, `[B, H, P, v]`."""
    field: Charge | None
    """`[B, H, P, v, m]`."""


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


class Attention(NamedTuple):
    """What the last position of each sequence retrieved from in every block and head, by lag: `weight` and geodesic `cost`
    `[N, B, H, L]`, where lags beyond the history weigh nothing; its `resilience` `[N, B, H]`."""

    weight: Array
    cost: Array
    resilience: Array


def layers(params: Params, config: ModelConfig) -> Layer:
    """What the recurrence applies: once for all positions."""
    blocks = params.blocks
    long = None if blocks.long_convolution is None else jax.vmap(kernel.poles)(blocks.long_convolution.kernel)
    field = None
    if blocks.field is not None:
        field = jax.vmap(kernel.poles)(blocks.field.kernel)
        field = field._replace(weight=field_gain(blocks.field.gate, config)[..., None] * field.weight)
    return Layer(prepare(params, config.context, config), long, field)


def empty(params: Params, batch: int, config: ModelConfig) -> History:
    """The history of `batch` sequences of which nothing has been read."""
    heads, n = config.heads, config.blocks
    m, v = config.geometry.whitened_dim, config.width // config.heads
    ring = n, batch, heads, config.context
    poles = jax.eval_shape(partial(layers, config=config), params)

    def charge(system: Poles | None, *shape: int) -> Charge | None:
        if system is None:
            return None
        rates = jax.eval_shape(lambda: [own.rate for own in jax.vmap(kernel.split)(system)])
        return Charge(*(jnp.zeros((n, batch, *rate.shape[1:], *shape), rate.dtype) for rate in rates))

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

        def window(key, value):
            # The ring in the order of time, and the chunk behind it.
            keys, values = (
                jnp.concatenate([jnp.roll(heads_first(x), -history.slot, axis=1), new], 1)
                for x, new in ((known.keys, key), (known.values, value))
            )
            return (keys, values), tuple(heads_first(_last(x, lengths, ring)) for x in (keys, values))

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
    """Read one further token `[B]` of every sequence; returns the history, and the position's attention."""
    ring, slot = config.context, history.slot
    lag = (slot - jnp.arange(ring)) % ring
    visible = lag[None] <= history.count[:, None]

    def step(phase, scanned):
        layer, known = scanned

        def window(key, value):
            put = partial(lax.dynamic_update_slice_in_dim, start_index=slot, axis=2)
            rings = put(known.keys, heads_first(key)), put(known.values, heads_first(value))
            return tuple(map(heads_first, rings)), rings

        known, phase, found = _block(layer, known, phase, window, lag[None], visible[:, None], None, config)
        return phase, (known, found)

    s = network.embed(params.embedding, tokens[:, None])
    (s, _), (blocks, found) = lax.scan(step, (s, jnp.zeros_like(s)), (applied, history.blocks))
    # From the places of the ring to lags, by the same reflection as back.
    weight, cost = (x[..., 0, lag] for x in (found.retrieved.weight, found.retrieved.cost))
    history = History(blocks, history.count + 1, (slot + 1) % ring, s[:, 0], found.query[-1, :, 0])
    return history, Attention(weight, cost, found.resilience[:, :, 0])


class _Found(NamedTuple):
    """What a block retrieved, the points it queried from `[B, C, H, m]`, and their resilience `[B, C, H]`."""

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
    """One block for the phase-space points `(s, p)` of a chunk; without `lengths`, of a single position.

    Args:
        window: from the chunk's keys and values to those that are retrieved from, and to the rings that are kept.
    """
    s, p = phase
    operators = layer.operators
    seen = see(operators, s, config, partial(_gather, layer, known, lengths))
    directions, charge = seen.kept
    seen_from, (keys, values) = window(seen.key, seen.value)
    retrieved = retrieve_window(seen.query, *seen_from, seen.resilience, operators.couplings, lag, visible, config.precision)
    field, read = _read_field(layer, known, seen, lengths, config)
    s, p, _ = block.move(operators, s, p, block.push(operators, retrieved.values + read, config), config)
    found = _Found(retrieved, seen.query, seen.resilience)
    return BlockHistory(directions, keys, values, charge, field), (s, p), found


def _gather(
    layer: Layer, known: BlockHistory, lengths: Array | None, operators: Operators, direction: Array, config: ModelConfig
) -> tuple[Array, tuple[Array, Array | None]]:
    """The context of positions that go on from a history; keeps their last directions and the poles' charges."""
    along, delays = jnp.concatenate([known.directions, direction], 1), known.directions.shape[1]
    directions = along[:, 1:] if lengths is None else _last(along, lengths, delays)
    context, charge = taps(operators.taps, along)[:, delays:], known.long_convolution
    if layer.long_convolution is not None:
        channels = split_heads(direction, config)
        if lengths is None:
            charge, remembered = _step(kernel.convolve_step, layer.long_convolution, charge, channels[:, 0])
        else:
            more = partial(kernel.convolve_more, x=channels, lengths=lengths, precision=config.precision)
            charge, remembered = _more(more, layer.long_convolution, charge)
        context = context + operators.long_convolution.gain[None, None] * remembered.reshape(direction.shape)
    return context, (directions, charge)


def _read_field(
    layer: Layer, known: BlockHistory, seen: Seen, lengths: Array | None, config: ModelConfig
) -> tuple[Array | None, Array | float]:
    """The field state after the positions, and what they read of it, `[B, C, H, v]`; 0 without one."""
    if layer.field is None:
        return None, 0.0
    if lengths is None:
        points = (x[:, 0] for x in (seen.query, seen.key, seen.value))
        field, read = _step(field_state.encode_step, layer.field, known.field, *points)
        return field, read[:, None]
    points = {"queries": seen.query, "keys": seen.key, "values": seen.value}
    more = partial(field_state.encode_more, **points, lengths=lengths, precision=config.precision)
    return _more(more, layer.field, known.field)


def _step(step: Callable[..., tuple[Array, Array]], system: Poles, charge: Charge, *inputs: Array) -> tuple[Charge, Array]:
    """One position for real poles and the wave, each in their own numbers: half of what complex ones would move."""
    charges, read = zip(
        *(step(own, held, *inputs) for own, held in zip(kernel.split(system), charge, strict=True)), strict=True
    )
    return Charge(*charges), sum(read)


def _more(more: Callable[[Poles, Array], tuple[Array, Array]], system: Poles, charge: Charge) -> tuple[Charge, Array]:
    """A chunk of positions for all poles together."""
    after, read = more(system, jnp.concatenate([charge.real.astype(charge.wave.dtype), charge.wave], 2))
    return Charge(jnp.real(after[:, :, :-1]), after[:, :, -1:]), read


def _last(x: Array, lengths: Array, count: int) -> Array:
    """The last `count` rows of each sequence's part of `x` `[B, count + C, …]`, which ends `lengths` `[B]` behind `count`."""
    rows = lengths[:, None] + jnp.arange(count)[None]
    return jnp.take_along_axis(x, rows.reshape(*rows.shape, *(1,) * (x.ndim - 2)), axis=1)
