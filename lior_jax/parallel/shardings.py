"""Shardings of parameters: the mesh axis of each array axis, by the parameter's path.

Heads and the units of a potential are sharded over `model`. If parameters are sharded (ZeRO, Rajbhandari et al. 2020), the
largest other divisible axis is sharded over `data`, except the axis of the blocks, which are processed in sequence, and except
the running statistics, which are small. Paths in an optimiser's state end in those of the parameters, so it is sharded alike.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec

DATA, MODEL = "data", "model"
"""Axes of the mesh: over sequences of a batch, and over heads and units."""

SMALLEST = 2**12
"""Smallest number of elements for which an array is sharded over `data`."""

_BY_HEAD = {
    *("query", "key", "value", "output", "metric", "inverse_temperature", "field", "scores", "resilience"),
    *("couplings", "evidence", "projector"),
}
"""Parts of a block with arrays `[N, H, …]`, among its parameters and its operators (`model.operators`)."""


def spec_of(path: tuple[Any, ...], shape: tuple[int, ...], mesh: Mapping[str, int], shard_parameters: bool) -> PartitionSpec:
    """The mesh axis of each axis of an array.

    Args:
        path: from `jax.tree.map_with_path`; that of a parameter, or one that ends in it.
        shape: shape of the array.
        mesh: sizes of `data` and `model`.
        shard_parameters: whether arrays are sharded over `data`, too.
    """
    names = [_name(key) for key in path]
    stacked = "blocks" in names or "carried" in names
    axes: list[str | None] = [None] * len(shape)
    if mesh[MODEL] > 1 and _lies_on_model(names) and len(shape) > 1 and shape[1] % mesh[MODEL] == 0:
        axes[1] = MODEL
    if shard_parameters and mesh[DATA] > 1 and "carried" not in names and math.prod(shape) >= SMALLEST:
        free = [at for at in range(int(stacked), len(shape)) if axes[at] is None and shape[at] % mesh[DATA] == 0]
        if free:
            axes[max(free, key=lambda at: shape[at])] = DATA
    return PartitionSpec(*axes)


def is_active() -> bool:
    """Whether there is a mesh in the surrounding context (`Devices.active`)."""
    return not jax.sharding.get_abstract_mesh().empty


def kept_sharded(tree: Any, shard_parameters: bool) -> Any:
    """Constrain a tree of parameters, or one with their paths, to the shardings of `spec_of` on the mesh of the surrounding
    context; without a mesh the tree is returned unchanged."""
    if not is_active():
        return tree
    mesh = dict(jax.sharding.get_abstract_mesh().shape)

    def kept(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        return lax.with_sharding_constraint(x, spec_of(path, x.shape, mesh, shard_parameters))

    return jax.tree.map_with_path(kept, tree)


def gathered(operators: Any) -> Any:
    """Gather the operators of one block, `[H, …]` and so on, on all devices along `data`; of sharded parameters, only those of
    the current block are ever gathered. Without a mesh they are returned unchanged."""
    if not is_active():
        return operators
    size = dict(jax.sharding.get_abstract_mesh().shape)[MODEL]

    def whole(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        cut = size > 1 and x.ndim > 0 and x.shape[0] % size == 0 and _is_cut([_name(key) for key in path])
        return lax.with_sharding_constraint(x, PartitionSpec(MODEL) if cut else PartitionSpec())

    return jax.tree.map_with_path(whole, operators)


def by_sequence(tree: Any) -> Any:
    """Constrain arrays `[B, …]` to be sharded by sequence; with sharded parameters, the compiler would otherwise tend to shard
    activations along the parameters' axes. Without a mesh the tree is returned unchanged."""
    if not is_active():
        return tree
    return jax.tree.map(lambda x: lax.with_sharding_constraint(x, PartitionSpec(DATA)), tree)


def _lies_on_model(names: list[str]) -> bool:
    if "carried" in names:
        return True
    return "blocks" in names and _is_cut(names[names.index("blocks") + 1 :])


def _is_cut(names: list[str]) -> bool:
    """Whether an array of a block, given its path within the block, has an axis of heads or units."""
    inner = ("long_convolution", "kernel"), ("long_convolution", "by_lag"), ("hamiltonian", "potential")
    return names[0] in _BY_HEAD or tuple(names[:2]) in inner


def _name(key: Any) -> str:
    return str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))))
