"""Figures of the learned geometry: retrieval, geodesic costs, metrics and their frames, priors of the lag."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lior_jax.analysis.plots.style import ACCENT, DIVERGING, SEVERAL, heat, name_tokens, shades, sheet, visible


def retrieval_map(
    weights: np.ndarray,
    rows: list[str],
    columns: list[str],
    title: str = "",
    names: tuple[str, str] = ("generated token", "past token"),
    memory_share: np.ndarray | None = None,
) -> Figure:
    """The sources of each token. The figure's height grows with the tokens, whose names stay legible up to about 250.

    Args:
        weights: `[T, S]`, weight of each past token in each row's retrieval.
        rows: the `T` generated tokens.
        columns: the `S` past tokens.
        title: stands above the axes.
        names: axis labels of rows and columns.
        memory_share: `[T]`, a memory's share of each row's probability; drawn as bars next to the rows.
    """
    weights = np.asarray(weights)
    width, height = (float(np.clip(0.15 * count + 2, 4, 40)) for count in reversed(weights.shape))
    beside: dict[str, Any] = {} if memory_share is None else {"sharey": True, "width_ratios": [width, 1.2]}
    columns_wide = width + (0.6 if memory_share is None else 1.8)
    with sheet(1, len(beside) or 1, columns_wide, height, title, **beside) as (figure, (panels,)):
        axes = panels[0]
        heat(axes, weights, "share of the retrieval", aspect="auto", vmin=0)
        name_tokens(axes, rows, columns)
        axes.set_ylabel(names[0])
        axes.set_xlabel(names[1])
        if memory_share is not None:
            panels[1].barh(range(len(rows)), memory_share, color=ACCENT, height=0.8)
            panels[1].tick_params(left=False, labelleft=False)
            panels[1].set(xlim=(0, 1), xticks=(0, 1), xlabel="memory's\nshare")
    return figure


def cost_maps(
    maps: dict[str, np.ndarray],
    tokens: list[str],
    label: str,
    title: str = "",
    limits: tuple[float | None, float | None] = (None, None),
) -> Figure:
    """Heat maps of a sentence with itself, side by side; the future, above the diagonal, is blank.

    Args:
        maps: by name, `[L, L]` of queries (rows) and keys (columns).
        tokens: the `L` tokens.
        label: of the colours.
        limits: of the colours; by default each map's own.
    """
    columns = min(2, len(maps))
    rows = -(-len(maps) // columns)
    with sheet(rows, columns, 5.2 * columns, 4.5 * rows, title) as (figure, axes):
        for panel, (name, image) in zip(axes.flat, maps.items(), strict=False):
            future = np.triu(np.ones(image.shape, bool), 1)
            heat(panel, np.where(future, np.nan, image), label, vmin=limits[0], vmax=limits[1])
            panel.set_title(name, fontsize=10)
            name_tokens(panel, tokens, tokens)
        for panel in axes[-1]:
            panel.set_xlabel("key: past token")
        for panel in axes[:, 0]:
            panel.set_ylabel("query: token")
        for panel in axes.flat[len(maps) :]:
            panel.set_visible(False)
    return figure


def metric_ellipses(metrics: np.ndarray, title: str = "") -> Figure:
    """Points at metric distance 1 from the origin, in the plane of each metric's least and greatest stretch, and its
    stretches `sqrt(eigenvalue)` in order.

    Args:
        metrics: `[H, n, n]`, symmetric positive definite, one for each head.
    """
    metrics = np.asarray(metrics, np.float64)
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    with sheet(1, 2, 9, 3.9, title) as (figure, ((plane, stretches),)):
        for head, (metric, colour) in enumerate(zip(metrics, _colours(len(metrics)), strict=True)):
            stretch = np.sqrt(np.linalg.eigvalsh(metric))
            plane.plot(circle[0] / stretch[0], circle[1] / stretch[-1], color=colour, label=f"head {head}")
            stretches.plot(np.arange(1, len(stretch) + 1), stretch[::-1], marker="o", markersize=3, color=colour)
        plane.plot(*circle, color="0.6", linewidth=0.8, linestyle="--", label="Euclidean")
        plane.set_aspect("equal")
        plane.set_xlabel("along the least stretched axis")
        plane.set_ylabel("along the most stretched axis")
        plane.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        stretches.set_xlabel("axis, from the most stretched")
        stretches.xaxis.set_major_locator(MaxNLocator(integer=True))
        stretches.set_ylabel("stretch, square root of the eigenvalue")
        for panel in (plane, stretches):
            panel.grid(alpha=0.25)
    return figure


def frame_of_keys(covariance: np.ndarray, axes: np.ndarray, title: str = "") -> Figure:
    """A head's frame: correlations of its keys in the chart's coordinates, the frame, and the correlations in the frame.

    Args:
        covariance: `[n, n]`, `E[zzᵀ]` of the head's keys in the chart's coordinates.
        axes: `[n, n]`, the frame `Q`, its axes in columns.
    """
    panels = {
        "keys, in the chart's coordinates": (_correlation(covariance), "coordinate", "coordinate"),
        "the frame": (axes, "axis of the frame", "coordinate"),
        "keys, in the frame": (_correlation(axes.T @ covariance @ axes), "axis of the frame", "axis of the frame"),
    }
    with sheet(1, 3, 11.5, 3.6, title) as (figure, (row,)):
        for panel, (name, (image, columns, rows)) in zip(row, panels.items(), strict=True):
            label = "component" if name == "the frame" else "correlation"
            heat(panel, image, label, cmap=DIVERGING, vmin=-1, vmax=1)
            panel.set_title(name, fontsize=10)
            panel.set_xlabel(columns)
            panel.set_ylabel(rows)
            panel.set_xticks(range(len(axes)))
            panel.set_yticks(range(len(axes)))
    return figure


def _correlation(covariance: np.ndarray) -> np.ndarray:
    scale = np.sqrt(np.diagonal(covariance))
    return covariance / (scale[:, None] * scale)


def pair_maps(maps: dict[str, np.ndarray], tokens: list[str], label: str, title: str = "") -> Figure:
    """Maps of a quantity of token pairs, side by side, centred on zero; white for missing values.

    Args:
        maps: by name, `[A, A]` of query tokens (rows) and key tokens.
        tokens: the `A` tokens.
        label: of the colours.
    """
    with sheet(1, len(maps), 5.2 * len(maps), 4.5, title) as (figure, (axes,)):
        for panel, (name, image) in zip(axes, maps.items(), strict=True):
            limit = np.nanmax(np.abs(image))
            heat(panel, image, label, cmap=DIVERGING, vmin=-limit, vmax=limit)
            panel.set_title(name, fontsize=10)
            name_tokens(panel, tokens, tokens)
            panel.set_xlabel("key: past token")
        axes[0].set_ylabel("query: token")
    return figure


def lag_priors(log_priors: np.ndarray, title: str = "", names: list[str] | None = None) -> Figure:
    """Priors of the lag, each relative to its largest value.

    Args:
        log_priors: `[N, H, L]`, `ln K` by lag; one panel for each block.
        names: of the panels; by default the blocks are numbered.
    """
    log_priors = np.asarray(log_priors)
    blocks, heads, length = log_priors.shape
    with sheet(1, blocks, max(3.1 * blocks, 5), 3.2, title, sharey=True) as (figure, (axes,)):
        for index, panel in enumerate(axes):
            for head, (values, colour) in enumerate(zip(log_priors[index], _colours(heads), strict=True)):
                panel.semilogy(np.arange(length), np.exp(values - values.max()), color=colour, label=f"head {head}")
            panel.set_title(f"block {index}" if names is None else names[index], fontsize=10)
            panel.set_xlabel("lag Δ (tokens)")
            panel.grid(alpha=0.25)
        axes[0].set_ylabel("K(Δ) / max K")
        axes[-1].legend(frameon=False, fontsize=8)
    return figure


def by_token(values: dict[str, np.ndarray], tokens: list[str], label: str, title: str = "", axis: str = "token") -> Figure:
    """Quantities of every token of a sentence, or of other items in a row.

    Args:
        values: by name, `[L]`.
        tokens: the `L` tokens.
        label: of the quantity.
        axis: what the tokens are.
    """
    with sheet(width=8, height=3.2, title=title) as (figure, ((axes,),)):
        for (name, series), colour in zip(values.items(), _colours(len(values)), strict=True):
            axes.plot(np.arange(len(series)), series, color=colour, marker="o", markersize=3, label=name)
        axes.set_xticks(range(len(tokens)), [visible(token) for token in tokens], family="monospace")
        axes.set_xlabel(axis)
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _colours(count: int) -> list:
    return list(SEVERAL[:count]) if count <= len(SEVERAL) else shades(count)
