"""What the poles of a kernel hold of the positions before: the state of its O(1) recurrence.

All poles but one are real, so that two arrays in numbers of their own are half of what complex ones would move.

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
    """What poles hold, `[B, H, P, …]`: all but the last in `real` numbers, and the last, the `wave`, complex."""

    real: Array
    wave: Array


def empty(system: Poles, batch: int, *shape: int) -> Charge:
    """The charge of poles `[N, H, P]` of `N` blocks that have seen nothing, `[N, B, H, P, *shape]`."""
    rates = jax.eval_shape(lambda: [own.rate for own in jax.vmap(kernel.split)(system)])
    return Charge(*(jnp.zeros((rate.shape[0], batch, *rate.shape[1:], *shape), rate.dtype) for rate in rates))


def step(one: Callable[..., tuple[Array, Array]], system: Poles, charge: Charge, *inputs: Array) -> tuple[Charge, Array]:
    """One position, `one(poles, charge, *inputs)`, for the real poles and for the wave; what is read of both."""
    parts = zip(kernel.split(system), charge, strict=True)
    (real, read), (wave, more) = (one(own, held, *inputs) for own, held in parts)
    return Charge(real, wave), read + more


def chunk(more: Callable[[Poles, Array], tuple[Array, Array]], system: Poles, charge: Charge) -> tuple[Charge, Array]:
    """A chunk of positions, `more(poles, charge)`, for all poles together."""
    after, read = more(system, jnp.concatenate([charge.real.astype(charge.wave.dtype), charge.wave], 2))
    return Charge(jnp.real(after[:, :, :-1]), after[:, :, -1:]), read
