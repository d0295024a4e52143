"""Many prompts from a file: JSON lines in, JSON lines out."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lior_jax.errors import UserError
from lior_jax.inference.engine import Engine

BATCH = 16
"""Continuations that are decoded together."""


def read(path: str | Path, engine: Engine) -> list[dict[str, Any]]:
    """The objects of a JSONL file, each with a `prompt`; empty lines are passed over.

    Raises:
        UserError: no such file, or a line without a usable prompt, named by its number.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path} cannot be read ({problem}); give a UTF-8 file with a JSON object on each line.") from None
    items = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            raise UserError(f'Line {number} of {path} is no JSON; write {{"prompt": "..."}} on each line.') from None
        if not isinstance(item, dict) or not isinstance(item.get("prompt"), str):
            raise UserError(f'Line {number} of {path} has no "prompt"; write {{"prompt": "..."}} on each line.')
        try:
            engine.encode(item["prompt"])
        except UserError as problem:
            raise UserError(f"Line {number} of {path}: {problem}") from None
        items.append(item)
    if not items:
        raise UserError(f'{path} holds no prompts; write {{"prompt": "..."}} on each line.')
    return items


def complete(items: list[dict[str, Any]], engine: Engine, samples: int, **settings: Any) -> Iterator[dict[str, Any]]:
    """Each item with its `completion`, and its number `sample` where there are several; in order.

    Args:
        samples: continuations of each prompt.
        settings: as of `Engine.generate`.
    """
    work = [(item, sample) for item in items for sample in range(samples)]
    for start in range(0, len(work), BATCH):
        part = work[start : start + BATCH]
        texts = engine.generate([item["prompt"] for item, _ in part], sample=[sample for _, sample in part], **settings)
        for (item, sample), text in zip(part, texts, strict=True):
            yield item | {"completion": text} | ({"sample": sample} if samples > 1 else {})
