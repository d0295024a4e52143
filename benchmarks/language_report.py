"""Table and figure of what `language.py` measured."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lior_jax.analysis.plots.style import LINES, SEVERAL, headline, sheet

BASELINE, EXACT = "transformer", "back-propagation"


def table(results: dict[str, Any], target: float) -> str:
    """Every row in Markdown, ratios to the transformer where it was run, and the gap of echo to back-propagation."""
    rows = results["rows"]
    trained = [name for name in rows if "step_seconds" in rows[name]["seeds"][0]]
    baseline = BASELINE if BASELINE in trained else next(iter(trained or rows))
    seeds, size = max(len(row["seeds"]) for row in rows.values()), results["tokens_a_step"]
    steps = results["steps"][-1]
    lines = [
        f"{steps} steps of {size:,} tokens, {seeds} seed(s), {results['device']}; ratios are to: {baseline}",
        "",
        "| row | parameters | nats/char | spread | bits/char | ratio | ms a step | ratio | tokens/s "
        f"| seconds to {target:g} | ratio | tokens to {target:g} |",
        "|---" * 12 + "|",
    ]
    for name, row in rows.items():
        nats = _final(row)
        spread = f"{nats.std(ddof=1):.4f}" if len(nats) > 1 else "–"
        ratio = nats.mean() / _final(rows[baseline]).mean()
        quality = (
            f"| {name} | {row['parameters']:,} | {nats.mean():.4f} | {spread} | {nats.mean() / math.log(2):.4f} | {ratio:.3f}"
        )
        if name not in trained:
            lines.append(quality + " | –" * 6 + " |")
            continue
        seconds, first = _step_seconds(row), _step_seconds(rows[baseline])
        speed = f"{seconds * 1e3:.0f} | {seconds / first:.2f} | {size / seconds:,.0f}"
        reached = time_to(results, name, target), time_to(results, baseline, target)
        times = [f"{reached[0][0]:.0f}" if reached[0] else "–"]
        times.append(f"{reached[0][0] / reached[1][0]:.2f}" if all(reached) else "–")
        times.append(f"{reached[0][1]:,.0f}" if reached[0] else "–")
        lines.append(" | ".join([quality, speed, *times]) + " |")
    if {"echo", EXACT} <= set(rows):
        gaps = _final(rows["echo"]) - _final(rows[EXACT])
        lines += ["", "Echo less exact back-propagation, nats/char, seed by seed: " + ", ".join(f"{gap:+.4f}" for gap in gaps)]
    return "\n".join(lines)


def time_to(results: dict[str, Any], name: str, target: float) -> tuple[float, float] | None:
    """Mean seconds and tokens over the seeds until the loss crosses the target, by lines between the points of the curve.

    None where a seed never crosses it, or has crossed it before the first point.
    """
    reached = []
    for run in results["rows"][name]["seeds"]:
        tokens = np.array(results["steps"]) * results["tokens_a_step"]
        crossed = _crossing(run["nats"], target)
        if crossed is None:
            return None
        before, share = crossed
        reached.append([x[before] + share * (x[before + 1] - x[before]) for x in (run["seconds"], tokens)])
    seconds, tokens = np.mean(reached, 0)
    return float(seconds), float(tokens)


def _crossing(nats: Sequence[float], target: float) -> tuple[int, float] | None:
    """The last point above the target, and where between it and the next the line meets the target."""
    for before, (high, low) in enumerate(pairwise(nats)):
        if low <= target < high:
            return before, (high - target) / (high - low)
    return None


def figure(results: dict[str, Any]) -> Figure:
    """Validation loss against tokens and against seconds of training: means over the seeds, with bands from least to most."""
    tokens = np.array(results["steps"]) * results["tokens_a_step"] / 1e6
    with sheet(1, 2, 10, 4.2, sharey=True) as (drawn, (axes,)):
        for index, (name, row) in enumerate(results["rows"].items()):
            colour, line = SEVERAL[index], LINES[index % len(LINES)]
            nats = np.array([run["nats"] for run in row["seeds"]])
            if "step_seconds" not in row["seeds"][0]:
                for panel in axes:
                    panel.axhline(nats.mean(), color=colour, linestyle=":", linewidth=1.4, label=name)
                continue
            seconds = np.mean([run["seconds"] for run in row["seeds"]], 0)
            for panel, x in zip(axes, (tokens, seconds), strict=True):
                panel.plot(x, nats.mean(0), line, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=name)
                panel.fill_between(x, nats.min(0), nats.max(0), color=colour, alpha=0.15, linewidth=0)
        for panel, label, title in (
            (axes[0], "tokens seen (millions)", "Loss after equal text"),
            (axes[1], f"training time (s, {results['device']})", "Loss after equal time"),
        ):
            headline(panel, title)
            panel.set_xlabel(label)
            panel.grid(alpha=0.25)
        axes[0].set_ylabel("validation loss (nats per character)")
        axes[1].legend(frameon=False)
    return drawn


def _final(row: dict[str, Any]) -> np.ndarray:
    return np.array([run["nats"][-1] for run in row["seeds"]])


def _step_seconds(row: dict[str, Any]) -> float:
    return float(np.median([run["step_seconds"] for run in row["seeds"]]))
