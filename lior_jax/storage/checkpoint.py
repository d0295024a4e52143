"""Checkpoints of a run: the latest few, every N-th and the best, each complete for resuming and inference.

A checkpoint contains the parameters, the optimiser's state, and as JSON the configuration, the tokenizer and other metadata of
the run. There is no random state: data and samples are pure functions of the seed and the step. Saving runs concurrently with
training; a failed save is reported and affects neither training nor the next save.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lior_jax.errors import UserError
from lior_jax.storage import files, snapshot
from lior_jax.storage.writers import ALONE, Writers

FOLDER = "checkpoints"
ASIDE = "damaged-"
"""Prefix of the names of damaged checkpoints that a resumed run has set aside."""


class Metadata(NamedTuple):
    """Description of a run, as plain values."""

    config: dict[str, Any]
    tokenizer: dict[str, Any]
    corpus: str
    """SHA-256 of the text."""


class DamageError(UserError):
    """A checkpoint that cannot be used; `reason` is the cause alone, the message a whole sentence."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class Checkpoints:
    """The checkpoints of one run folder; use as a context manager, which waits for unfinished saves.

    Args:
        run: the run's folder.
        keep: number of latest checkpoints to keep, in addition to the best; None to open a run for reading only.
        keep_every: also keep the checkpoints of all steps that are multiples of this.
        writers: the processes that save together.
    """

    def __init__(
        self,
        run: str | Path,
        keep: int | None = None,
        keep_every: int | None = None,
        writers: Writers = ALONE,
    ):
        self.run, self.folder = Path(run), Path(run) / FOLDER
        self._keep, self._keep_every, self._writers = keep, keep_every, writers
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._saving: tuple[int, Future] | None = None
        self._complaints: list[str] = []
        self._whole: set[int] = set()
        """Steps whose manifests have been verified."""
        if keep is not None and writers.is_first:
            files.tidy(self.folder)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.wait()
        self._worker.shutdown()

    @property
    def steps(self) -> list[int]:
        """Steps of all checkpoints, in order."""
        try:
            names = [path.name for path in self.folder.iterdir()]
        except OSError:
            return []
        return sorted(int(name) for name in names if name.isascii() and name.isdigit() and name == str(int(name)))

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """Step of the checkpoint of smallest validation loss, or the newest if none was validated."""
        losses = {step: loss for step in self.steps if (loss := self.validation_loss(step)) is not None}
        return min(losses, key=lambda step: (losses[step], -step)) if losses else self.latest

    def save(
        self,
        step: int,
        params: Any,
        optimizer_state: Any,
        metadata: Metadata,
        validation_loss: float | None,
        owes_evaluation: bool = False,
    ) -> None:
        """Start saving a step, replacing any checkpoint of the same step; waits for an earlier save to finish. All writers must
        call it.

        Args:
            validation_loss: determines the best checkpoint; None if the step was not evaluated.
            owes_evaluation: the run was stopped before an evaluation that was due; a resumed run starts with it.
        """
        self.wait()
        trees = snapshot.to_host({"params": params, "optimizer": optimizer_state}, self._writers)
        record = metadata._asdict() | {"validation_loss": validation_loss, "owes_evaluation": owes_evaluation}
        self._whole.discard(step)
        self._saving = step, self._worker.submit(self._save, step, trees, record)

    def wait(self) -> None:
        """Return when the save is finished, whether or not it succeeded."""
        if self._saving is None:
            return
        step, future = self._saving
        self._saving = None
        problem = future.exception()
        if problem is not None:
            newest = f"the newest intact one is that of step {self.latest}" if self.steps else "there is no other yet"
            self._complaints.append(f"The checkpoint of step {step} could not be saved ({_one_line(problem)}); {newest}.")

    def complaints(self) -> list[str]:
        """Errors of finished saves that have not been reported yet, one sentence each."""
        if self._saving is not None and self._saving[1].done():
            self.wait()
        told, self._complaints = self._complaints, []
        return told

    def first_whole(self, steps: Iterable[int], read: Callable[[int], Any]) -> tuple[int, Any, list[str]] | None:
        """The first of `steps` that `read` succeeds on, its result, and a sentence for each damaged step before it.

        Returns None if `steps` is empty. Raises `UserError` if all are damaged.
        """
        passed: list[tuple[int, DamageError]] = []
        for step in steps:
            try:
                value = read(step)
            except DamageError as problem:
                passed.append((step, problem))
                continue
            sentence = "The checkpoint of step {} is damaged ({}); using that of step {} instead."
            return step, value, [sentence.format(other, problem.reason, step) for other, problem in passed]
        if passed:
            raise passed[0][1]
        return None

    def newest(self, read: Callable[[int], Any]) -> tuple[int, Any, list[str]] | None:
        """`first_whole`, starting from the newest checkpoint."""
        return self.first_whole(reversed(self.steps), read)

    def trust(self, step: int) -> None:
        """Take a checkpoint that another process has verified as whole."""
        self._whole.add(step)

    def set_aside(self, after: int) -> None:
        """Rename the checkpoints after a step: the run continues from that step, and they are no longer part of it."""
        for step in self.steps:
            if step > after:
                aside = self.folder / f"{ASIDE}{step}"
                if aside.exists():
                    files.remove(aside)
                (self.folder / str(step)).rename(aside)

    def validation_loss(self, step: int) -> float | None:
        """Validation loss of a step in nats per token; None if the step was not evaluated or its record cannot be read."""
        try:
            loss = snapshot.read_record(self.folder / str(step)).get("validation_loss")
        except snapshot.SnapshotError:
            return None
        return loss if isinstance(loss, float) else None

    def metadata(self, step: int) -> Metadata:
        """The description of the run stored with a step. Raises `DamageError`."""
        return self._read(step, lambda folder: Metadata(*(snapshot.read_record(folder)[name] for name in Metadata._fields)))

    def owes_evaluation(self, step: int) -> bool:
        """Whether the run was stopped before an evaluation that was due at this step."""
        return bool(self._read(step, snapshot.read_record).get("owes_evaluation"))

    def params(self, step: int, like: Any) -> Any:
        """Parameters, with the structure and types of the abstract tree `like`."""
        return self._read(step, lambda folder: snapshot.read_tree(folder, "params", like))

    def optimizer(self, step: int, like: Any) -> Any:
        """Optimiser state, with the structure and types of the abstract tree `like`."""
        return self._read(step, lambda folder: snapshot.read_tree(folder, "optimizer", like))

    def _read(self, step: int, read: Callable[[Path], Any]) -> Any:
        """Verify a checkpoint's manifest, once, and read from it. Raises `DamageError`."""
        folder = self.folder / str(step)
        try:
            if step not in self._whole:
                snapshot.verify(folder)
                self._whole.add(step)
            return read(folder)
        except (snapshot.SnapshotError, KeyError, TypeError) as problem:
            reason = str(problem) if isinstance(problem, snapshot.SnapshotError) else f"{snapshot.RECORD} is incomplete"
        others = [str(other) for other in self.steps if other != step]
        mend = f"use that of step {' or '.join(others)}" if others else "there is no other to fall back on"
        message = f"The checkpoint of step {step} in {self.run} is damaged or was saved by another version ({reason}); {mend}."
        raise DamageError(reason, message)

    def _save(self, step: int, trees: dict[str, Any], record: dict[str, Any]) -> None:
        assert self._keep is not None  # a run opened for reading is never saved
        snapshot.write(self.folder / str(step), trees, record, self._writers)
        if not self._writers.is_first:
            return
        kept = set(self.steps[-self._keep :]) | {self.best}
        for other in self.steps:
            if other not in kept and not (self._keep_every and other % self._keep_every == 0):
                files.remove(self.folder / str(other))


def open_run(run: str | Path) -> Checkpoints:
    """The checkpoints of an existing run, for reading. Raises `UserError` if there are none."""
    try:
        is_folder, has_checkpoints = Path(run).is_dir(), (Path(run) / FOLDER).is_dir()
    except OSError as problem:
        raise UserError(f"The run {run} cannot be read: {problem.strerror}.") from None
    if not is_folder:
        raise UserError(f"There is no run at {run}; give the folder that training wrote, for example runs/quickstart.")
    if not has_checkpoints:
        raise UserError(f"{run} holds no checkpoints; give the folder that training wrote, or train longer.")
    checkpoints = Checkpoints(run)
    if checkpoints.latest is None:
        raise UserError(f"{run} holds no finished checkpoint yet; train until the first one is saved.")
    return checkpoints


def abstract(function: Callable[..., Any], *args: Any, place: Callable[[Any], Any] | None = None) -> Any:
    """Shapes, types and shardings of a function's result, as a template for restoring it.

    Args:
        place: maps a tree of shapes to their shardings; by default everything is on the default device.
    """
    shapes = jax.eval_shape(function, *args)
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places = place(shapes) if place else jax.tree.map(lambda _: default, shapes)
    return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, places)


def _one_line(problem: BaseException) -> str:
    lines = str(problem).splitlines()
    return lines[0][:200] if lines else type(problem).__name__
