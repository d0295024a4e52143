"""Frames in which a metric is diagonal: a product of Givens rotors that is learned, or the axes of a running covariance.

Source: docs/design.md section 3, "frames", "diag_rot and block_rot".
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from lior_jax.physics.rotor_planes import rotor_planes


def wrap_angle(angle: Array) -> Array:
    """The same angle in [−π, π)."""
    return (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi


def _turn(x: Array, planes: np.ndarray, cos: Array, sin: Array) -> Array:
    """Turn the rows of `x` `[n, m]` in each plane `(i, j)`: `(x_i, x_j) → (c x_i + s x_j, −s x_i + c x_j)`."""
    first, second = x[planes[:, 0]], x[planes[:, 1]]
    cos, sin = cos[:, None], sin[:, None]
    turned = x.at[planes[:, 0]].set(cos * first + sin * second)
    return turned.at[planes[:, 1]].set(cos * second - sin * first)


def rotate(angles: Array, x: Array, block: int | None = None) -> Array:
    """`Qᵀ x` for the rotor frame `Q = R₁ R₂ … R_layers`, one layer of Givens planes after another: `O(n layers)` a column.

    Args:
        angles: `[layers, n // 2]` radians.
        x: `[n, m]`, vectors in columns.
        block: size of the blocks of a block-diagonal frame; by default one block.
    """
    wrapped = wrap_angle(angles)
    for layer, planes in enumerate(rotor_planes(x.shape[0], angles.shape[0], block)):
        x = _turn(x, planes, jnp.cos(wrapped[layer]), jnp.sin(wrapped[layer]))
    return x


def rotate_adjoint(angles: Array, rotated: Array, cotangent: Array, block: int | None = None) -> tuple[Array, Array]:
    """Adjoint of `rotate` from its *output*: every layer is undone exactly, so nothing is stored.

    Args:
        angles: `[layers, n // 2]`.
        rotated: `[n, m]`, what `rotate` returned.
        cotangent: `[n, m]`.
        block: as given to `rotate`.

    Returns:
        Cotangents of the angles and of `x`.
    """
    wrapped = wrap_angle(angles)
    slopes = []
    layers = list(enumerate(rotor_planes(rotated.shape[0], angles.shape[0], block)))
    for layer, planes in reversed(layers):
        cos, sin = jnp.cos(wrapped[layer]), jnp.sin(wrapped[layer])
        first, second = rotated[planes[:, 0]], rotated[planes[:, 1]]
        c_first, c_second = cotangent[planes[:, 0]], cotangent[planes[:, 1]]
        # A larger angle moves the pair (first, second) towards (second, −first).
        slopes.append(jnp.sum(c_first * second - c_second * first, axis=-1))
        rotated = _turn(rotated, planes, cos, -sin)
        cotangent = _turn(cotangent, planes, cos, -sin)
    return jnp.stack(slopes[::-1]) if slopes else jnp.zeros_like(angles), cotangent


def rotor_frame(angles: Array, n: int, block: int | None = None) -> Array:
    """The rotor frame `Q` `[n, n]`, orthogonal with determinant 1 (tool)."""
    return rotate(angles, jnp.eye(n, dtype=angles.dtype), block).T


class Derived(NamedTuple):
    """A frame that follows the data: `covariance` `[n, n]`, a running `E[zzᵀ]`, and `axes` `[n, n]`, its eigenvectors in
    columns by falling eigenvalue. Carried from step to step; nothing differentiates it."""

    covariance: Array
    axes: Array


def initial_derived(n: int, dtype: jnp.dtype = jnp.float32) -> Derived:
    """The coordinate axes, before anything was seen."""
    return Derived(jnp.eye(n, dtype=dtype), jnp.eye(n, dtype=dtype))


def follow(derived: Derived, moment: Array, rate: float, block: int | None = None) -> Derived:
    """Mix a new second moment into the covariance, and turn the axes towards its eigenvectors.

    The axes take one step of orthogonal iteration, `C Q = Q′ R` with a positive diagonal of `R`. That keeps their order
    and their signs, and moves them continuously: a fresh eigendecomposition would jump where eigenvalues meet. On a
    covariance that stands still they converge to its eigenvectors.

    Args:
        moment: `[n, n]`, `E[zzᵀ]` of the newest points.
        rate: share of the new moment, in (0, 1).
        block: keep the frame block-diagonal, with blocks of this size.
    """
    n = moment.shape[-1]
    covariance = derived.covariance + rate * (moment - derived.covariance)
    if block is not None:
        member = np.arange(n) // block
        covariance = covariance * jnp.asarray(member[:, None] == member[None], covariance.dtype)
    # The ridge keeps directions that nothing has moved in from losing their axis; it turns no other.
    ridge = 1e-4 * jnp.trace(covariance) * jnp.eye(n, dtype=covariance.dtype)
    axes, upper = jnp.linalg.qr((covariance + ridge) @ derived.axes)
    return Derived(covariance, axes * jnp.where(jnp.diagonal(upper) < 0, -1, 1)[None].astype(axes.dtype))
