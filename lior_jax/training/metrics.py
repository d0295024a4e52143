"""What a run writes down: one JSON object a line, and the same figures for TensorBoard."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from lior_jax.errors import UserError

FILE = "metrics.jsonl"


class Metrics:
    """Writer of a run's `metrics.jsonl` and `tensorboard/`.

    Args:
        run: the run's folder.
        after: when resuming, the step resumed from; later lines, which the run will write again, are dropped.
    """

    def __init__(self, run: Path, after: int = 0):
        path = run / FILE
        kept = [line for line in read(run) if line["step"] <= after] if after else []
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._lines = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=after + 1 if after else None)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_) -> None:
        self._lines.close()
        self._board.close()

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write the figures of one `kind` (`train`, `validation`, `sample`) at a step; arrays by element, texts as text."""
        plain = {
            name: value.tolist() if isinstance(value, np.ndarray | np.generic) else value for name, value in values.items()
        }
        self._lines.write(json.dumps({"kind": kind, "step": step, **plain}) + "\n")
        self._lines.flush()
        for name, value in plain.items():
            if isinstance(value, str):
                self._board.add_text(f"{kind}/{name}", value, step)
            elif isinstance(value, list):
                for index, element in enumerate(value):
                    self._board.add_scalar(f"{kind}/{name}/{index}", element, step)
            else:
                self._board.add_scalar(f"{kind}/{name}", value, step)


def read(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics; a last line that was cut off is left out. Raises `UserError` for a damaged one."""
    path = Path(run) / FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    try:
        return [json.loads(line) for line in lines[:-1]]
    except json.JSONDecodeError:
        raise UserError(f"{path} is damaged: a line of it is no JSON; mend or remove that line.") from None
