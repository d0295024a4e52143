"""Running a block's nudged phases in chunks of the batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def in_chunks(run: Callable[..., tuple[Any, Any, Any]], chunk: int | None, *states: Any) -> tuple[Any, Any, Any]:
    """`run(*states)` for `chunk` sequences at a time, or for all at once.

    Args:
        run: gives what it made of the states, `[B, …]`; a gradient, which adds up over sequences; and health.
        states: trees of `[B, …]`.

    Returns:
        As `run`, but with the health of every chunk, stacked.
    """
    if chunk is None:
        start, gradient, health = run(*states)
        return start, gradient, jax.tree.map(lambda x: x[None], health)

    def step(gradient, piece):
        start, local, health = run(*piece)
        return jax.tree.map(jnp.add, gradient, local), (start, health)

    pieces = jax.tree.map(lambda x: x.reshape(x.shape[0] // chunk, chunk, *x.shape[1:]), states)
    shapes = jax.eval_shape(run, *jax.tree.map(lambda x: x[0], pieces))[1]
    gradient, (start, health) = lax.scan(step, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), pieces)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), start), gradient, health
