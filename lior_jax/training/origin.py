"""The initial state of a new run: parameters drawn from its seed, or those of a trained model (`run.init_from`)."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from lior_jax import config as configuration
from lior_jax import data
from lior_jax.data.corpus import Corpus, with_vocabulary
from lior_jax.data.sources import Report, unreported
from lior_jax.errors import UserError
from lior_jax.inference import Engine, export
from lior_jax.parallel import Devices
from lior_jax.settings import Config
from lior_jax.storage import checkpoint
from lior_jax.training.run_folder import RECORD
from lior_jax.training.step import State, initial_state, placed, state_of

_NAMED = 4
"""Largest number of keys listed in a message."""


class Origin(NamedTuple):
    """A trained model from whose parameters and carried statistics a new run starts."""

    path: str
    """Absolute path."""
    step: int | None
    """Step of the checkpoint; None for an exported model."""
    engine: Engine


class Beginning(NamedTuple):
    """Everything that a new run needs before its folder is created."""

    config: Config
    """The configuration completed from corpus and origin: vocabulary size, tokenizer, and the prompt of the samples."""
    corpus: Corpus
    origin: Origin | None


def begin(config: Config, report: Report = unreported) -> Beginning:
    """Read the corpus of a configuration and, if set, the model to start from, whose tokenizer is kept.

    Args:
        report: reports the progress of a long text.

    Raises:
        UserError: as `data.load`; no such model, or one with a different `model` section; a text with characters outside its
            tokenizer's vocabulary.
    """
    if config.run.init_from is None:
        corpus = data.load(config, report=report)
        return Beginning(with_vocabulary(config, corpus), corpus, None)
    origin = read(config.run.init_from)
    _check(config, origin)
    kept = checkpoint.Metadata({}, origin.engine.tokenizer.to_json(), "")
    # Only char refuses texts.
    kind = kept.tokenizer["kind"]
    config = configuration.replace(config, "data", unknown=config.data.unknown if kind == "char" else "refuse")
    corpus = data.load(config, kept, True, report)
    named = {"bpe": f"bpe:{corpus.tokenizer.vocab_size}", "file": kept.tokenizer.get("path")}.get(kind, kind)
    return Beginning(with_vocabulary(configuration.replace(config, "data", tokenizer=named), corpus), corpus, origin)


def state(beginning: Beginning, devices: Devices | None = None) -> State:
    """The state of step 0, on the devices (by default the first one), with a new optimiser state."""
    config, origin = beginning.config, beginning.origin
    if origin is None:
        return placed(initial_state, jax.random.key(config.run.seed), config, devices)
    params = origin.engine.params
    if devices is not None and devices.processes > 1:  # not arrays of one device of each process
        params = jax.tree.map(np.asarray, params)
    return placed(state_of, params, config, devices)


def read(path: str | Path) -> Origin:
    """The model of a run's best checkpoint, of the checkpoint `RUN/checkpoints/STEP`, or of an export.

    Raises:
        UserError: no such model, or a damaged one.
    """
    run, step = _run_and_step(Path(path))
    if export.is_export(run):
        return Origin(str(run.absolute()), None, Engine.from_checkpoint(run))
    if step is None:
        with checkpoint.open_run(run) as checkpoints:
            step = checkpoints.best
    return Origin(str(run.absolute()), step, Engine.from_checkpoint(run, step))


def config_of(path: str, overrides: tuple[str, ...] | list[str] = ()) -> Config:
    """The configuration of a model's run, with overrides as in `config.load`.

    Raises:
        UserError: there is none, as for an export.
    """
    run, _ = _run_and_step(Path(path))
    if not (run / RECORD).is_file() or export.is_export(run):
        raise UserError(f"{path} has no configuration of a run; give one with --config FILE.")
    return configuration.load(run / RECORD, overrides)


def _run_and_step(path: Path) -> tuple[Path, int | None]:
    if path.parent.name == checkpoint.FOLDER and path.name.isdecimal():
        return path.parents[1], int(path.name)
    return path, None


def _check(config: Config, origin: Origin) -> None:
    """Raise `UserError` unless the parameters fit the configuration's model."""
    there, here = (configuration.flat(model, "model.") for model in (origin.engine.config, config.model))
    here["model.vocab_size"] = here["model.vocab_size"] or there["model.vocab_size"]
    other = [f"{key} is {there[key]!r} there and {here[key]!r} here" for key in here if here[key] != there[key]]
    if origin.engine.config.dynamics != config.model.dynamics:
        other.append(f"learning.rule: {config.learning.rule} needs {config.model.dynamics} dynamics, unlike the model")
    if other:
        named = "; ".join(other[:_NAMED]) + (f"; and {len(other) - _NAMED} more" if len(other) > _NAMED else "")
        raise UserError(f"run.init_from: {origin.path} has another model ({named}); give the model section that it has.")
