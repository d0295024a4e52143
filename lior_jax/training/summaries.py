"""What a run came to: `RUN/summary.json`."""

import json
import math
import time
from pathlib import Path
from typing import NamedTuple

from lior_jax import model
from lior_jax.data.corpus import Corpus
from lior_jax.inference import Engine, scoring
from lior_jax.settings import Config
from lior_jax.storage import files
from lior_jax.training import run_folder

FILE = "summary.json"


class Summary(NamedTuple):
    """What a run came to."""

    directory: Path
    step: int
    parameters: int
    best_step: int
    nats_per_character: float
    """Loss of the best checkpoint over the whole validation part."""
    seconds: float
    """Duration of the session that wrote it, the final validation included."""

    @property
    def bits_per_character(self) -> float:
        return self.nats_per_character / math.log(2)


def write(
    run: Path, config: Config, corpus: Corpus, step: int, best: int, started: float, progress: scoring.Progress
) -> Summary:
    """Score the best checkpoint over the whole validation part, and write down what the run came to.

    Args:
        started: when the session began, by `time.monotonic`.
        progress: goes through the windows.
    """
    engine = Engine.from_checkpoint(run, best)
    windows = scoring.cover(corpus.validation, config.model.context, config.training.eval_stride)
    nats = scoring.mean_nats(engine.params, windows, config.model, progress) / corpus.characters_per_token
    summary = Summary(run, step, model.count(engine.params), best, nats, time.monotonic() - started)
    values = summary._asdict() | {"directory": str(run), "bits_per_character": summary.bits_per_character}
    files.write_atomically(run / FILE, json.dumps(values, indent=2) + "\n")
    return summary


def of_finished(config: Config) -> Summary | None:
    """The summary of a run that is finished, from its file; None if there is anything left to do."""
    run = run_folder.existing_folder(config.run.directory)
    if not run_folder.is_finished(run, config):
        return None
    try:
        values = json.loads((run / FILE).read_text(encoding="utf-8"))
        summary = Summary(**{name: values[name] for name in Summary._fields} | {"directory": run})
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or a damaged one, which is written anew
        return None
    return summary if summary.step == config.training.steps else None
