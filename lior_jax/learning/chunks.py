"""Running the nudged phases of a block in chunks of the batch, which reduces memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lior_jax import parallel


def in_chunks(run: Callable[..., tuple[Any, Any, Any]], chunk: int | None, *states: Any) -> tuple[Any, Any, Any]:
    """`run(*states)` on at most `chunk` sequences per device at a time, or on all at once.

    Args:
        run: returns new states, `[B, …]`; a gradient, which is summed over sequences; and diagnostics.
        states: trees of `[B, …]`.

    Returns:
        The results of `run`, with the diagnostics of all chunks stacked.
    """
    if chunk is None:
        start, gradient, health = run(*states)
        return start, gradient, jax.tree.map(lambda x: x[None], health)

    def step(gradient, piece):
        start, local, health = run(*piece)
        return jax.tree.map(jnp.add, gradient, local), (start, health)

    pieces = parallel.in_pieces(states, _count(jax.tree.leaves(states)[0].shape[0], chunk))
    shapes = jax.eval_shape(run, *jax.tree.map(lambda x: x[0], pieces))[1]
    gradient, (start, health) = lax.scan(step, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), pieces)
    return parallel.joined(start), gradient, health


def _count(sequences: int, chunk: int) -> int:
    """The smallest number of equal pieces with at most `chunk` sequences per device."""
    own = sequences // parallel.shares()
    return next(count for count in range(1, own + 1) if own % count == 0 and own // count <= chunk)
