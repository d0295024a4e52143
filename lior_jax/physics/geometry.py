"""The learned Riemannian metric `diag_rot`: rotor frames, whitening, quadratic form, and their adjoints.

    g(x, x) = Ω² (Qᵀx)ᵀ diag(λ) (Qᵀx) + (Uᵀx)ᵀ diag(D) (Uᵀx),   λ, D, Ω > 0 through softplus

`Q` is a product of Givens rotors, so `Λ = diag(λ)` acts in a learned orthonormal frame; `U diag(D) Uᵀ` is
the low-rank part. Source: the audit's `quad_form_batch`, and DESIGN.md section 2.4.
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lior_jax.physics.numerics import softplus_adjoint


class Metric(NamedTuple):
    """Raw parameters of one metric on `R^n`; softplus makes λ, Ω and D positive.

    `stiffness` `[n]` → λ, `scale` `[]` → Ω, `angles` `[layers, n // 2]` in radians, `low_rank` `[n, r]` = U,
    `low_rank_stiffness` `[r]` → D.
    """

    stiffness: Array
    scale: Array
    angles: Array
    low_rank: Array
    low_rank_stiffness: Array


@lru_cache
def rotor_planes(n: int, layers: int) -> np.ndarray:
    """Planes of each rotor layer: `[layers, n // 2, 2]` coordinate pairs, disjoint within a layer.

    The round-robin tournament: after `n − 1` layers (`n` for odd `n`) every pair has met exactly once, so the
    angles then have the dimension of SO(n).
    """
    field = n + n % 2
    order = list(range(field))
    rounds = []
    for _ in range(layers):
        pairs = [(order[i], order[field - 1 - i]) for i in range(field // 2)]
        rounds.append([sorted(pair) for pair in pairs if max(pair) < n])
        order = [order[0], order[-1], *order[1:-1]]
    return np.array(rounds, dtype=np.int32).reshape(layers, n // 2, 2)


def max_rotor_layers(n: int) -> int:
    """Number of layers after which every plane of `R^n` has had its rotor."""
    return n - 1 + n % 2


def wrap_angle(angle: Array) -> Array:
    """The same angle in [−π, π)."""
    return (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi


def _turn(x: Array, planes: np.ndarray, cos: Array, sin: Array) -> Array:
    """Turn the rows of `x` `[n, m]` in each plane `(i, j)`: `(x_i, x_j) → (c x_i + s x_j, −s x_i + c x_j)`."""
    first, second = x[planes[:, 0]], x[planes[:, 1]]
    cos, sin = cos[:, None], sin[:, None]
    turned = x.at[planes[:, 0]].set(cos * first + sin * second)
    return turned.at[planes[:, 1]].set(cos * second - sin * first)


def rotate(angles: Array, x: Array) -> Array:
    """`Qᵀ x` for the rotor frame `Q = R₁ R₂ … R_layers`, one layer of Givens planes after another.

    Args:
        angles: `[layers, n // 2]` radians.
        x: `[n, m]`, vectors in columns.
    """
    wrapped = wrap_angle(angles)
    for layer, planes in enumerate(rotor_planes(x.shape[0], angles.shape[0])):
        x = _turn(x, planes, jnp.cos(wrapped[layer]), jnp.sin(wrapped[layer]))
    return x


def rotate_adjoint(angles: Array, rotated: Array, cotangent: Array) -> tuple[Array, Array]:
    """Adjoint of `rotate` from its *output*: every layer is undone exactly, so nothing is stored.

    Args:
        angles: `[layers, n // 2]`.
        rotated: `[n, m]`, what `rotate` returned.
        cotangent: `[n, m]`.

    Returns:
        Cotangents of the angles and of `x`.
    """
    wrapped = wrap_angle(angles)
    slopes = []
    layers = list(enumerate(rotor_planes(rotated.shape[0], angles.shape[0])))
    for layer, planes in reversed(layers):
        cos, sin = jnp.cos(wrapped[layer]), jnp.sin(wrapped[layer])
        first, second = rotated[planes[:, 0]], rotated[planes[:, 1]]
        c_first, c_second = cotangent[planes[:, 0]], cotangent[planes[:, 1]]
        # A larger angle moves the pair (first, second) towards (second, −first).
        slopes.append(jnp.sum(c_first * second - c_second * first, axis=-1))
        rotated = _turn(rotated, planes, cos, -sin)
        cotangent = _turn(cotangent, planes, cos, -sin)
    return jnp.stack(slopes[::-1]) if slopes else jnp.zeros_like(angles), cotangent


def frame(angles: Array, n: int) -> Array:
    """The rotor frame `Q` `[n, n]`, orthogonal with determinant 1."""
    return rotate(angles, jnp.eye(n, dtype=angles.dtype)).T


def whiten(metric: Metric, x: Array) -> Array:
    """`W x` with `W = [Ω Λ^½ Qᵀ ; D^½ Uᵀ]`, so that `g(x, x) = ‖W x‖²`.

    Args:
        metric: raw parameters on `R^n`.
        x: `[n, m]`, vectors in columns.

    Returns:
        `[n + r, m]`.
    """
    positive = jax.nn.softplus
    rotated = rotate(metric.angles, x)
    rigid = positive(metric.scale) * jnp.sqrt(positive(metric.stiffness))[:, None] * rotated
    soft = jnp.sqrt(positive(metric.low_rank_stiffness))[:, None] * (metric.low_rank.T @ x)
    return jnp.concatenate([rigid, soft])


def whiten_adjoint(metric: Metric, x: Array, cotangent: Array) -> tuple[Metric, Array]:
    """Adjoint of `whiten`: cotangents of the raw parameters, and of `x` `[n, m]`."""
    positive = jax.nn.softplus
    n = x.shape[0]
    c_rigid, c_soft = cotangent[:n], cotangent[n:]

    omega, root = positive(metric.scale), jnp.sqrt(positive(metric.stiffness))[:, None]
    rotated = rotate(metric.angles, x)
    c_omega = jnp.sum(c_rigid * root * rotated)
    c_root = jnp.sum(c_rigid * omega * rotated, axis=1)
    c_angles, c_x = rotate_adjoint(metric.angles, rotated, omega * root * c_rigid)

    soft_root = jnp.sqrt(positive(metric.low_rank_stiffness))[:, None]
    projected = metric.low_rank.T @ x
    c_soft_root = jnp.sum(c_soft * projected, axis=1)
    c_projected = soft_root * c_soft

    gradient = Metric(
        stiffness=softplus_adjoint(metric.stiffness, c_root / (2 * root[:, 0])),
        scale=softplus_adjoint(metric.scale, c_omega),
        angles=c_angles,
        low_rank=x @ c_projected.T,
        low_rank_stiffness=softplus_adjoint(metric.low_rank_stiffness, c_soft_root / (2 * soft_root[:, 0])),
    )
    return gradient, c_x + metric.low_rank @ c_projected


def quad_form(metric: Metric, x: Array) -> Array:
    """`g(x, x)` for vectors `x` `[..., n]`: `[...]`, never negative."""
    whitened = whiten(metric, x.reshape(-1, x.shape[-1]).T)
    return jnp.sum(whitened * whitened, axis=0).reshape(x.shape[:-1])


def dense_metric(metric: Metric) -> Array:
    """The symmetric positive definite matrix `G` `[n, n]` with `g(x, x) = xᵀ G x`."""
    whitening = whiten(metric, jnp.eye(metric.stiffness.shape[0], dtype=metric.stiffness.dtype))
    return whitening.T @ whitening
