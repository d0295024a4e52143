"""The folder of a run: whether one may start or resume there, and what it says of the run."""

from pathlib import Path
from typing import NamedTuple

import yaml

from lior_jax import config as configuration
from lior_jax.errors import UserError
from lior_jax.settings import Config
from lior_jax.storage import checkpoint, files, lock

RECORD = "config.yaml"
"""Of a run's folder: the configuration that it was started with."""

FREE = frozenset(
    {
        *("training.log_every", "training.save_every", "training.keep", "training.keep_every", "training.patience"),
        *("training.eval_every", "sample.prompt", "sample.tokens", "sample.temperature"),
        "data.path",
    }
)
"""Keys that a resume may change without `--force`: no parameter and no figure of any step depends on them, only which
are written down and kept. (A corpus is known by its text, wherever it lies.)"""


class Saved(NamedTuple):
    """What the newest whole checkpoint says of a run to resume."""

    metadata: checkpoint.Metadata
    config: Config
    forced: list[str]
    """Differences from it that change the run, and were forced: `section.key: old → new`."""


def existing_folder(run: str | Path) -> Path:
    """The folder, in which a run was started. Raises `UserError` if none was."""
    run = Path(run)
    try:
        found = (run / RECORD).is_file() or checkpoint.Checkpoints(run).latest is not None
    except OSError as problem:
        raise UserError(f"The run {run} cannot be read: {problem.strerror}.") from None
    if not found:
        raise UserError(f"There is no run at {run}; give the folder of a run that train.py started.")
    return run


def vacant_folder(config: Config) -> Path:
    """The folder of a run to start, which is empty or not there. Raises `UserError` if it is in use."""
    run = Path(config.run.directory)
    try:
        other = files.kind(run)
        used = other == "a folder" and not all(lock.is_left_behind(path.name) for path in run.iterdir())
    except FileNotFoundError:
        return run
    except OSError as problem:
        raise _unusable(run, problem) from None
    if other != "a folder":
        raise UserError(f"run.directory: {run} is {other or 'a file'}; choose a folder, which need not exist yet.")
    if used:
        raise UserError(
            f"{run} already holds a run; go on with it by --resume {run}, or choose another folder by "
            f"--set run.directory={run}-2."
        )
    return run


def make_folder(run: Path) -> None:
    """Make the folder. Raises `UserError` if that cannot be done."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        (run / lock.FILE).touch()
    except OSError as problem:
        raise _unusable(run, problem) from None


def write_record(run: Path, config: Config) -> None:
    """Write down the configuration."""
    text = yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
    files.write_atomically(run / RECORD, "# What this run was started with: a record, not to be edited.\n" + text)


def resume_config(run: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Config:
    """The configuration that a run was started with, with overrides as in `config.load`; that of the newest whole
    checkpoint if the record is lost. Raises `UserError` if there is no run."""
    run = existing_folder(run)
    if (run / RECORD).is_file():
        config = configuration.load(run / RECORD, overrides)
    else:
        with checkpoint.open_run(run) as checkpoints:
            _, metadata, _ = checkpoints.newest(checkpoints.metadata)
        config = configuration.parse(yaml.safe_dump(metadata.config), f"The configuration saved in {run}", overrides)
    return configuration.replace(config, "run", directory=str(run))


def saved(run: Path, config: Config, force: bool = False) -> Saved | None:
    """What the newest whole checkpoint says of the run; None if the run was stopped before its first checkpoint.

    Args:
        config: with which the run is to go on.
        force: whether it may differ in keys that change the run.

    Raises:
        UserError: the run was started with another configuration.
    """
    with checkpoint.Checkpoints(run) as checkpoints:
        newest = checkpoints.newest(checkpoints.metadata)
    metadata = newest[1] if newest else None
    if metadata:
        old = configuration.validate(metadata.config, f"The configuration saved in {run}")
    else:
        old = configuration.load(run / RECORD)
    # A run may have been moved, and a configuration file need not name the vocabulary.
    config = configuration.replace(config, "run", directory=old.run.directory)
    if config.model.vocab_size is None:
        config = configuration.replace(config, "model", vocab_size=old.model.vocab_size)
    changed = [change for change in configuration.differences(old, config) if change.split(":")[0] not in FREE]
    if changed and not force:
        raise UserError(
            f"{run} was started with another configuration ({'; '.join(changed)}); resume it as it was, change it by --force, "
            "or choose another run.directory."
        )
    return Saved(metadata, old, changed) if metadata else None


def _unusable(run: Path, problem: OSError) -> UserError:
    return UserError(f"run.directory: {run} cannot be written to ({problem.strerror}); choose another folder.")
