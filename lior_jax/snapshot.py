"""One checkpoint: a folder with trees of arrays (NumPy's `.npz`), a JSON record, and the manifest that makes it whole.

It is written beside its place and renamed into it when every byte is on the disk, so that a folder under its final
name is complete whatever was killed or cut off, and when. Nothing in it is ever executed: arrays are read, without
pickles, onto an abstract tree that the program gives, and all else is JSON.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lior_jax import files, manifest

RECORD = "record.json"
SAVING = ".saving-"
"""Begins the name of a folder that is being written."""
REPLACED = ".replaced-"
"""Begins the name of a folder while a new one takes its place."""


class SnapshotError(Exception):
    """A snapshot that is not what was written, or not of this version: which file, and what of it."""


def write(folder: Path, trees: dict[str, Any], record: dict[str, Any]) -> None:
    """Write a snapshot, in the place of one that may be there.

    Args:
        folder: its final place.
        trees: pytrees of arrays, by name.
        record: plain values.

    Raises:
        Exception: whatever kept it from being written; then the place is as it was.
    """
    saving, replaced = (folder.with_name(begin + folder.name) for begin in (SAVING, REPLACED))
    try:
        shutil.rmtree(saving, ignore_errors=True)
        saving.mkdir(parents=True)
        for name, tree in trees.items():
            np.savez(saving / f"{name}.npz", allow_pickle=False, **_named(tree))
        (saving / RECORD).write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
        manifest.commit(saving)
        files.flush_folder(saving)
        if folder.exists():
            folder.rename(replaced)
        saving.rename(folder)
        files.flush_folder(folder.parent)
    finally:
        tidy(folder.parent, folder.name)


def tidy(parent: Path, name: str = "*") -> None:
    """Remove what a failed or killed writer left half done in a folder of snapshots, and put back what was about to be
    replaced; of all of them, or of one."""
    for path in parent.glob(REPLACED + name):
        place = path.with_name(path.name.removeprefix(REPLACED))
        if not place.exists():
            path.rename(place)
    for path in [*parent.glob(SAVING + name), *parent.glob(REPLACED + name)]:
        shutil.rmtree(path, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a snapshot; killed on the way, it leaves the whole of it or none. Raises `OSError`."""
    removing = folder.with_name(SAVING + folder.name)
    shutil.rmtree(removing, ignore_errors=True)
    folder.rename(removing)
    shutil.rmtree(removing, ignore_errors=True)


def verify(folder: Path) -> None:
    """Raise `SnapshotError` unless all files of a snapshot are as they were written."""
    damage = manifest.damage(folder)
    if damage:
        raise SnapshotError(damage)


def read_record(folder: Path) -> dict[str, Any]:
    """The record. Raises `SnapshotError`."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        raise SnapshotError(f"{RECORD}: {_one_line(problem)}") from None
    if not isinstance(record, dict):
        raise SnapshotError(f"{RECORD} holds no record")
    return record


def read_tree(folder: Path, name: str, like: Any) -> Any:
    """A tree of arrays, in the structure, shapes and types of the abstract tree `like`. Raises `SnapshotError`."""
    try:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
            loaded = [_fitting(arrays[place], shape) for place, shape in _named(like).items()]
    except Exception as problem:  # whatever NumPy and its decompression find in a damaged or strange file
        raise SnapshotError(f"{name}.npz: {_one_line(problem)}") from None
    # Without a copy the array might lie in memory that a step, to which it is donated, must not overwrite.
    placed = [
        jax.device_put(x, shape.sharding, may_alias=False) for x, shape in zip(loaded, jax.tree.leaves(like), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), placed)


def to_host(tree: Any) -> Any:
    """Copies of a tree's arrays that the next step, to which their buffers are donated, does not overwrite."""
    return jax.tree.map(np.array, tree)


def _named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths in it, such as `.blocks.metric.scale`."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _fitting(array: np.ndarray, like: Any) -> np.ndarray:
    """The array, if it has the shape and type that it should have."""
    if array.dtype.kind == "V" and array.dtype.itemsize == like.dtype.itemsize:
        array = array.view(like.dtype)  # NumPy does not know bfloat16, and keeps its bytes
    if (array.shape, array.dtype) != (like.shape, like.dtype):
        raise ValueError(f"{array.dtype}{list(array.shape)} where {like.dtype}{list(like.shape)} belongs")
    return array


def _one_line(problem: Exception) -> str:
    text = str(problem).splitlines()
    return f"{type(problem).__name__}: {text[0][:200]}" if text else type(problem).__name__
