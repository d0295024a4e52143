"""Frames in which a metric is diagonal: a learned product of Givens rotors, or the principal axes of a running covariance.

Literature: plane rotations, Givens 1958; orthogonal iteration, Golub and Van Loan 2013. Source: docs/design.md section 3,
"frames", "diag_rot and block_rot".
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from lior_jax.physics.rotor_planes import rotor_planes


def wrap_angle(angle: Array) -> Array:
    """The angle wrapped to [−π, π)."""
    return (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi


class _Layers(NamedTuple):
    """The `planes` of each layer `[layers, n // 2, 2]`; the other coordinate of each one's plane, `partner` `[layers, n]`; and
    cosine and sine of the angle, `[layers, n, 1]`, the sine negated for the second coordinate of a plane."""

    planes: np.ndarray
    partner: np.ndarray
    cos: Array
    sin: Array


def _layers(n: int, angles: Array, block: int | None) -> _Layers:
    planes = rotor_planes(n, angles.shape[0], block)
    layer, pair = np.arange(len(planes))[:, None], np.arange(n // 2)[None]
    partner, plane, side = np.tile(np.arange(n), (len(planes), 1)), *np.zeros((2, len(planes), n), np.int32)
    for own, other, sign in ((planes[..., 0], planes[..., 1], 1), (planes[..., 1], planes[..., 0], -1)):
        partner[layer, own], plane[layer, own], side[layer, own] = other, pair, sign
    # A coordinate in no plane keeps side 0 and is not rotated.
    angle = wrap_angle(angles)[layer, plane] * side if len(planes) else jnp.zeros((0, n), angles.dtype)
    return _Layers(planes, partner, jnp.cos(angle)[..., None], jnp.sin(angle)[..., None])


def _turn(x: Array, partner: np.ndarray, cos: Array, sin: Array) -> Array:
    """Turn the rows of `x` `[n, m]` in each plane `(i, j)`: `(x_i, x_j) → (c x_i + s x_j, −s x_i + c x_j)`."""
    return cos * x + sin * x[partner]


def rotate(angles: Array, x: Array, block: int | None = None) -> Array:
    """`Qᵀ x` for the rotor frame `Q = R₁ R₂ … R_layers`, one layer of Givens planes after another: `O(n layers)` per column.

    Args:
        angles: `[layers, n // 2]` radians.
        x: `[n, m]`, vectors in columns.
        block: size of the blocks of a block-diagonal frame; by default one block.
    """
    layers = _layers(x.shape[0], angles, block)
    for partner, cos, sin in zip(*layers[1:], strict=True):
        x = _turn(x, partner, cos, sin)
    return x


def rotate_adjoint(angles: Array, rotated: Array, cotangent: Array, block: int | None = None) -> tuple[Array, Array]:
    """Adjoint of `rotate` from its *output*: every layer is inverted exactly, so nothing is stored.

    Args:
        angles: `[layers, n // 2]`.
        rotated: `[n, m]`, the result of `rotate`.
        cotangent: `[n, m]`.
        block: as given to `rotate`.

    Returns:
        Cotangents of the angles and of `x`.
    """
    slopes, layers = [], _layers(rotated.shape[0], angles, block)
    for planes, partner, cos, sin in reversed(list(zip(*layers, strict=True))):
        # A larger angle moves the pair (first, second) towards (second, −first).
        by_row = jnp.sum(cotangent * rotated[partner], axis=-1)
        slopes.append(by_row[planes[:, 0]] - by_row[planes[:, 1]])
        rotated, cotangent = _turn(rotated, partner, cos, -sin), _turn(cotangent, partner, cos, -sin)
    return jnp.stack(slopes[::-1]) if slopes else jnp.zeros_like(angles), cotangent


def rotor_frame(angles: Array, n: int, block: int | None = None) -> Array:
    """The rotor frame `Q` `[n, n]`, orthogonal with determinant 1 (tool)."""
    return rotate(angles, jnp.eye(n, dtype=angles.dtype), block).T


class Derived(NamedTuple):
    """A frame that follows the data: `covariance` `[n, n]`, a running `E[zzᵀ]`, and `axes` `[n, n]`, its eigenvectors in
    columns by decreasing eigenvalue. Carried from step to step; treated as constant by the adjoints."""

    covariance: Array
    axes: Array


def initial_derived(n: int, dtype: jnp.dtype = jnp.float32) -> Derived:
    """The initial frame: the coordinate axes."""
    return Derived(jnp.eye(n, dtype=dtype), jnp.eye(n, dtype=dtype))


def follow(derived: Derived, moment: Array, rate: float, block: int | None = None) -> Derived:
    """Mix a new second moment into the covariance, and move the axes towards its eigenvectors.

    The axes take one step of orthogonal iteration, `C Q = Q′ R` with a positive diagonal of `R`. This preserves their order
    and signs and moves them continuously, where a new eigendecomposition would jump at eigenvalue crossings. For a constant
    covariance they converge to its eigenvectors.

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
    # The ridge keeps the axes of directions without variance; it does not rotate the others.
    ridge = 1e-4 * jnp.trace(covariance) * jnp.eye(n, dtype=covariance.dtype)
    axes, upper = jnp.linalg.qr((covariance + ridge) @ derived.axes)
    return Derived(covariance, axes * jnp.where(jnp.diagonal(upper) < 0, -1, 1)[None].astype(axes.dtype))
