"""A trained model as a folder that other programs can read: weights as safetensors, the rest as YAML and JSON.

model.safetensors   every array, named by its path in `Params`, such as `blocks.metric.scale`
config.yaml         the `model` section of the configuration
tokenizer.json      in the format of the library `tokenizers` (Hugging Face), which encodes identically
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import yaml

from lior_jax import config as configuration
from lior_jax import model
from lior_jax.data import tokenizer as tokenizers
from lior_jax.data.tokenizer import Tokenizer
from lior_jax.errors import UserError
from lior_jax.model import Params
from lior_jax.settings import ModelConfig
from lior_jax.storage import arrays, checkpoint, files

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.yaml", "tokenizer.json"
_HEADER = f"# Of the model in {WEIGHTS}, as lior_jax exported it: a record, not to be edited.\n"
"""Marks an exported model."""


def export(params: Params, config: ModelConfig, tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write a model into a folder, created if necessary; an earlier export is replaced, and nothing else.

    All files are written completely before the first one is moved into place.

    Args:
        params: including the carried statistics.
        config: the model's, including the vocabulary size.

    Raises:
        UserError: the folder cannot be written to, or contains a run, or files of these names from elsewhere.
    """
    folder = Path(folder)
    _check_vacant(folder)
    record = _HEADER + yaml.safe_dump({"model": config.model_dump()}, sort_keys=False, allow_unicode=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            files.replacing_file(folder / WEIGHTS) as weights,  # renamed last: without it, the folder is not an export
            files.replacing_file(folder / TOKENIZER) as vocabulary,
            files.replacing_file(folder / CONFIG) as configuration_file,
        ):
            arrays.fill(weights, arrays.named(params))
            vocabulary.write_bytes((tokenizer.to_library() + "\n").encode("utf-8", "surrogatepass"))
            configuration_file.write_bytes(record.encode())
    except OSError as problem:
        reason = problem.strerror or problem
        raise UserError(f"{folder} cannot be written to ({reason}); choose another folder.") from None


def _check_vacant(folder: Path) -> None:
    try:
        if (folder / checkpoint.FOLDER).exists():
            raise UserError(f"{folder} holds a run, whose configuration the export would overwrite; choose another folder.")
        there = [name for name in (WEIGHTS, CONFIG, TOKENIZER) if (folder / name).exists()]
        if there and not ((folder / CONFIG).is_file() and (folder / CONFIG).read_bytes().startswith(_HEADER.encode())):
            raise UserError(f"{folder} holds {', '.join(there)} that no export wrote; choose another folder.")
    except OSError as problem:
        raise UserError(f"{folder} cannot be written to ({problem.strerror}); choose another folder.") from None


def is_export(folder: str | Path) -> bool:
    """Whether the folder contains an exported model."""
    try:
        return (Path(folder) / WEIGHTS).is_file()
    except OSError:  # not a valid file name
        return False


def load(folder: str | Path) -> tuple[Params, ModelConfig, Tokenizer]:
    """The model that `export` wrote to a folder, bit for bit.

    Raises:
        UserError: a file is missing or damaged, or the arrays are not those of the configuration.
    """
    folder = Path(folder)
    for name in (WEIGHTS, CONFIG, TOKENIZER):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no {name}; give a folder that a model was exported to.")
    config = configuration.load_model(folder / CONFIG)
    tokenizer = _read_tokenizer(folder / TOKENIZER)
    if config.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"{folder / CONFIG} has a vocabulary of {config.vocab_size}, but its tokenizer has {tokenizer.vocab_size} "
            "tokens; export the model again."
        )
    saved, _ = arrays.read(folder / WEIGHTS)
    like = jax.eval_shape(partial(model.init, config=config), jax.random.key(0))
    return _restore(saved, like, folder / WEIGHTS), config, tokenizer


def _restore(saved: dict[str, Any], like: Params, source: Path) -> Params:
    """The arrays in the structure of the abstract tree `like`."""
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}
    for name in sorted(wanted.keys() ^ saved.keys()):
        fault = "has no array" if name in wanted else "has an array that its configuration does not know,"
        raise UserError(f"{source} {fault} {name}; it belongs to another config.yaml.")
    for name, leaf in wanted.items():
        if (saved[name].shape, saved[name].dtype) != (leaf.shape, leaf.dtype):
            raise UserError(
                f"{source} has {name} as {saved[name].dtype} {list(saved[name].shape)}, but its configuration needs "
                f"{leaf.dtype} {list(leaf.shape)}; it belongs to another config.yaml."
            )
    return jax.tree.unflatten(structure, [jnp.asarray(saved[name]) for name in wanted])


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
        # Earlier exports used our own format.
        return tokenizers.from_json(values) if "kind" in values else tokenizers.from_library(text, str(path))
    except UserError:
        raise
    except Exception as problem:  # whatever the library raises
        raise UserError(f"{path} is damaged ({problem}); export the model again.") from None
