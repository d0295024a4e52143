"""The folder of a run: whether one may start or resume there, and what it says of the run."""

from pathlib import Path

import yaml

from lior_jax import checkpoint
from lior_jax import config as configuration
from lior_jax.config import Config
from lior_jax.errors import UserError

RECORD = "config.yaml"
"""Of a run's folder: the configuration that it was started with."""


def existing_folder(run: str | Path) -> Path:
    """The folder, in which a run was started. Raises `UserError` if none was."""
    run = Path(run)
    if not (run / RECORD).is_file():
        raise UserError(f"There is no run at {run}; give the folder of a run that train.py started.")
    return run


def vacant_folder(config: Config) -> Path:
    """The folder of a run to start, which is empty or not there. Raises `UserError` if it is in use."""
    run = Path(config.run.directory)
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(
            f"{run} already holds a run; go on with it by --resume {run}, or choose another folder by "
            f"--set run.directory={run}-2."
        )
    return run


def make_folder(run: Path, config: Config) -> None:
    """Make the folder and write the record of the configuration. Raises `UserError` if that cannot be done."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        record = yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
        (run / RECORD).write_text("# What this run was started with: a record, not to be edited.\n" + record, encoding="utf-8")
    except OSError as problem:
        raise UserError(f"run.directory: {run} cannot be written to ({problem.strerror}); choose another folder.") from None


def resume_config(run: str | Path) -> Config:
    """The configuration that a run was started with. Raises `UserError` if there is no run."""
    config = configuration.load(existing_folder(run) / RECORD)
    return configuration.replace(config, "run", directory=str(run))


def saved_metadata(run: Path, config: Config) -> checkpoint.Metadata | None:
    """What the newest readable checkpoint says of the run; None if the run was stopped before its first checkpoint.

    Raises:
        UserError: the run was started with another configuration.
    """
    if not (run / checkpoint.FOLDER).is_dir():
        return None
    with checkpoint.Checkpoints(run) as checkpoints:
        newest = checkpoints.newest(checkpoints.metadata)
    if newest is None:
        return None
    _, metadata = newest
    saved = configuration.validate(metadata.config, f"The configuration saved in {run}")
    # A run may have been moved, and a configuration file need not name the vocabulary.
    config = configuration.replace(config, "run", directory=saved.run.directory)
    if config.model.vocab_size is None:
        config = configuration.replace(config, "model", vocab_size=saved.model.vocab_size)
    changed = configuration.differences(saved, config)
    if changed:
        raise UserError(
            f"{run} was started with another configuration ({'; '.join(changed)}); resume it as it was, or choose another "
            "run.directory."
        )
    return metadata
