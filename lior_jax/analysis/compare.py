"""Comparison of runs: their losses, their cost, and the differences of their configurations."""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from lior_jax import config as configuration
from lior_jax import options
from lior_jax.analysis import plots
from lior_jax.errors import UserError
from lior_jax.settings import Config
from lior_jax.training import environment
from lior_jax.training import metrics as run_metrics
from lior_jax.training.run_folder import existing_folder, resume_config

PICTURE = "comparison.png"
_TEXT = ("data.path", "data.validation_fraction")
"""Keys that determine the text on which a loss is measured."""
_WINDOWS = ("training.eval_windows", "training.eval_stride", "model.context")
"""Keys that determine the windows of a run's evaluations."""
_NONE = "–"


class Run(NamedTuple):
    """The records of a run."""

    name: str
    config: Config
    lines: list[dict[str, Any]]
    """Lines of its metrics."""
    summary: dict[str, Any]
    """Empty if the run is not finished."""
    sessions: list[dict[str, Any]]
    """Entries of its environment."""

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["kind"] == kind]

    @property
    def tokens_per_step(self) -> int:
        return self.config.training.batch_size * self.config.model.context


def compare(folders: Sequence[str | Path]) -> tuple[str, Path]:
    """Compare runs: a table, and a picture `comparison.png` in the first run's folder.

    Raises:
        UserError: no run, a damaged one, or a folder that cannot be written to.
    """
    runs = read(folders)
    path = Path(folders[0]) / PICTURE
    try:
        picture(runs).savefig(path)
    except OSError as problem:
        raise UserError(f"{path} cannot be written ({problem.strerror}).") from None
    return table(runs), path


def read(folders: Sequence[str | Path]) -> list[Run]:
    """Runs from their folders, named by the distinct parts of their paths. Raises `UserError` as `compare` does."""
    names = _names([Path(folder) for folder in folders])
    return [_read(name, existing_folder(folder)) for name, folder in zip(names, folders, strict=True)]


def table(runs: Sequence[Run]) -> str:
    """A text table of the figures of runs, one column each, and the keys of their configurations that differ."""
    measured = [(label, [figure(run) for run in runs]) for label, figure in _FIGURES.items()]
    measured = [row for row in measured if set(row[1]) != {_NONE}]
    different = differences(runs)
    head = ("", [run.name for run in runs])
    rows = _aligned([head, *measured, ("", [""] * len(runs)), *different])
    if not different:
        rows[-1] = "The configurations are the same."
    return "\n".join([*rows, *(f"\n{sentence}" for sentence in _warnings(dict(different)))])


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Keys of the configurations that differ, except the runs' folders, with each run's value."""
    values = [configuration.flat(run.config) for run in runs]
    keys = [key for key in values[0] if key != "run.directory" and any(one[key] != values[0][key] for one in values)]
    return [(key, [options.written(one[key]) for one in values]) for key in keys]


def picture(runs: Sequence[Run]) -> Figure:
    """Validation losses over steps, tokens and seconds."""
    return plots.loss_over({run.name: curve(run) for run in runs})


def curve(run: Run) -> plots.Curve:
    """A run's evaluations, with the tokens read and the training time, without evaluations, up to each."""
    evaluations = run.of_kind("validation")
    steps = np.array([line["step"] for line in evaluations], float)
    nats = np.array([line["nats_per_character"] for line in evaluations], float)
    return plots.Curve(steps, steps * run.tokens_per_step, _seconds(run, steps), nats)


def _seconds(run: Run, steps: np.ndarray) -> np.ndarray:
    """Training time up to each step, from the speeds in the metrics.

    A line's speed is that of the steps since the previous line. Steps without one, such as the first after a pause, are assumed
    to have the median speed; so are those after the last line.
    """
    logged = run.of_kind("train")
    speeds = [line["tokens_per_second"] for line in logged if "tokens_per_second" in line]
    if not speeds:
        return np.full(len(steps), np.nan)
    middle = float(np.median(speeds))
    ends = np.array([0, *(line["step"] for line in logged)], float)
    pace = np.array([run.tokens_per_step / line.get("tokens_per_second", middle) for line in logged])
    at_ends = np.concatenate([[0], np.cumsum(np.diff(ends) * pace)])
    after = np.maximum(steps - ends[-1], 0) * run.tokens_per_step / middle
    return np.interp(steps, ends, at_ends) + after


# --- one run's figures -----------------------------------------------------------------------------------------------


def _read(name: str, folder: Path) -> Run:
    summary, path = {}, folder / "summary.json"
    if path.is_file():
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"{path} is damaged; repair or remove it.") from None
    return Run(name, resume_config(folder), run_metrics.read(folder), summary, environment.read(folder))


def _names(folders: list[Path]) -> list[str]:
    """The shortest distinct suffixes of paths."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("The same run is named twice; give each once.")


def _best(run: Run) -> str:
    best = min(run.of_kind("validation"), key=lambda line: line["nats_per_character"], default=None)
    return f"{best['nats_per_character']:.4f} (step {best['step']:,})" if best else _NONE


def _last(run: Run) -> str:
    evaluations = run.of_kind("validation")
    return f"{evaluations[-1]['nats_per_character']:.4f}" if evaluations else _NONE


def _summarised(name: str, form: str) -> Callable[[Run], str]:
    return lambda run: format(run.summary[name], form) if name in run.summary else _NONE


def _training_loss(run: Run) -> str:
    lines = run.of_kind("train")[-10:]
    return f"{np.mean([line['loss'] for line in lines]):.4f}" if lines else _NONE


def _steps(run: Run) -> int:
    return max((line["step"] for line in run.lines), default=0)


def _minutes(run: Run) -> str:
    seconds = _seconds(run, np.array([_steps(run)], float))[0]
    return f"{seconds / 60:,.3g}" if np.isfinite(seconds) else _NONE


def _wall_minutes(run: Run) -> str:
    """The total over all sessions that ended."""
    moments = [(one["begin"], one["end"]) for one in run.sessions if one.get("end")]
    seconds = [(datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds() for begin, end in moments]
    return f"{sum(seconds) / 60:.1f}" if seconds else _NONE


def _speed(run: Run) -> str:
    speeds = [line["tokens_per_second"] for line in run.of_kind("train") if "tokens_per_second" in line]
    return f"{np.median(speeds):,.0f}" if speeds else _NONE


_FIGURES: dict[str, Callable[[Run], str]] = {
    "whole validation part, best, nats/char": _summarised("nats_per_character", ".4f"),
    "… with half a window of history": _summarised("nats_per_character_with_history", ".4f"),
    "whole validation part, last, nats/char": _summarised("last_nats_per_character", ".4f"),
    "… last, with half a window of history": _summarised("last_nats_per_character_with_history", ".4f"),
    "evaluations, best, nats/char": _best,
    "evaluations, last, nats/char": _last,
    "training, last lines, nats/token": _training_loss,
    "parameters": _summarised("parameters", ","),
    "steps": lambda run: f"{_steps(run):,}",
    "tokens read": lambda run: f"{_steps(run) * run.tokens_per_step:,}",
    "tokens/s, median": _speed,
    "minutes of training": _minutes,
    "minutes of all sessions": _wall_minutes,
}


# --- rendering -------------------------------------------------------------------------------------------------------


def _aligned(rows: list[tuple[str, list[str]]]) -> list[str]:
    left = max(len(label) for label, _ in rows)
    widths = [max(map(len, column)) for column in zip(*(cells for _, cells in rows), strict=True)]
    lines = (f"{label:<{left}}" + "".join(f"  {c:>{w}}" for c, w in zip(cells, widths, strict=True)) for label, cells in rows)
    return [line.rstrip() for line in lines]


def _warnings(different: dict[str, list[str]]) -> list[str]:
    """Warnings for the reader of the table."""
    said = []
    if any(key in different for key in _TEXT):
        said.append("The losses are of different texts, so they do not show which run is better.")
    elif any(key in different for key in _WINDOWS):
        said.append("The evaluations go by different windows; compare the losses of the whole validation part.")
    return said
