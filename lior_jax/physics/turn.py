"""The Hamiltonian part of the field state: a turn of its keys' space by a learned Hermitian generator.

    iħ ∂_t T = T H,  H = Hᵀ* ,  ħ = 1:      T ← T U per position,  U = e^{−iH} = R (⊕_j rot(ω_j)) Rᵀ

`H = R (⊕_j ω_j σ_y) Rᵀ` in an orthogonal frame `R`, with `σ_y = [[0, −i], [i, 0]]`, has the eigenvalues `±ω_j`, and is what a
Hermitian generator that keeps a real field real looks like; a complex field of `m / 2` dimensions is a real one of `m`. The
turn is unitary: it keeps the norm of `T`. Keys and queries that are themselves turned by `U^t` see a field that does not turn
(the interaction picture), which is how all positions are had at once. The field calls that a rotary position embedding, here
in a learned frame. Source: docs/design.md section 3.

Shapes: `H` heads, `m` dimensions of a key, `h = m // 2` planes (for odd `m` one dimension is not turned), `L` positions.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from lior_jax.physics.numerics import Precision, contract


class Generator(NamedTuple):
    """`frame` `[H, m, m]` = Rᵀ, and `frequency` `[H, h]` = ω in radians per position. Planes pair the dimensions `j` and
    `h + j` of the frame."""

    frame: Array
    frequency: Array


def hermitian(generator: Generator) -> Array:
    """`H` `[H, m, m]`, complex, whose `e^{−iH}` turns (tool)."""
    dimension, planes = generator.frame.shape[-1], generator.frequency.shape[-1]
    first, second = jnp.arange(planes), planes + jnp.arange(planes)
    inner = jnp.zeros((len(generator.frequency), dimension, dimension), generator.frequency.dtype)
    inner = inner.at[:, second, first].set(generator.frequency).at[:, first, second].set(-generator.frequency)
    return 1j * jnp.swapaxes(generator.frame, -1, -2) @ inner @ generator.frame


def into_frame(frame: Array, x: Array, precision: Precision = "float32") -> Array:
    """`Rᵀ x` for points `[B, L, H, m]`."""
    return contract("blhm,hnm->blhn", x, frame, precision)


def into_frame_adjoint(frame: Array, x: Array, cotangent: Array, precision: Precision = "float32") -> tuple[Array, Array]:
    """Adjoint of `into_frame`: cotangents of the frame and of `x`."""
    c_frame = contract("blhn,blhm->hnm", cotangent, x, precision)
    return c_frame, contract("blhn,hnm->blhm", cotangent, frame, precision)


def angles(frequency: Array, times: Array) -> Array:
    """`ω t` for `times` `[L]`: `[1, L, H, h]`."""
    return times[None, :, None, None] * frequency[None, None]


def turn(x: Array, angle: Array) -> Array:
    """Turn the planes of points `[..., H, m]`, given in the frame, by angles that broadcast to `[..., H, h]`."""
    planes = angle.shape[-1]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = x[..., :planes], x[..., planes : 2 * planes]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos, x[..., 2 * planes :]], -1)


def turn_adjoint(turned: Array, angle: Array, cotangent: Array) -> tuple[Array, Array]:
    """Adjoint of `turn` from its *output*: cotangents of `x` and of the angles, the latter `[..., H, h]` not summed."""
    planes = angle.shape[-1]
    first, second = turned[..., :planes], turned[..., planes : 2 * planes]
    c_first, c_second = cotangent[..., :planes], cotangent[..., planes : 2 * planes]
    return turn(cotangent, -angle), c_second * first - c_first * second
