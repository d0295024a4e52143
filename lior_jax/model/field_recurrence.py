"""The field of a block as a recurrence, at a cost per position independent of the history (`recurrence`).

Shapes: `B` sequences, `C` positions of a chunk, `H` heads, `P` poles, `m` whitened chart dimensions, `v` value dimensions.
Functions with `lengths` `[B]` process a chunk of which each sequence has that many positions; without, a single position.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lior_jax.model import charges
from lior_jax.model.charges import Charge
from lior_jax.model.charts import Points
from lior_jax.model.field import FieldState, gain
from lior_jax.model.operators import Operators
from lior_jax.physics import field_state, kernel, master, projection
from lior_jax.physics.kernel import Poles
from lior_jax.settings import ModelConfig


class Systems(NamedTuple):
    """The poles of the field's kernel, with the gate folded into their weights; and those of the projection of keys and values,
    if configured. Stacked `[N, …]`."""

    read: Poles
    projected: Poles | None


class Held(NamedTuple):
    """State of the field: `kernel` of the poles, `[B, H, P, v, m]`; `evidence` `[B, H, m, v]`, of the master equation's site;
    `projection` `[B, H, P, m + v]`, complex, of the projection of keys and values. None for absent parts."""

    kernel: Charge
    evidence: Array | None
    projection: Array | None


def systems(raw: FieldState | None, config: ModelConfig) -> Systems | None:
    """The poles of all blocks."""
    if raw is None:
        return None
    poles = jax.vmap(kernel.poles)(raw.kernel)
    read = poles._replace(weight=gain(raw.gate, config)[..., None] * poles.weight)
    return Systems(read, None if raw.projection is None else poles)


def empty(raw: FieldState | None, batch: int, config: ModelConfig) -> Held | None:
    """The initial field of `batch` sequences, for all blocks."""
    if raw is None:
        return None
    shape, m, v = (config.blocks, batch, config.heads), config.geometry.whitened_dim, config.width // config.heads
    poles = jax.eval_shape(jax.vmap(kernel.poles), raw.kernel)
    projected = *shape, poles.rate.shape[-1], m + v
    return Held(
        kernel=charges.empty(poles, batch, v, m),
        evidence=None if raw.evidence is None else jnp.zeros((*shape, m, v), raw.gate.dtype),
        projection=None if raw.projection is None else jnp.zeros(projected, poles.rate.dtype),
    )


def project(
    systems: Systems | None, held: Held | None, lengths: Array | None, operators: Operators, key: Array, value: Array, config
) -> tuple[tuple[Array, Array], Array | None]:
    """Projected keys `[B, C, H, m]` and values `[B, C, H, v]`, and the poles' charges."""
    if operators.projector is None:
        return (key, value), None
    assert systems is not None
    assert systems.projected is not None
    assert held is not None
    assert held.projection is not None
    own = operators.projector, systems.projected, held.projection, key, value
    if lengths is None:
        charge, pair = projection.project_step(*own)
    else:
        charge, pair = projection.project_more(*own, lengths, config.precision)
    return pair, charge


def read(
    systems: Systems | None,
    held: Held | None,
    projected: Array | None,
    operators: Operators,
    points: Points,
    pull: Array | None,
    lengths: Array | None,
    config: ModelConfig,
) -> tuple[Held | None, Array | float]:
    """The field after the positions, and its read-out at them, `[B, C, H, v]`; 0 without a field.

    Args:
        projected: the charges from `project`.
    """
    if systems is None:
        return None, 0.0
    assert held is not None
    queries, keys, values, _ = points
    if lengths is None:
        charge, found = charges.step(field_state.encode_step, systems.read, held.kernel, *(x[:, 0] for x in points[:3]))
        found = found[:, None]
    else:
        given = {"queries": queries, "keys": keys, "values": values, "lengths": lengths, "precision": config.precision}
        charge, found = charges.chunk(partial(field_state.encode_more, **given), systems.read, held.kernel)
    if operators.evidence is None:
        return Held(charge, None, projected), found
    assert held.evidence is not None
    assert pull is not None
    evidence, by_site = _evolve(operators.evidence.site, held.evidence, (queries, keys, values, pull), lengths, config)
    return Held(charge, evidence, projected), found + operators.evidence.gate[None, None, :, None] * by_site


def _evolve(
    site: master.Site, field: Array, points: tuple[Array, Array, Array, Array], lengths: Array | None, config: ModelConfig
) -> tuple[Array, Array]:
    if lengths is not None:
        queries, keys, values, pull = points
        return master.evolve_more(site, field, queries, keys, values, pull, lengths, config.precision)
    field, found = master.evolve_step(site, field, *(x[:, 0] for x in points))
    return field, found[:, None]
