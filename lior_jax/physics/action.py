"""The LIoR action `∫ R(x) sqrt(g(ẋ, ẋ)) dτ`: the metric length of a path, weighed by resilience."""

import jax.numpy as jnp
from jax import Array


def path_action(points: Array) -> Array:
    """Action of paths given by whitened points, with `R = 1`: `Σ_k ‖x_{k+1} − x_k‖`.

    The sum is exact for geodesics between the points and a lower bound for any other path through them. It does
    not depend on how the path is parametrised by τ.

    Args:
        points: `[K + 1, …, m]`, whitened chart points in the order of τ.

    Returns:
        `[…]`.
    """
    return jnp.sum(jnp.linalg.norm(jnp.diff(points, axis=0), axis=-1), axis=0)
