"""Shared arithmetic: contractions of a chosen precision, normalisation (RMSNorm, Zhang and Sennrich 2019), GELU (Hendrycks and
Gimpel 2016), broadcasting, positivity."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lior_jax.physics.precision import Precision

RMS_EPSILON = 1e-6


def contract(subscripts: str, a: Array, b: Array, precision: Precision) -> Array:
    """`einsum` of two operands with products of the given precision.

    `float32` requests full precision everywhere. `tf32` requests the backend's fast default: TF32 on
    NVIDIA GPUs since Ampere, plain float32 on CPU. `bfloat16` rounds both operands. Accumulation and
    result always have the operands' own type.
    """
    if precision == "bfloat16":
        return lax.platform_dependent(a, b, cpu=partial(_of_rounded, subscripts), default=partial(_in_bfloat16, subscripts))
    level = lax.Precision.HIGHEST if precision == "float32" else lax.Precision.DEFAULT
    return jnp.einsum(subscripts, a, b, precision=level)


def _in_bfloat16(subscripts: str, a: Array, b: Array) -> Array:
    dtype = jnp.result_type(a, b)
    a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    return jnp.einsum(subscripts, a, b, precision=lax.Precision.DEFAULT, preferred_element_type=dtype)


def _of_rounded(subscripts: str, a: Array, b: Array) -> Array:
    """The same product on backends without bfloat16 support: XLA for CPUs lacks some batched ones."""
    a, b = (lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7) for x in (a, b))
    return jnp.einsum(subscripts, a, b, precision=lax.Precision.HIGHEST)


def project(x: Array, weight: Array, precision: Precision) -> Array:
    """`x Wᵀ` for `x` `[..., d]` and `W` `[o, d]`: `[..., o]`."""
    return contract("id,od->io", _rows(x), weight, precision).reshape(*x.shape[:-1], weight.shape[0])


def project_back(x: Array, weight: Array, precision: Precision) -> Array:
    """`x W` for `x` `[..., o]` and `W` `[o, d]`: `[..., d]`; the adjoint of `project` with respect to `x`."""
    return contract("io,od->id", _rows(x), weight, precision).reshape(*x.shape[:-1], weight.shape[1])


def correlate(x: Array, y: Array, precision: Precision) -> Array:
    """`Σ x yᵀ` over all positions, for `x` `[..., o]` and `y` `[..., d]`: `[o, d]`; the adjoint of `project` with respect
    to `W`."""
    return contract("io,id->od", _rows(x), _rows(y), precision)


def _rows(x: Array) -> Array:
    # Reshaped to matrices: XLA copies operands before a contraction over several axes.
    return x.reshape(-1, x.shape[-1])


def rms_normalize(x: Array, epsilon: float = RMS_EPSILON) -> tuple[Array, Array]:
    """`x̂ = x / sqrt(mean(x²) + ε)` over the last axis.

    Args:
        x: `[..., d]`.
        epsilon: ε; larger values keep some of the magnitude.

    Returns:
        `x̂` `[..., d]`, and `1 / sqrt(mean(x²) + ε)` `[..., 1]`.
    """
    inverse = lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)
    return x * inverse, inverse


def rms_normalize_adjoint(x_hat: Array, inverse: Array, cotangent: Array) -> Array:
    """Adjoint of `rms_normalize`: `(c − x̂ mean(c ⊙ x̂)) / sqrt(mean(x²) + ε)`.

    The Jacobian is symmetric, so this is also the response to a perturbation, and the force of any potential of `x̂` on `x`
    follows from its force on `x̂` by the same formula.
    """
    return (cotangent - x_hat * jnp.mean(cotangent * x_hat, axis=-1, keepdims=True)) * inverse


def gelu_and_slope(z: Array) -> tuple[Array, Array]:
    """`gelu(z) = z Φ(z)` and its derivative `Φ(z) + z φ(z)`, with Φ the standard normal distribution function."""
    distribution = 0.5 * (1.0 + lax.erf(z * 0.7071067811865476))
    density = jnp.exp(-0.5 * z * z) * 0.3989422804014327
    return z * distribution, distribution + z * density


def masked(x: Array, mask: Array | None) -> Array:
    """`x ⊙ mask`, or `x` itself without a mask."""
    return x if mask is None else x * mask


def like(vector: Array, x: Array) -> Array:
    """`vector` `[d]` with leading axes of length one, to broadcast against `x` `[..., d]`."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def softplus_inverse(y: np.ndarray | float) -> np.ndarray:
    """The raw value whose softplus is the constant `y > 0`: `y + ln(1 − e^−y)`."""
    return y + np.log(-np.expm1(-np.asarray(y)))


def raw_positive(value: np.ndarray | float, *shape: int) -> Array:
    """The raw parameter whose softplus is `value`, float32, broadcast to `shape`."""
    return jnp.broadcast_to(jnp.asarray(softplus_inverse(value), jnp.float32), shape or np.shape(value))


def softplus_adjoint(raw: Array, cotangent: Array) -> Array:
    """Adjoint of `jax.nn.softplus`, whose derivative is the logistic function."""
    return cotangent * jax.nn.sigmoid(raw)
