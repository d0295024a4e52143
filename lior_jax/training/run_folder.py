"""The folder of a run: whether a run may start or resume there, and its records."""

import time
from pathlib import Path
from typing import NamedTuple

import yaml

from lior_jax import config as configuration
from lior_jax.errors import UserError
from lior_jax.settings import Config
from lior_jax.storage import checkpoint, files, lock
from lior_jax.training import bad_steps, metrics

RECORD = "config.yaml"
"""File in a run's folder with the configuration that it was started with."""
PROFILE = "profile"
"""Subfolder of traces."""
_HEADER = "# What this run was started with: a record, not to be edited.\n"
_LEFTOVERS = {
    *(lock.FILE, lock.HOLDER, RECORD, "environment.json"),
    *(metrics.FILE, "tensorboard", bad_steps.FOLDER, checkpoint.FOLDER, PROFILE),
}
"""Files that a run leaves if it ends before its first checkpoint. A run that starts there replaces them and nothing else."""

FREE = frozenset(
    {
        *("training.log_every", "training.save_every", "training.keep", "training.keep_every", "training.patience"),
        *("training.eval_every", "sample.prompt", "sample.tokens", "sample.temperature"),
        *("learning.check_every", "learning.nudge_bias_limit", "training.track", "data.path"),
        *("training.accumulate", "parallel.data", "parallel.model", "parallel.shard_parameters"),
    }
)
"""Keys that a resume may change without `--force`: no parameter or figure of any step depends on them, only which of them are
logged and kept. (A corpus is identified by its text, not its path; sums are rounded
differently for other parts of a batch and on other devices.)"""


LENGTH = "training.steps"
"""A key that a resume may also change, to at least the step reached. It affects the learning rates of later steps."""


class Saved(NamedTuple):
    """The state of a run to resume, from its newest intact checkpoint."""

    step: int
    metadata: checkpoint.Metadata
    config: Config
    forced: list[str]
    """Forced differences that change the run: `section.key: old → new`."""


def existing_folder(run: str | Path) -> Path:
    """The folder, if it contains a run. Raises `UserError` if not."""
    run = Path(run)
    try:
        found = (run / RECORD).is_file() or checkpoint.Checkpoints(run).latest is not None
    except OSError as problem:
        raise UserError(f"The run {run} cannot be read: {problem.strerror}.") from None
    if not found:
        raise UserError(f"There is no run at {run}; give the folder of a run that training started.")
    return run


def vacant_folder(config: Config) -> Path:
    """The folder of a run to start: missing, empty, or left by a run that ended before its first checkpoint.

    Raises:
        UserError: it contains a run, or other files.
    """
    run = Path(config.run.directory)
    try:
        other = files.kind(run)
        names = sorted(path.name for path in run.iterdir()) if other == "a folder" else []
    except FileNotFoundError:
        return run
    except OSError as problem:
        raise _unusable(run, problem) from None
    if other != "a folder":
        raise UserError(f"run.directory: {run} is {other or 'a file'}; choose a folder, which need not exist yet.")
    another = f"choose another folder by --set run.directory={run}-2."
    if _saves(run):
        raise UserError(f"{run} already holds a run; continue it with --resume {run}, or {another}")
    # A run creates its lock first: without it, the files are not a run's.
    foreign = [name for name in names if lock.FILE not in names or not _is_leftover(run / name)]
    if foreign:
        named = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise UserError(f"{run} contains {named}, not written by a run; move it away, or {another}")
    return run


def _saves(run: Path) -> list[str]:
    """All checkpoints: intact ones, and damaged ones that were set aside."""
    try:
        names = [path.name for path in (run / checkpoint.FOLDER).iterdir()]
    except OSError:
        return []
    return [name for name in names if not name.startswith(files.SAVING)]


def _is_leftover(path: Path) -> bool:
    """Whether a file was written by a run; a record only if it is from `write_record`, not from the user."""
    if path.name.startswith(files.SAVING):
        return True
    try:
        return path.name in _LEFTOVERS and (path.name != RECORD or path.read_bytes().startswith(_HEADER.encode()))
    except OSError:
        return False


def make_folder(run: Path) -> None:
    """Create the folder. Raises `UserError` if that fails."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        (run / lock.FILE).touch()
    except OSError as problem:
        raise _unusable(run, problem) from None


def clear(run: Path) -> None:
    """Remove the figures, bad steps and sessions of a run that ended before its first checkpoint, in a folder accepted by
    `vacant_folder`. Raises `UserError` if that fails."""
    try:
        for name in _LEFTOVERS - {lock.FILE, lock.HOLDER, RECORD}:
            path = run / name
            if path.is_dir():
                files.remove(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as problem:
        raise _unusable(run, problem) from None


def write_record(run: Path, config: Config) -> None:
    """Write the record of the configuration."""
    text = yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
    files.write_atomically(run / RECORD, _HEADER + text)


def resume_config(run: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Config:
    """The configuration that a run was started with, with overrides as in `config.load`; that of the newest intact
    checkpoint if the record is lost. Raises `UserError` if there is no run."""
    run = existing_folder(run)
    if (run / RECORD).is_file():
        config = configuration.load(run / RECORD, overrides)
    else:
        with checkpoint.open_run(run) as checkpoints:
            newest = checkpoints.newest(checkpoints.metadata)
        assert newest is not None  # `open_run` refuses a run without checkpoints
        _, metadata, _ = newest
        config = configuration.parse(yaml.safe_dump(metadata.config), f"The configuration saved in {run}", overrides)
    return configuration.replace(config, "run", directory=str(run))


def sees(run: Path) -> bool:
    """Whether this process sees the folder of a run that another one has just created, within a moment."""
    for _ in range(50):
        if (run / RECORD).is_file():
            return True
        time.sleep(0.1)  # a network file system remembers for a while what was not there
    return False


def saved(run: Path, config: Config, force: bool = False, at: int | None = None) -> Saved | None:
    """The state of the run in its newest intact checkpoint; None if the run stopped before its first checkpoint.

    Args:
        config: with which the run is to continue.
        force: whether it may differ in keys that change the run.
        at: step of the checkpoint that another process has chosen and verified, 0 for none.

    Raises:
        UserError: the run was started with another configuration, or is already past the end of this one.
    """
    with checkpoint.Checkpoints(run) as checkpoints:
        if at is not None:
            checkpoints.trust(at)
            step, metadata = at, checkpoints.metadata(at) if at else None
        else:
            newest = checkpoints.newest(checkpoints.metadata)
            step, metadata = newest[:2] if newest else (0, None)
    if metadata:
        old = configuration.validate(metadata.config, f"The configuration saved in {run}")
    else:
        old = configuration.load(run / RECORD)
    # A run may have been moved, and a configuration file need not name the vocabulary.
    config = configuration.replace(config, "run", directory=old.run.directory)
    if config.model.vocab_size is None:
        config = configuration.replace(config, "model", vocab_size=old.model.vocab_size)
    changed = [change for change in configuration.differences(old, config) if change.split(":")[0] not in FREE | {LENGTH}]
    if changed and not force:
        raise UserError(
            f"{run} was started with another configuration ({'; '.join(changed)}); resume it unchanged, change it with "
            f"--force, or start a new run with its weights by --init-from {run}."
        )
    if config.training.steps < step:
        raise UserError(
            f"{LENGTH}: {run} has reached step {step:,}, beyond {config.training.steps:,}; give {step} or more, or begin a new "
            f"run with its weights by --init-from {run}."
        )
    return Saved(step, metadata, old, changed) if metadata else None


def is_finished(run: Path, config: Config) -> bool:
    """Whether a run is finished according to its recorded configuration. Read-only."""
    if not (run / RECORD).is_file():
        return False
    recorded = configuration.load(run / RECORD)
    config = configuration.replace(config, "run", directory=recorded.run.directory)
    for section, key in (("model", "vocab_size"), ("sample", "prompt")):  # these follow from the corpus
        if getattr(getattr(config, section), key) is None:
            config = configuration.replace(config, section, **{key: getattr(getattr(recorded, section), key)})
    with checkpoint.Checkpoints(run) as checkpoints:
        latest = checkpoints.latest
        try:
            return recorded == config and latest == config.training.steps and not checkpoints.owes_evaluation(latest)
        except checkpoint.DamageError:
            return False


def _unusable(run: Path, problem: OSError) -> UserError:
    return UserError(f"run.directory: {run} cannot be written to ({problem.strerror}); choose another folder.")
