"""Many prompts from a file: JSON lines in, JSON lines out."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lior_jax.data import read_file
from lior_jax.errors import UserError
from lior_jax.inference.engine import Engine

BATCH = 16
"""Number of continuations decoded together."""


def read(path: str | Path, engine: Engine, samples: int = 1) -> list[dict[str, Any]]:
    """The objects of a JSONL file, each with a `prompt`; empty lines are skipped.

    Args:
        samples: number of continuations of each prompt that will be requested.

    Raises:
        UserError: no such file, or a line without a usable prompt, or with a key that `complete` adds; gives its number.
    """
    items = []
    for number, line in enumerate(read_file(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            json.dumps(item)
        except (ValueError, RecursionError):  # also for bad numbers and deep nesting
            raise UserError(f'Line {number} of {path} is not JSON; write {{"prompt": "..."}} on each line.') from None
        if not isinstance(item, dict) or not isinstance(item.get("prompt"), str):
            raise UserError(f'Line {number} of {path} has no "prompt"; write {{"prompt": "..."}} on each line.')
        for key in _added(samples):
            if key in item:
                raise UserError(f'Line {number} of {path} has a "{key}" of its own, where the model\'s would go; rename it.')
        try:
            engine.encode(item["prompt"])
        except UserError as problem:
            raise UserError(f"Line {number} of {path}: {problem}") from None
        items.append(item)
    if not items:
        raise UserError(f'{path} holds no prompts; write {{"prompt": "..."}} on each line.')
    return items


def complete(items: list[dict[str, Any]], engine: Engine, samples: int, **settings: Any) -> Iterator[dict[str, Any]]:
    """Each item with its `completion`, and the number `sample` if there are several; in order.

    Args:
        samples: number of continuations of each prompt.
        settings: as for `Engine.generate`.
    """
    work = [(item, sample) for item in items for sample in range(samples)]
    for start in range(0, len(work), BATCH):
        part = work[start : start + BATCH]
        texts = engine.generate([item["prompt"] for item, _ in part], sample=[sample for _, sample in part], **settings)
        for (item, sample), text in zip(part, texts, strict=True):
            yield item | {"completion": text} | ({"sample": sample} if samples > 1 else {})


def to_line(item: dict[str, Any], encoding: str = "utf-8") -> str:
    """An item as one line of JSON; characters outside the output's encoding are escaped."""
    line = json.dumps(item, ensure_ascii=False)
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(item)
    return line


def _added(samples: int) -> tuple[str, ...]:
    """Keys that `complete` adds to an item."""
    return ("completion", "sample") if samples > 1 else ("completion",)
