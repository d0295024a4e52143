"""Short causal taps: a depthwise convolution over the last few positions, as in Primer (So et al. 2021); docs/design.md section
2.2."""

from functools import reduce

import jax.numpy as jnp
from jax import Array


def _delay(x: Array, steps: int) -> Array:
    """`x` `[B, L, d]` shifted by `steps` positions (to earlier ones if negative), padded with zeros."""
    if steps == 0:
        return x
    length = x.shape[1]
    if abs(steps) >= length:
        return jnp.zeros_like(x)
    pad = jnp.zeros_like(x[:, : abs(steps)])
    if steps > 0:
        return jnp.concatenate([pad, x[:, :-steps]], axis=1)
    return jnp.concatenate([x[:, -steps:], pad], axis=1)


def taps(kernel: Array, x: Array) -> Array:
    """`c_t = Σ_{j<τ} κ_j ⊙ x_{t−j}`, with zeros before the first position.

    Args:
        kernel: `[τ, d]`, the weight of lag `j` in row `j`.
        x: `[B, L, d]`.
    """
    return reduce(jnp.add, (kernel[lag][None, None] * _delay(x, lag) for lag in range(kernel.shape[0])))


def taps_adjoint(kernel: Array, x: Array, cotangent: Array) -> tuple[Array, Array]:
    """Adjoint of `taps`: cotangents of `kernel` and `x`."""
    c_kernel = jnp.stack([jnp.sum(cotangent * _delay(x, lag), axis=(0, 1)) for lag in range(kernel.shape[0])])
    c_x = reduce(jnp.add, (kernel[lag][None, None] * _delay(cotangent, -lag) for lag in range(kernel.shape[0])))
    return c_kernel, c_x
