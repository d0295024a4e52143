"""Checkpoints of a run (Orbax): the latest few and the best, each with all that resuming and inference need.

A checkpoint holds the parameters, the optimiser's state, and as JSON the configuration, the tokenizer and what else
describes the run. There is no random state: data and samples are pure functions of the seed and the step.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import absl.logging
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from lior_jax.errors import UserError

FOLDER = "checkpoints"


class Metadata(NamedTuple):
    """What describes a run, as plain values."""

    config: dict[str, Any]
    tokenizer: dict[str, Any]
    corpus: str
    """SHA-256 of the text."""


class Checkpoints:
    """The checkpoints of one run folder; use as a context manager, which waits for unfinished saves.

    Args:
        run: the run's folder.
        keep: latest checkpoints to keep, beside the best; None to open a run for reading only.
    """

    def __init__(self, run: str | Path, keep: int | None = None):
        self.run = Path(run)
        # Orbax warns at every save without a validation loss, in the middle of the progress bar.
        absl.logging.set_verbosity(absl.logging.ERROR)
        # It keeps the last of the ascending order, so the smallest loss must rank highest.
        best = policies.BestN(
            get_metric_fn=lambda metrics: -_validation_loss(metrics), n=1, keep_checkpoints_without_metrics=False
        )
        self._manager = ocp.CheckpointManager(
            (self.run / FOLDER).absolute(),
            item_names=("params", "optimizer", "metadata"),
            options=ocp.CheckpointManagerOptions(
                create=keep is not None,
                best_fn=_validation_loss,
                best_mode="min",
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    def wait(self) -> None:
        """Return when all saves are finished."""
        self._manager.wait_until_finished()

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the checkpoint of smallest validation loss, or the newest if none was validated."""
        best = self._manager.best_step()
        return self.latest if best is None else best

    @property
    def steps(self) -> list[int]:
        """Steps of all checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, params: Any, optimizer_state: Any, metadata: Metadata, validation_loss: float | None) -> None:
        """Start saving a step. One that is there already is replaced: a run comes by again only if it was damaged."""
        if step in self.steps:
            self._manager.delete(step)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(_without_empty(params)),
                optimizer=ocp.args.StandardSave(_without_empty(optimizer_state)),
                metadata=ocp.args.JsonSave(metadata._asdict()),
            ),
            metrics=None if validation_loss is None else {"validation_loss": validation_loss},
            force=True,
        )

    def newest(self, read: Callable[[int], Any]) -> tuple[int, Any] | None:
        """The newest step that `read` can read, and what it reads; None without checkpoints.

        Raises:
            UserError: there are checkpoints, and all are damaged.
        """
        damage = None
        for step in reversed(self.steps):
            try:
                return step, read(step)
            except UserError as problem:
                damage = damage or problem
        if damage is not None:
            raise damage
        return None

    def metadata(self, step: int) -> Metadata:
        """What describes the run."""
        return self._restore(step, lambda items: Metadata(**items["metadata"]), metadata=ocp.args.JsonRestore())

    def params(self, step: int, like: Any) -> Any:
        """Parameters, in the structure and types of the abstract tree `like`."""
        return self._restore_tree(step, "params", like)

    def optimizer(self, step: int, like: Any) -> Any:
        """Optimiser state, in the structure and types of the abstract tree `like`."""
        return self._restore_tree(step, "optimizer", like)

    def _restore_tree(self, step: int, item: str, like: Any) -> Any:
        arguments = {item: ocp.args.StandardRestore(_without_empty(like))}
        return self._restore(step, lambda items: _with_empty(items[item], like), **arguments)

    def _restore(self, step: int, read: Callable[[Any], Any], **items: Any) -> Any:
        try:
            return read(self._manager.restore(step, args=ocp.args.Composite(**items)))
        except Exception as problem:
            reason = str(problem).splitlines()[0][:200] if str(problem) else ""
            others = [str(other) for other in self.steps if other != step]
            mend = f"use that of step {' or '.join(others)}" if others else "there is no other to fall back on"
            raise UserError(
                f"The checkpoint of step {step} in {self.run} is damaged or was saved by another version "
                f"({type(problem).__name__}: {reason}); {mend}."
            ) from None


def open_run(run: str | Path) -> Checkpoints:
    """The checkpoints of an existing run, for reading. Raises `UserError` if there are none."""
    if not Path(run).is_dir():
        raise UserError(f"There is no run at {run}; give the folder that train.py wrote, for example runs/quickstart.")
    if not (Path(run) / FOLDER).is_dir():
        raise UserError(f"{run} holds no checkpoints; give the folder that train.py wrote, or train longer.")
    checkpoints = Checkpoints(run)
    if checkpoints.latest is None:
        raise UserError(f"{run} holds no finished checkpoint yet; train until the first one is saved.")
    return checkpoints


def abstract(function: Callable[..., Any], *args: Any) -> Any:
    """Shapes and types of what a function would return, on the default device, for restoring onto."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(function, *args)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def _without_empty(tree: Any) -> Any:
    """The tree without arrays of size zero (a metric without rotors has no angles), which Orbax cannot save."""
    return jax.tree.map(lambda x: x if x.size else None, tree)


def _with_empty(tree: Any, like: Any) -> Any:
    """Put the arrays that `_without_empty` took out of `like` back into a restored tree."""
    return jax.tree.map(lambda shape, x: x if shape.size else jnp.zeros(shape.shape, shape.dtype), like, tree)


def _validation_loss(metrics: dict[str, float]) -> float:
    return metrics["validation_loss"]
