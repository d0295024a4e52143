"""One checkpoint: a folder with trees of arrays (Orbax), a JSON record, and a manifest written last.

It is written to a temporary name and renamed when every byte is on disk, so a folder under its final name is always complete.
Nothing in it is ever executed: arrays are restored onto an abstract tree that the program provides, and the rest is JSON.
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
"""Approximate bytes written in addition to the arrays."""


class SnapshotError(Exception):
    """A snapshot that is damaged or of another version; the message says which file and what is wrong."""


def write(folder: Path, trees: dict[str, Any], record: dict[str, Any]) -> None:
    """Write a snapshot, replacing an existing one.

    Args:
        folder: its final path.
        trees: pytrees of arrays, by name.
        record: plain values.

    Raises:
        Exception: any failure to write; the folder is then unchanged.
    """
    with files.replacing_folder(folder) as unfinished:
        fill(unfinished, trees, record)


def fill(folder: Path, trees: dict[str, Any], record: dict[str, Any]) -> None:
    """Write the contents of `write` directly into an empty folder, for use within `files.replacing_folder`."""
    _reserve(folder, trees)
    for name, tree in trees.items():
        with _checkpointer() as checkpointer:
            checkpointer.save((folder / name).absolute(), args=ocp.args.StandardSave(_without_empty(tree)))
    (folder / RECORD).write_bytes(json.dumps(record, allow_nan=False).encode())
    manifest.commit(folder)


def verify(folder: Path) -> None:
    """Raise `SnapshotError` unless all files of a snapshot are unchanged."""
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
        # All with the requested sharding, or the step would be compiled again.
        return jax.tree.map(
            lambda shape, x: x if shape.size else jnp.zeros(shape.shape, shape.dtype, device=shape.sharding), like, tree
        )
    except Exception as problem:  # Orbax and TensorStore raise many types for damaged or foreign folders
        raise SnapshotError(f"{name}: {_one_line(problem)}") from None


def to_host(tree: Any) -> Any:
    """Copies of a tree's arrays, since the next step takes their buffers by donation."""
    return jax.tree.map(np.array, tree)


def _reserve(folder: Path, trees: dict[str, Any]) -> None:
    """Detect a full disk or a file size limit here, by one `OSError`: inside Orbax, leftover threads would print tracebacks.

    A limit of the process (`ulimit -f`) is detected on Linux only; elsewhere the free space on the disk is checked.
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
    """Silence Orbax's logs, which would interrupt the progress bar and print tracebacks of errors that are reported anyway."""
    level = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            yield checkpointer
    finally:
        absl.logging.set_verbosity(level)


def _without_empty(tree: Any) -> Any:
    """The tree without arrays of size zero (such as the angles of a metric without rotors), which Orbax cannot save."""
    return jax.tree.map(lambda x: x if x.size else None, tree)


def _one_line(problem: Exception) -> str:
    text = str(problem).splitlines()
    return f"{type(problem).__name__}: {text[0][:200]}" if text else type(problem).__name__
