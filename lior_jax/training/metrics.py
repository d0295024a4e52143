"""A run's metrics on disk: one JSON object per line, and the same for TensorBoard.

A full disk neither loses metrics nor stops training: lines that cannot be written are kept in memory until they can.
"""

import json
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyrefly: ignore[missing-module-attribute] - made when imported

from lior_jax.errors import UserError
from lior_jax.storage import files
from lior_jax.training import events

FILE = "metrics.jsonl"

_TAGS = {
    ("train", "loss"): "loss/train",
    ("validation", "nats_per_token"): "loss/validation",
    ("validation", "nats_per_character"): "loss/validation_nats_per_character",
    ("validation", "bits_per_character"): "loss/validation_bits_per_character",
    ("train", "learning_rate"): "optimizer/learning_rate",
    ("train", "gradient_norm"): "optimizer/gradient_norm",
    ("train", "action"): "physics/action",
    ("train", "fractional_order"): "physics/fractional_order",
    ("train", "reversibility"): "soundness/reversibility",
    ("train", "residual"): "soundness/residual",
    ("train", "nudge"): "soundness/nudge",
    ("check", "nudge_bias"): "soundness/nudge_bias",
    ("train", "tokens_per_second"): "speed/tokens_per_second",
}
"""TensorBoard's tags, whose groups it shows in alphabetical order: the loss first."""


def figures(event: events.Event) -> tuple[str, dict[str, Any]] | None:
    """Kind and logged values of an event, or None."""
    match event:
        case events.Step(figures=dict(values)):
            return "train", values
        case events.RefusedStep(reasons=reasons):
            return "bad_step", {"reasons": ", ".join(reasons)}
        case events.Validated(nats_per_token=nats) if math.isfinite(nats):
            names = "nats_per_token", "nats_per_character", "bits_per_character"
            return "validation", {name: getattr(event, name) for name in names}
        case events.Checked(nudge_bias=bias):
            return "check", {"nudge_bias": bias}
        case events.Sampled(text=text):
            return "sample", {"text": text}
    return None


def numbers(event: events.Event) -> dict[str, float]:
    """The logged numbers of an event, by their tags in TensorBoard."""
    kind, values = figures(event) or ("", {})
    found = {}
    for name, value in values.items():
        if not isinstance(value, str):
            array = np.asarray(value)
            tag = _TAGS.get((kind, name), f"{kind}/{name}")
            found |= {f"{tag}/{index}": float(x) for index, x in enumerate(array)} if array.ndim else {tag: float(array)}
    return found


class Metrics:
    """Writer of a run's `metrics.jsonl` and `tensorboard/`.

    Args:
        run: the run's folder.
        after: when resuming, the step resumed from; later lines, which will be written again, are dropped.
        owes_evaluation: when resuming, whether that step's evaluation will be written again.
    """

    def __init__(self, run: Path, after: int = 0, owes_evaluation: bool = False):
        self._path = run / FILE
        kept = [line for line in read(run) if line["step"] <= after] if after else []
        if owes_evaluation:
            kept = [line for line in kept if line["step"] < after or line["kind"] not in ("validation", "sample")]
        files.write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._size = self._path.stat().st_size
        self._pending: list[tuple[str, int, dict[str, Any]]] = []
        self._board = _Board(run / "tensorboard", after if owes_evaluation else after + 1)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write the figures of one `kind` (`train`, `check`, `validation`, `sample`, `bad_step`) at a step; arrays by element.

        Raises `OSError` on failure; the lines are then written by a later call.
        """
        plain = {
            name: value.tolist() if isinstance(value, np.ndarray | np.generic) else value for name, value in values.items()
        }
        self._pending.append((kind, step, plain))
        lines = [json.dumps({"kind": kind, "step": step, **values}) + "\n" for kind, step, values in self._pending]
        with self._path.open("ab") as file:
            if file.tell() > self._size:  # a partial line of a failed attempt
                file.truncate(self._size)
            file.write("".join(lines).encode())
        self._size = self._path.stat().st_size
        written, self._pending = self._pending, []
        for kind, step, values in written:
            self._board.write(kind, step, values)

    def close(self) -> None:
        """Write the events that TensorBoard does not have yet."""
        with suppress(OSError):
            self._board.close()


class Unwritten:
    """In place of `Metrics`, for the processes that write none."""

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class _Board:
    """TensorBoard's events, written synchronously: tensorboardX's queue deadlocks after its thread fails on a full disk."""

    def __init__(self, folder: Path, first: int):
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        if first > 1:  # hide what an interrupted session wrote from this step on
            started = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=first, session_log=started))

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            tag = _TAGS.get((kind, name), f"{kind}/{name}")
            if isinstance(value, str):
                self._event(step, summary.text(tag, value))
            elif isinstance(value, list):
                for index, element in enumerate(value):
                    self._event(step, summary.scalar(f"{tag}/{index}", element))
            else:
                self._event(step, summary.scalar(tag, value))
        self._writer.flush()

    def _event(self, step: int, content: Any) -> None:
        self._writer.write_event(Event(step=step, wall_time=time.time(), summary=content))

    def close(self) -> None:
        self._writer.close()


def read(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics, except an incomplete last line. Raises `UserError` for a damaged one."""
    path = Path(run) / FILE
    if not path.exists():
        return []
    try:
        return [_line(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    except ValueError:
        raise UserError(f"{path} is damaged: one of its lines is not a record; repair or remove that line.") from None


def _line(text: str) -> dict[str, Any]:
    line = json.loads(text)
    if not (isinstance(line, dict) and isinstance(line.get("step"), int) and "kind" in line):
        raise ValueError
    return line
