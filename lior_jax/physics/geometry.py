"""The learned Riemannian metric: base metric, frames, whitening, quadratic form, and their adjoints.

    g(x, x) = Ω² (Qᵀx)ᵀ diag(λ) (Qᵀx) + (Uᵀx)ᵀ diag(D) (Uᵀx),   λ, D, Ω > 0 through softplus

`Q` is orthonormal (see `frames`): `diag_rot` rotates all coordinates, `block_rot` blocks of them. `U diag(D) Uᵀ` is the
low-rank part. Under a base metric `g₀ = Bᵀ B` the metric is applied to `B x` instead of `x`. In the literature: a learned
Mahalanobis distance (Xing et al. 2002). Source: the audit's `build_base_metric`, `precompute_geometry` and `quad_form_batch`,
and docs/design.md section 2.4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lior_jax.physics.frames import rotate, rotate_adjoint
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


def whiten(metric: Metric, x: Array, frame: Array | None = None, block: int | None = None) -> Array:
    """`W x` with `W = [Ω Λ^½ Qᵀ ; D^½ Uᵀ]`, so that `g(x, x) = ‖W x‖²`.

    Args:
        metric: raw parameters on `R^n`.
        x: `[n, m]`, vectors in columns.
        frame: `Q` `[n, n]`; by default the product of the metric's own rotors.
        block: size of the rotors' blocks; by default one block of all coordinates.

    Returns:
        `[n + r, m]`.
    """
    positive = jax.nn.softplus
    rotated = _rotated(metric, x, frame, block)
    soft = jnp.sqrt(positive(metric.low_rank_stiffness))[:, None] * (metric.low_rank.T @ x)
    return jnp.concatenate([rigidity(metric)[:, None] * rotated, soft])


def rigidity(metric: Metric) -> Array:
    """`Ω Λ^½`, the scale of the whitening along each axis of the frame: `[n]`."""
    return jax.nn.softplus(metric.scale) * jnp.sqrt(jax.nn.softplus(metric.stiffness))


def _rotated(metric: Metric, x: Array, frame: Array | None, block: int | None) -> Array:
    return rotate(metric.angles, x, block) if frame is None else frame.T @ x


def whiten_adjoint(
    metric: Metric, x: Array, cotangent: Array, frame: Array | None = None, block: int | None = None
) -> tuple[Metric, Array]:
    """Adjoint of `whiten`: cotangents of the raw parameters, and of `x` `[n, m]`. A given frame is treated as constant."""
    positive = jax.nn.softplus
    n = x.shape[0]
    c_rigid, c_soft = cotangent[:n], cotangent[n:]

    omega, root = positive(metric.scale), jnp.sqrt(positive(metric.stiffness))[:, None]
    rotated = _rotated(metric, x, frame, block)
    c_omega = jnp.sum(c_rigid * root * rotated)
    c_root = jnp.sum(c_rigid * omega * rotated, axis=1)
    c_rotated = omega * root * c_rigid
    if frame is None:
        c_angles, c_x = rotate_adjoint(metric.angles, rotated, c_rotated, block)
    else:
        c_angles, c_x = jnp.zeros_like(metric.angles), frame @ c_rotated

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


def quad_form(metric: Metric, x: Array, frame: Array | None = None, block: int | None = None) -> Array:
    """`g(x, x)` for vectors `x` `[..., n]`: `[...]`, non-negative (tool). Other arguments as in `whiten`."""
    whitened = whiten(metric, x.reshape(-1, x.shape[-1]).T, frame, block)
    return jnp.sum(whitened * whitened, axis=0).reshape(x.shape[:-1])


def dense_metric(metric: Metric, frame: Array | None = None, block: int | None = None) -> Array:
    """The symmetric positive definite matrix `G` `[n, n]` with `g(x, x) = xᵀ G x` (tool)."""
    whitening = whiten(metric, jnp.eye(metric.stiffness.shape[0], dtype=metric.stiffness.dtype), frame, block)
    return whitening.T @ whitening
