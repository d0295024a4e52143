"""Figures of a run: losses, the health of its estimates, actions, spectra."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lior_jax.analysis.plots.style import ACCENT, INK, PALE, SEVERAL, shades, sheet

Lines = Sequence[dict[str, Any]]
"""Lines of a run's metrics (`training.metrics.read`)."""


def loss_curve(metrics: Lines, title: str = "") -> Figure:
    """Training and validation loss of a run against the step.

    Args:
        metrics: lines of the run's metrics.
        title: stands above the axes.
    """
    train = _series(metrics, "train", "loss")
    validation = _series(metrics, "validation", "nats_per_token")
    with sheet(title=title) as (figure, ((axes,),)):
        if train.size:
            axes.plot(train[:, 0], train[:, 1], color=PALE, linewidth=0.8, label="training, one batch")
            width = max(1, len(train) // 40)
            if len(train) > width > 1:
                smooth = np.convolve(train[:, 1], np.ones(width) / width, "valid")
                axes.plot(train[width - 1 :, 0], smooth, color=INK, linewidth=1.4, label=f"training, mean of {width}")
        if validation.size:
            axes.plot(
                validation[:, 0], validation[:, 1], color=ACCENT, marker="o", markersize=3, linewidth=1.4, label="validation"
            )
            best = validation[validation[:, 1].argmin()]
            axes.annotate(
                f"{best[1]:.3f}", best, xytext=(0, -14), textcoords="offset points", ha="center", color=ACCENT, fontsize=9
            )
            floor = min(validation[:, 1].min(), *(train[-1:, 1] if train.size else [np.inf]))
            ceiling = max(validation[:, 1].max(), floor + 0.5)
            axes.set_ylim(floor - 0.25, ceiling + 0.5)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("cross-entropy (nats per token)")
        axes.grid(alpha=0.25)
        if train.size or validation.size:
            axes.legend(frameon=False)
    return figure


def learning_rates(rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, suggestion: float, title: str = "") -> Figure:
    """A learning-rate range test (`training.rate.Found`): the loss against the rate, `[K]` each, and the rate suggested."""
    with sheet(title=title) as (figure, ((axes,),)):
        axes.semilogx(rates, losses, color=PALE, linewidth=0.8, label="one batch")
        axes.semilogx(rates, smoothed, color=INK, linewidth=1.4, label="smoothed")
        axes.axvline(suggestion, color=ACCENT, linewidth=1.2, linestyle="--", label=f"suggested: {suggestion:.1e}")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("cross-entropy (nats per token)")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    return figure


def health(metrics: Lines, title: str = "", residual: str = "residual") -> Figure:
    """Residual of the learning rule and its nudge bias, strength of its nudges, and norm of its estimate, against the step.

    Args:
        metrics: lines of the run's metrics.
        title: stands above the axes.
        residual: what the rule's residual measures (`registry.Rule.residual`).
    """
    with sheet(1, 3, 10, 3.2, title) as (figure, (axes,)):
        reversibility, gradient = (_series(metrics, "train", name) for name in ("reversibility", "gradient_norm"))
        nudge = [(line["step"], line["nudge"]) for line in metrics if line["kind"] == "train"]
        bias = _series(metrics, "check", "nudge_bias")
        axes[0].semilogy(*reversibility.T, color=INK, linewidth=1, label="residual")
        axes[0].set_ylabel(residual)
        if bias.size:
            axes[0].semilogy(*bias.T, color=ACCENT, linewidth=1, marker="o", markersize=3, label="bias of the nudge")
            axes[0].legend(frameon=False, fontsize=8)
        for index in range(len(nudge[0][1]) if nudge else 0):
            strength = [(step, values[index]) for step, values in nudge]
            axes[1].semilogy(*np.array(strength).T, color=shades(len(nudge[0][1]))[index], linewidth=1, label=f"block {index}")
        axes[1].set_ylabel("strength of the nudge, ε")
        if nudge and len(nudge[0][1]) <= 8:
            axes[1].legend(frameon=False, fontsize=8)
        axes[2].semilogy(*gradient.T, color=ACCENT, linewidth=1)
        axes[2].set_ylabel("norm of the gradient estimate")
        for panel in axes:
            panel.set_xlabel("optimiser step")
            panel.grid(alpha=0.25)
    return figure


def action_over_training(metrics: Lines, title: str = "") -> Figure:
    """Mean LIoR action of every block's flow against the step."""
    lines = [(line["step"], line["action"]) for line in metrics if line["kind"] == "train"]
    with sheet(title=title, height=3.4) as (figure, ((axes,),)):
        blocks = len(lines[0][1]) if lines else 0
        for index, colour in zip(range(blocks), shades(blocks), strict=False):
            axes.plot(*np.array([(step, values[index]) for step, values in lines]).T, color=colour, label=f"block {index}")
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("LIoR action of the flow\n(metric length, heads added up)")
        axes.grid(alpha=0.25)
        if 0 < blocks <= 8:
            axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def action_by_depth(action: np.ndarray, title: str = "") -> Figure:
    """LIoR action of the flow by depth.

    Args:
        action: `[N, H]`, of each block and head.
    """
    action = np.asarray(action)
    with sheet(title=title, height=3.4) as (figure, ((axes,),)):
        below = np.zeros(len(action))
        for head, colour in zip(range(action.shape[1]), shades(action.shape[1]), strict=True):
            axes.bar(np.arange(len(action)), action[:, head], bottom=below, color=colour, width=0.6, label=f"head {head}")
            below = below + action[:, head]
        axes.set_xticks(range(len(action)), [f"block {index}" for index in range(len(action))])
        axes.set_ylabel("LIoR action (metric length)")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def spectra(values: Mapping[str, Sequence[np.ndarray]], title: str = "") -> Figure:
    """Singular values of matrices, relative to the largest.

    Args:
        values: by name, one decreasing series per block; one panel per name.
    """
    columns = min(3, len(values))
    rows = -(-len(values) // columns)
    with sheet(rows, columns, 3.3 * columns, 2.6 * rows, title, sharey=True) as (figure, axes):
        for panel, (name, series) in zip(axes.flat, values.items(), strict=False):
            for index, (sigma, colour) in enumerate(zip(series, shades(len(series)), strict=True)):
                panel.plot(np.arange(1, len(sigma) + 1), np.asarray(sigma) / sigma[0], color=colour, label=f"block {index}")
            panel.set_title(name, fontsize=10)
            panel.set_ylim(0, 1.05)
            panel.grid(alpha=0.25)
        for panel in axes[-1]:
            panel.set_xlabel("index $i$")
        for panel in axes[:, 0]:
            panel.set_ylabel(r"$\sigma_i\,/\,\sigma_1$")
        for panel in axes.flat[len(values) :]:
            panel.set_visible(False)
        if 1 < max(map(len, values.values())) <= len(SEVERAL):
            axes.flat[0].legend(frameon=False, fontsize=8)
    return figure


def _series(metrics: Lines, kind: str, name: str) -> np.ndarray:
    """Steps and values of a figure, `[lines, 2]`."""
    return np.array([(line["step"], line[name]) for line in metrics if line["kind"] == kind]).reshape(-1, 2)
