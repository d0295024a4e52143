"""Figures of a run."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

_INK, _PALE, _ACCENT = "#1b3a5c", "#b7c7d9", "#d1495b"


def loss_curve(metrics: Sequence[dict[str, Any]], title: str = "") -> Figure:
    """Training and validation loss of a run against the step.

    Args:
        metrics: lines of the run's metrics (`training.metrics.read`).
        title: stands above the axes.
    """
    train = np.array([(line["step"], line["loss"]) for line in metrics if line["kind"] == "train"])
    validation = np.array([(line["step"], line["nats_per_token"]) for line in metrics if line["kind"] == "validation"])
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
        axes = figure.subplots()
        if train.size:
            axes.plot(train[:, 0], train[:, 1], color=_PALE, linewidth=0.8, label="training, one batch")
            width = max(1, len(train) // 40)
            if len(train) > width > 1:
                smooth = np.convolve(train[:, 1], np.ones(width) / width, "valid")
                axes.plot(train[width - 1 :, 0], smooth, color=_INK, linewidth=1.4, label=f"training, mean of {width}")
        if validation.size:
            axes.plot(
                validation[:, 0], validation[:, 1], color=_ACCENT, marker="o", markersize=3, linewidth=1.4, label="validation"
            )
            best = validation[validation[:, 1].argmin()]
            axes.annotate(
                f"{best[1]:.3f}", best, xytext=(0, -14), textcoords="offset points", ha="center", color=_ACCENT, fontsize=9
            )
            floor = min(validation[:, 1].min(), *(train[-1:, 1] if train.size else [np.inf]))
            ceiling = max(validation[:, 1].max(), floor + 0.5)
            axes.set_ylim(floor - 0.25, ceiling + 0.5)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("cross-entropy (nats per token)")
        axes.set_title(title, loc="left", fontsize=11)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    return figure
