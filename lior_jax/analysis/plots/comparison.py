"""Figures of several runs side by side."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from lior_jax.analysis.plots.style import LINES, SEVERAL, sheet


class Curve(NamedTuple):
    """Validation loss of a run as it trained; all `[evaluations]`."""

    steps: np.ndarray
    tokens: np.ndarray
    seconds: np.ndarray
    nats: np.ndarray
    """Per character."""


def loss_over(curves: Mapping[str, Curve], title: str = "") -> Figure:
    """Validation loss of runs, by name, against optimiser steps, tokens read and time spent on training."""
    with sheet(1, 3, 12, 4.2, title, sharey=True) as (figure, (axes,)):
        panels = {"optimiser steps": "steps", "tokens read": "tokens", "seconds of training": "seconds"}
        for panel, (label, coordinate) in zip(axes, panels.items(), strict=True):
            for index, (name, curve) in enumerate(curves.items()):
                style = {"color": SEVERAL[index % len(SEVERAL)], "linestyle": LINES[index // len(SEVERAL) % len(LINES)]}
                panel.plot(getattr(curve, coordinate), curve.nats, marker="o", markersize=3, label=name, **style)
            panel.set_xlabel(label)
            panel.set_xlim(left=0)
            panel.xaxis.set_major_locator(MaxNLocator(5))
            panel.grid(alpha=0.25)
        axes[1].xaxis.set_major_formatter(EngFormatter())
        axes[0].set_ylabel("validation loss (nats per character)")
        handles, labels = axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    return figure
