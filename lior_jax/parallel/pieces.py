"""Splitting a batch into pieces that are processed in sequence, each of them spread over all devices."""

from typing import Any

import jax
from jax import Array, lax
from jax.sharding import PartitionSpec

from lior_jax.parallel.shardings import DATA


def shares() -> int:
    """Number of devices that share a batch, from the mesh of the surrounding context; 1 without a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(DATA, 1)


def in_pieces(tree: Any, count: int) -> Any:
    """Reshape trees of arrays `[B, …]` to `[count, B / count, …]`: a piece has `B / count / shares()` sequences of each device.

    On one device a piece consists of consecutive sequences. `joined` is the inverse.
    """
    devices = shares()

    def cut(x: Array) -> Array:
        rest = x.shape[1:]
        if devices == 1:
            return x.reshape(count, x.shape[0] // count, *rest)
        pieces = x.reshape(devices, count, -1, *rest).swapaxes(0, 1).reshape(count, -1, *rest)
        return lax.with_sharding_constraint(pieces, PartitionSpec(None, DATA))

    return jax.tree.map(cut, tree)


def joined(tree: Any) -> Any:
    """Reshape the result of `in_pieces`, trees of arrays `[count, B / count, …]`, to `[B, …]`."""
    devices = shares()

    def join(x: Array) -> Array:
        if devices == 1:
            return x.reshape(-1, *x.shape[2:])
        whole = x.reshape(x.shape[0], devices, -1, *x.shape[2:]).swapaxes(0, 1).reshape(-1, *x.shape[2:])
        return lax.with_sharding_constraint(whole, PartitionSpec(DATA))

    return jax.tree.map(join, tree)
