"""Which axis of a parameter lies on which axis of the mesh, by the parameter's path.

Heads, and the units of a potential, lie on `model`. Where parameters are sharded (ZeRO: Rajbhandari et al. 2020, arXiv
1910.02054), the largest other axis that can be cut lies on `data`, but for the axis of the blocks, which are gone through one
after another, and for the statistics that are carried on, which are small. An optimiser's state has parameters' paths at the
ends of its own, so it lies like them.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec

DATA, MODEL = "data", "model"
"""Axes of the mesh: shares of each batch, and shares of heads and units."""

SMALLEST = 2**12
"""Elements of an array from which on it is worth cutting over `data`."""

_BY_HEAD = {
    *("query", "key", "value", "output", "metric", "inverse_temperature", "field", "scores", "resilience"),
    *("couplings", "evidence", "projector"),
}
"""Parts of a block whose arrays are `[N, H, …]`, of its parameters and of what is made of them (`model.operators`)."""


def spec_of(path: tuple[Any, ...], shape: tuple[int, ...], mesh: Mapping[str, int], shard_parameters: bool) -> PartitionSpec:
    """The axes of the mesh that the axes of an array lie on.

    Args:
        path: as `jax.tree.map_with_path` gives it; of a parameter, or of what ends like one.
        shape: of the array.
        mesh: sizes of `data` and `model`.
        shard_parameters: whether arrays are cut over `data`, too.
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
    """A tree of parameters, or one like it, that lies as `spec_of` says on the mesh of the surrounding context; as it is where
    there is none."""
    if not is_active():
        return tree
    mesh = dict(jax.sharding.get_abstract_mesh().shape)

    def kept(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        return lax.with_sharding_constraint(x, spec_of(path, x.shape, mesh, shard_parameters))

    return jax.tree.map_with_path(kept, tree)


def gathered(operators: Any) -> Any:
    """What one block applies, `[H, …]` and so on, whole on each of the devices that share a batch: of parameters that are cut
    over `data`, only those of the block at hand are ever whole. As it is where there is no mesh."""
    if not is_active():
        return operators
    size = dict(jax.sharding.get_abstract_mesh().shape)[MODEL]

    def whole(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        cut = size > 1 and x.ndim > 0 and x.shape[0] % size == 0 and _is_cut([_name(key) for key in path])
        return lax.with_sharding_constraint(x, PartitionSpec(MODEL) if cut else PartitionSpec())

    return jax.tree.map_with_path(whole, operators)


def by_sequence(tree: Any) -> Any:
    """Arrays `[B, …]`, each device's share of the sequences on it; where parameters are cut, the compiler would sooner cut
    along the same axes. As it is where there is no mesh."""
    if not is_active():
        return tree
    return jax.tree.map(lambda x: lax.with_sharding_constraint(x, PartitionSpec(DATA)), tree)


def _lies_on_model(names: list[str]) -> bool:
    if "carried" in names:
        return True
    return "blocks" in names and _is_cut(names[names.index("blocks") + 1 :])


def _is_cut(names: list[str]) -> bool:
    """Whether an array of a block, by its path from there on, has an axis of heads or units."""
    inner = ("long_convolution", "kernel"), ("long_convolution", "by_lag"), ("hamiltonian", "potential")
    return names[0] in _BY_HEAD or tuple(names[:2]) in inner


def _name(key: Any) -> str:
    return str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))))
