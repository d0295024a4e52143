"""Files of named arrays (safetensors): written atomically, verified on reading, and never executed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lior_jax.errors import UserError
from lior_jax.storage import files, sums

_DIGEST = "sha256"


def named(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a pytree of NamedTuples by path, such as `blocks.metric.scale`; None leaves are left out."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def digest(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of the names, types, shapes and values of arrays."""
    return sums.of(_pieces(arrays))


def _pieces(arrays: dict[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        yield f"{name} {array.dtype} {arrays[name].shape}\n".encode()
        yield array.data.cast("B") if array.size else b""


def write(path: str | Path, arrays: dict[str, np.ndarray], about: dict[str, str] | None = None) -> None:
    """Write a file, replacing an existing one; `about` is text stored with the arrays.

    Raises:
        UserError: the file cannot be written; an existing one is unchanged.
    """
    try:
        with files.replacing_file(Path(path)) as unfinished:
            fill(unfinished, arrays, about)
    except OSError as problem:
        raise UserError(f"{path} cannot be written ({_reason(problem)}); nothing was changed, choose another place.") from None


def fill(path: Path, arrays: dict[str, np.ndarray], about: dict[str, str] | None = None) -> None:
    """Write the contents of `write` directly into a file, for use within `files.replacing_file`. Raises `OSError`."""
    # The library writes an array's buffer regardless of its strides.
    arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    try:
        save_file(arrays, path, {**(about or {}), _DIGEST: digest(arrays)})
    except SafetensorError as problem:
        raise OSError(_reason(problem)) from None


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a file that `write` wrote, and the text stored with them.

    Raises:
        UserError: no such file, or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}; give one that was saved.")
    try:
        with safe_open(path, framework="np") as file:
            about = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError, TypeError) as problem:
        raise UserError(f"{path} is damaged, or not a safetensors file ({_reason(problem)}); save it again.") from None
    if about.pop(_DIGEST, None) != digest(arrays):
        raise UserError(f"{path} is damaged: its arrays are not those that were saved; save it again.")
    return arrays, about


def _reason(problem: Exception) -> str:
    return str(problem).splitlines()[0][:200] if str(problem) else type(problem).__name__
