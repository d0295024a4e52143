"""One checkpoint: a folder with trees of arrays (Orbax), a JSON record, and the manifest that makes it whole.

It is written beside its place and renamed into it when every byte is on the disk, so that a folder under its final
name is complete whatever was killed or cut off, and when. Nothing in it is ever executed: arrays are read onto an
abstract tree that the program gives, and all else is JSON.
"""

import contextlib
import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from lior_jax.storage import files, manifest

RECORD = "record.json"
_BESIDE = 2**16
"""Bytes of what is written beside the arrays, about."""


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
    with files.replacing_folder(folder) as unfinished:
        fill(unfinished, trees, record)


def fill(folder: Path, trees: dict[str, Any], record: dict[str, Any]) -> None:
    """Write what `write` writes into an empty folder as it stands, as within `files.replacing_folder`."""
    _reserve(folder, trees)
    for name, tree in trees.items():
        with _checkpointer() as checkpointer:
            checkpointer.save((folder / name).absolute(), args=ocp.args.StandardSave(_without_empty(tree)))
    (folder / RECORD).write_bytes(json.dumps(record, allow_nan=False).encode())
    manifest.commit(folder)


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
        with _checkpointer() as checkpointer:
            tree = checkpointer.restore((folder / name).absolute(), args=ocp.args.StandardRestore(_without_empty(like)))
        # All in the place that was asked for, or the step would be compiled again for those that are not.
        return jax.tree.map(
            lambda shape, x: x if shape.size else jnp.zeros(shape.shape, shape.dtype, device=shape.sharding), like, tree
        )
    except Exception as problem:  # whatever Orbax and TensorStore find in a damaged or strange folder
        raise SnapshotError(f"{name}: {_one_line(problem)}") from None


def to_host(tree: Any) -> Any:
    """Copies of a tree's arrays that the next step, to which their buffers are donated, does not overwrite."""
    return jax.tree.map(np.array, tree)


def _reserve(folder: Path, trees: dict[str, Any]) -> None:
    """Meet a full disk or a limit here, by one `OSError`: inside Orbax, threads that are left behind print tracebacks.

    A limit of the process (`ulimit -f`) is met on Linux only; elsewhere what is free on the disk is asked for.
    """
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(trees)) + _BESIDE
    if not hasattr(os, "posix_fallocate"):
        if shutil.disk_usage(folder).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return
    room = folder / "room"
    with room.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    room.unlink()


@contextlib.contextmanager
def _checkpointer() -> Iterator[ocp.Checkpointer]:
    """Orbax, which would write into the middle of the progress bar, and tracebacks of what is raised and told anyway."""
    level = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            yield checkpointer
    finally:
        absl.logging.set_verbosity(level)


def _without_empty(tree: Any) -> Any:
    """The tree without arrays of size zero (a metric without rotors has no angles), which Orbax cannot save."""
    return jax.tree.map(lambda x: x if x.size else None, tree)


def _one_line(problem: Exception) -> str:
    text = str(problem).splitlines()
    return f"{type(problem).__name__}: {text[0][:200]}" if text else type(problem).__name__
