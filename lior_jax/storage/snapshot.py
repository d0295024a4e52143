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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from lior_jax.storage import files, manifest
from lior_jax.storage.writers import ALONE, Writers

RECORD = "record.json"
CHANNEL = "save"
"""Channel of `Writers.share`: saves run beside the steps."""
_HOST = "pinned_host"
"""JAX's name for memory of the host."""
_BESIDE = 2**16
"""Approximate bytes written in addition to the arrays."""


class SnapshotError(Exception):
    """A snapshot that is damaged or of another version; the message says which file and what is wrong."""


def write(folder: Path, trees: dict[str, Any], record: dict[str, Any], writers: Writers = ALONE) -> None:
    """Write a snapshot, replacing an existing one.

    Args:
        folder: its final path.
        trees: pytrees of arrays, by name.
        record: plain values.
        writers: the processes that write their parts of the arrays; all must call it. The first writes the rest, and commits
            the folder once all have finished.

    Raises:
        Exception: any failure to write; the folder is then unchanged.
    """
    with replacing_folder(folder, lambda unfinished: reserve(unfinished, trees), writers, CHANNEL) as unfinished:
        fill(unfinished, trees, record, writers)


@contextlib.contextmanager
def replacing_folder(
    folder: Path, prepare: Callable[[Path], object], writers: Writers = ALONE, channel: str = ""
) -> Iterator[Path]:
    """`files.replacing_folder` for several writers: the first one creates, prepares and commits the folder, and all get its
    path, on a channel of `Writers.share`."""
    with contextlib.ExitStack() as stack:

        def begin() -> str:
            unfinished = stack.enter_context(files.replacing_folder(folder))
            prepare(unfinished)
            return str(unfinished)

        yield Path(writers.share(begin, channel))


def fill(folder: Path, trees: dict[str, Any], record: dict[str, Any], writers: Writers = ALONE) -> None:
    """Write the contents of `write` directly into an empty folder, for use within `replacing_folder`, after `reserve`."""
    for name, tree in trees.items():
        with _checkpointer(writers) as checkpointer:
            checkpointer.save((folder / name).absolute(), args=ocp.args.StandardSave(_without_empty(tree)))
    if writers.is_first:
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


def to_host(tree: Any, writers: Writers = ALONE) -> Any:
    """Copies of a tree's arrays, since the next step takes their buffers by donation; with several processes, of the parts that
    each holds."""
    return jax.tree.map(np.array if writers.count == 1 else _copied, tree)


def _copied(x: jax.Array) -> jax.Array:
    """A copy of an array in the memory of the host, sharded alike."""
    shards = [
        jax.device_put(np.array(shard.data), SingleDeviceSharding(shard.device, memory_kind=_HOST))
        for shard in x.addressable_shards
    ]
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding.with_memory_kind(_HOST), shards)


def reserve(folder: Path, trees: dict[str, Any]) -> None:
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
def _checkpointer(writers: Writers = ALONE) -> Iterator[ocp.Checkpointer]:
    """Orbax's checkpointer for this process alone, or for all writers, which wait for each other through JAX's coordination
    service: its default is a computation on all devices, which would get between the steps.

    Its logs are silenced, which would interrupt the progress bar and print tracebacks of errors that are reported anyway.
    """
    own = jax.process_index() if writers.count == 1 else 0
    together = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own} if writers.count == 1 else set(range(writers.count))
    )
    level = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=together)
        with ocp.Checkpointer(handler, multiprocessing_options=together) as checkpointer:
            yield checkpointer
    finally:
        absl.logging.set_verbosity(level)


def _without_empty(tree: Any) -> Any:
    """The tree without arrays of size zero (such as the angles of a metric without rotors), which Orbax cannot save."""
    return jax.tree.map(lambda x: x if x.size else None, tree)


def _one_line(problem: Exception) -> str:
    text = str(problem).splitlines()
    return f"{type(problem).__name__}: {text[0][:200]}" if text else type(problem).__name__
