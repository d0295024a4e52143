"""Cutting a batch into pieces that are gone through one after another, each with its share of every device."""

from typing import Any

import jax
from jax import Array, lax
from jax.sharding import PartitionSpec

from lior_jax.parallel.shardings import DATA


def shares() -> int:
    """Devices that share a batch, on the mesh of the surrounding context; 1 without one."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(DATA, 1)


def in_pieces(tree: Any, count: int) -> Any:
    """Trees of arrays `[B, …]` as `[count, B / count, …]`: a piece takes `B / count / shares()` sequences of each device.

    On one device the pieces are consecutive sequences. `joined` undoes it.
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
    """Trees of arrays `[count, B / count, …]`, as `in_pieces` gives them, as `[B, …]`."""
    devices = shares()

    def join(x: Array) -> Array:
        if devices == 1:
            return x.reshape(-1, *x.shape[2:])
        whole = x.reshape(x.shape[0], devices, -1, *x.shape[2:]).swapaxes(0, 1).reshape(-1, *x.shape[2:])
        return lax.with_sharding_constraint(whole, PartitionSpec(DATA))

    return jax.tree.map(join, tree)
