"""The part of the field that obeys the full master equation, token by token: decay, unitary turn, write and Bayesian pull.

    T ← ρ T U,      T ← T + λ_t (v_t − T k̂_t) k̂_tᵀ,      y_t = T q̂_t

`U = e^{−iH}` is the Hamiltonian part (`turn`), ρ = e^{−rate} the decay of one real pole, and the pull to the evidence
`E_t = v_t k̂_tᵀ` (`delta`) both writes and corrects earlier writes. Keys and queries are unit vectors, so a pull of 1 makes
`T k̂_t = v_t`. The kernel's poles are in `field_state`. In the literature: the gated delta rule (Yang et al. 2025) with rotary
positions (Su et al. 2021). Source: docs/design.md section 3.

Shapes: `B` sequences, `L` positions, `H` heads, `m` whitened chart dimensions, `v` value dimensions. Queries and keys are
`[B, L, H, m]`, values `[B, L, H, v]`, the pull λ `[B, L, H]`, the field `[B, H, m, v]`, which is Tᵀ with its keys in the
generator's frame.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from lior_jax.physics.delta import delta, delta_and_adjoint, delta_more, delta_step
from lior_jax.physics.numerics import Precision, rms_normalize, rms_normalize_adjoint
from lior_jax.physics.turn import Generator, angles, into_frame, into_frame_adjoint, turn, turn_adjoint


class Site(NamedTuple):
    """`rate` `[H]` of the decay, positive, per position; the `generator` of the turn."""

    rate: Array
    generator: Generator


def unit(x: Array) -> Array:
    """`x / ‖x‖` for points `[..., m]`, 0 at the origin."""
    return rms_normalize(x)[0] * x.shape[-1] ** -0.5


def unit_adjoint(x: Array, cotangent: Array) -> Array:
    """Adjoint of `unit`."""
    return rms_normalize_adjoint(*rms_normalize(x), cotangent * x.shape[-1] ** -0.5)


def evolve(site: Site, queries: Array, keys: Array, values: Array, pull: Array, precision: Precision = "float32") -> Array:
    """The read-out `y` of every query, for sequences from their beginning: `[B, L, H, v]`."""
    angle = _angles(site, queries)
    queries, keys = (turn(unit(into_frame(site.generator.frame, x, precision)), angle) for x in (queries, keys))
    return delta(queries, keys, values, pull, site.rate, precision)


def evolve_and_adjoint(
    site: Site,
    queries: Array,
    keys: Array,
    values: Array,
    pull: Array,
    cotangent: Array,
    precision: Precision = "float32",
) -> tuple[Array, tuple[Site, Array, Array, Array, Array]]:
    """`evolve` and its adjoint in one pass, for a cotangent `[B, L, H, v]` of its result.

    Returns:
        The result of `evolve`, and the cotangents of site, queries, keys, values and pull.
    """
    angle, frame = _angles(site, queries), site.generator.frame
    framed = [into_frame(frame, x, precision) for x in (queries, keys)]
    turned_queries, turned_keys = turned = [turn(unit(x), angle) for x in framed]
    read, found = delta_and_adjoint(turned_queries, turned_keys, values, pull, site.rate, cotangent, precision)

    def back(x: Array, inside: Array, outside: Array, cotangent: Array) -> tuple[Array, Array, Array]:
        """Cotangents of a point, of the frame and of the angle."""
        c_unit, c_angle = turn_adjoint(outside, angle, cotangent)
        c_frame, c_x = into_frame_adjoint(frame, x, unit_adjoint(inside, c_unit), precision)
        return c_x, c_frame, c_angle

    (c_queries, *by_queries), (c_keys, *by_keys) = map(back, (queries, keys), framed, turned, (found.queries, found.keys))
    c_frame, c_angle = map(jnp.add, by_queries, by_keys)
    c_frequency = jnp.sum(c_angle * _times(queries)[None, :, None, None], (0, 1))
    c_site = Site(found.rate, Generator(c_frame, c_frequency))
    return read, (c_site, c_queries, c_keys, found.values, found.pull)


def evolve_step(site: Site, field: Array, query: Array, key: Array, value: Array, pull: Array) -> tuple[Array, Array]:
    """One position: query and key `[B, H, m]`, value `[B, H, v]`, pull `[B, H]`. Returns the new field, and `y` `[B, H, v]`."""
    query, key = (unit(into_frame(site.generator.frame, x[:, None]))[:, 0] for x in (query, key))
    return delta_step(site.rate, _turned(field, -site.generator.frequency[None, :, None]), query, key, value, pull)


def evolve_more(
    site: Site,
    field: Array,
    queries: Array,
    keys: Array,
    values: Array,
    pull: Array,
    lengths: Array,
    precision: Precision = "float32",
) -> tuple[Array, Array]:
    """Continue from a field by a chunk of positions.

    Args:
        lengths: `[B]`, how many of the chunk's positions each sequence has; the rest is padding and has no effect.

    Returns:
        The field after each sequence's last position, and `y` `[B, L, H, v]`.
    """
    angle = _angles(site, queries, first=1)
    queries, keys = (turn(unit(into_frame(site.generator.frame, x, precision)), angle) for x in (queries, keys))
    field, read = delta_more(queries, keys, values, pull, site.rate, field, lengths, precision)
    return _turned(field, -site.generator.frequency[None, :, None] * lengths[:, None, None, None]), read


def _turned(field: Array, angle: Array) -> Array:
    """Turn the keys' axis of the field `[B, H, m, v]` by angles that broadcast to `[B, H, v, h]`."""
    return jnp.swapaxes(turn(jnp.swapaxes(field, -1, -2), angle), -1, -2)


def _times(queries: Array, first: int = 0) -> Array:
    return first + jnp.arange(queries.shape[1], dtype=queries.dtype)


def _angles(site: Site, queries: Array, first: int = 0) -> Array:
    return angles(site.generator.frequency, _times(queries, first))
