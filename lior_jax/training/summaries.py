"""The results of a run: `RUN/summary.json`."""

import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

from lior_jax import model
from lior_jax.data.corpus import Corpus
from lior_jax.inference import Engine, scoring
from lior_jax.settings import Config
from lior_jax.storage import files
from lior_jax.training import metrics, run_folder

FILE = "summary.json"


class Summary(NamedTuple):
    """Results of a run. Losses are nats per character over the whole validation part, by two protocols: disjoint windows, whose
    targets have contexts of 1 … `context` tokens (nanoGPT's protocol), and windows of which only the last half is scored, so
    that each target has at least half a window of history."""

    directory: Path
    step: int
    parameters: int
    best_step: int
    """Step of the checkpoint of smallest loss among the evaluations."""
    evaluations: int
    """Number of evaluations on that part from which the best was selected."""
    nats_per_character: float
    """Loss of the best checkpoint, disjoint windows."""
    nats_per_character_with_history: float
    """Loss of the best checkpoint, at least half a window of history."""
    last_nats_per_character: float
    """Loss of the last step, disjoint windows."""
    last_nats_per_character_with_history: float
    """Loss of the last step, at least half a window of history."""
    seconds: float
    """Duration of the session that wrote it, including the final validation."""

    @property
    def bits_per_character(self) -> float:
        return self.nats_per_character / math.log(2)


def write(
    run: Path, config: Config, corpus: Corpus, step: int, best: int, started: float, progress: scoring.Progress
) -> Summary:
    """Score the best and the last checkpoint over the whole validation part, and write the summary.

    Args:
        started: start of the session, by `time.monotonic`.
        progress: wraps the iteration over windows.
    """

    def losses(params: model.Params) -> tuple[float, float]:
        context = config.model.context
        disjoint, with_history = (
            scoring.mean_nats(params, scoring.cover(corpus.validation, context, stride), config.model, progress)
            for stride in (context, scoring.half_window(context))
        )
        return disjoint / corpus.characters_per_token, with_history / corpus.characters_per_token

    best_params = Engine.from_checkpoint(run, best).params
    of_best = losses(best_params)
    of_last = of_best if best == step else losses(Engine.from_checkpoint(run, step).params)
    evaluations = sum(line["kind"] == "validation" for line in metrics.read(run))
    summary = Summary(run, step, model.count(best_params), best, evaluations, *of_best, *of_last, time.monotonic() - started)
    values = plain(summary) | {"bits_per_character": summary.bits_per_character}
    files.write_atomically(run / FILE, json.dumps(values, indent=2) + "\n")
    return summary


def plain(summary: Summary) -> dict[str, Any]:
    """A summary as plain values."""
    return summary._asdict() | {"directory": str(summary.directory)}


def parsed(values: dict[str, Any]) -> Summary:
    """The summary of plain values. Raises `KeyError`, `TypeError`."""
    return Summary._make(Path(values[name]) if name == "directory" else values[name] for name in Summary._fields)


def of_finished(config: Config) -> Summary | None:
    """The summary of a finished run, from its file; None if the run is not finished."""
    run = run_folder.existing_folder(config.run.directory)
    if not run_folder.is_finished(run, config):
        return None
    try:
        values = json.loads((run / FILE).read_text(encoding="utf-8"))
        summary = parsed(values | {"directory": run})
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or a damaged one, which is rewritten
        return None
    return summary if summary.step == config.training.steps else None
