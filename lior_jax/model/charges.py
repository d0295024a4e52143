"""The state of a kernel's O(1) recurrence: what its poles have accumulated over previous positions.

All poles but one are real, so a real and a complex array need half the memory traffic of a single complex one.

Shapes: `B` sequences, `H` heads, `P` poles.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lior_jax.physics import kernel
from lior_jax.physics.kernel import Poles


class Charge(NamedTuple):
    """State of the poles, `[B, H, P, …]`: all but the last `real`, and the last, the `wave`, complex."""

    real: Array
    wave: Array


def empty(system: Poles, batch: int, *shape: int) -> Charge:
    """The initial charge of poles `[N, H, P]` of `N` blocks, `[N, B, H, P, *shape]`."""
    rates = jax.eval_shape(lambda: [own.rate for own in jax.vmap(kernel.split)(system)])
    return Charge(*(jnp.zeros((rate.shape[0], batch, *rate.shape[1:], *shape), rate.dtype) for rate in rates))


def step(one: Callable[..., tuple[Array, Array]], system: Poles, charge: Charge, *inputs: Array) -> tuple[Charge, Array]:
    """One position, `one(poles, charge, *inputs)`, for the real poles and the wave; returns the sum of both read-outs."""
    parts = zip(kernel.split(system), charge, strict=True)
    (real, read), (wave, more) = (one(own, held, *inputs) for own, held in parts)
    return Charge(real, wave), read + more


def chunk(more: Callable[[Poles, Array], tuple[Array, Array]], system: Poles, charge: Charge) -> tuple[Charge, Array]:
    """A chunk of positions, `more(poles, charge)`, for all poles at once."""
    after, read = more(system, jnp.concatenate([charge.real.astype(charge.wave.dtype), charge.wave], 2))
    return Charge(jnp.real(after[:, :, :-1]), after[:, :, -1:]), read
