"""Bad steps, whose estimates are not finite or exceed the residual limit: saved for inspection and counted; too many in a row
end the run.

`RUN/bad_steps/STEP` contains `description.json`, the batch (`batch.npz`), and in the folder `state` a checkpoint of the
parameters and the optimiser's state before the step. As bad steps are not applied, consecutive ones have the same state, which
only the first one saves.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lior_jax.data.tokenizer import Tokenizer
from lior_jax.errors import UserError
from lior_jax.learning import Info, soundness
from lior_jax.settings import Config
from lior_jax.storage import checkpoint, files, snapshot
from lior_jax.storage.checkpoint import Metadata
from lior_jax.storage.writers import ALONE, Writers
from lior_jax.training.events import RefusedStep

FOLDER = "bad_steps"
KEPT = 20
"""Number of latest bad steps whose files are kept."""


class BadSteps:
    """The bad steps of one session of a run."""

    def __init__(self, run: Path, config: Config, tokenizer: Tokenizer, metadata: Metadata, writers: Writers = ALONE):
        self.folder, self.config, self.tokenizer, self.metadata = run / FOLDER, config, tokenizer, metadata
        self.writers = writers
        self.in_a_row = 0

    def keep(self, step: int, info: Info, batch: tuple[np.ndarray, np.ndarray], trees: dict[str, Any]) -> RefusedStep:
        """Record a bad step and count it.

        Args:
            batch: tokens and targets, `[B, L]` each.
            trees: parameters and optimiser state before the step.

        Returns:
            The event to report.
        """
        self.in_a_row += 1
        reasons = tuple(soundness.complaints(info, self.config.learning))
        refused = RefusedStep(step, reasons, self.folder / str(step))
        try:
            self._write(step, ", ".join(reasons), info, batch, trees)
        except Exception as problem:  # a disk error must not end the run
            return replace(refused, problem=str(problem))
        return refused

    def stop_if_too_many(self, step: int) -> None:
        """Raise `UserError` after too many bad steps in a row."""
        if self.in_a_row >= self.config.training.patience:
            run = self.folder.parent
            way = "No checkpoint was saved before: start again with"
            if _saves(run):
                way = f"The last good checkpoint is kept: go on with --resume {run} --force and"
            raise UserError(
                f"The numbers of {self.in_a_row} steps in a row, up to step {step}, were bad, and none was applied; look into "
                f"{self.folder}. {way} a tenth of the learning rate, --set "
                f"optimizer.learning_rate={self.config.optimizer.learning_rate / 10:g}, or with one that --find-rate suggests."
            )

    def _write(self, step: int, reasons: str, info: Info, batch: tuple[np.ndarray, np.ndarray], trees: dict[str, Any]) -> None:
        state_of = step - self.in_a_row + 1
        description = {
            "step": step,
            "reasons": reasons,
            "in_a_row": self.in_a_row,
            "state": f"{FOLDER}/{state_of}/state",
            "loss": str(info.loss),
            "gradient_norm": str(info.gradient_norm),
            "residual": str(info.reversibility),
            "text": [self.tokenizer.decode(row) for row in batch[0]],
        }

        def prepare(folder: Path) -> None:
            (folder / "description.json").write_bytes((json.dumps(description, indent=2) + "\n").encode())
            np.savez(folder / "batch.npz", tokens=batch[0], targets=batch[1])
            if step == state_of:
                (folder / "state").mkdir()
                snapshot.reserve(folder / "state", trees)

        with snapshot.replacing_folder(self.folder / str(step), prepare, self.writers) as folder:
            if step == state_of:
                record = {"step": step - 1} | self.metadata._asdict()
                whole = jax.tree.map(np.asarray, trees) if self.writers.count == 1 else trees
                snapshot.fill(folder / "state", whole, record, self.writers)
        if not self.writers.is_first:
            return
        for old in sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())[:-KEPT]:
            files.remove(self.folder / str(old))


def _saves(run: Path) -> bool:
    """Whether there is a checkpoint, or one being saved."""
    try:
        return any((run / checkpoint.FOLDER).iterdir())
    except OSError:
        return False
