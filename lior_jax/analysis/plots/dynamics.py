"""Figures of flows and fields: paths on phase space, what is conserved, the echo's error, maps of a field."""

import itertools
from collections.abc import Mapping

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from lior_jax.analysis.plots.style import ACCENT, INK, LINES, PALE, SEVERAL, sheet


def phase_portrait(
    paths: Mapping[str, tuple[np.ndarray, np.ndarray]],
    energy: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    title: str = "",
) -> Figure:
    """Paths of one particle in the plane of state and momentum.

    Args:
        paths: by name, `s` and `p` `[T + 1]`; a dot marks where each begins.
        energy: grid `[x]` of states, grid `[y]` of momenta, and `H` `[y, x]`, drawn as contours.
    """
    with sheet(width=6.4, height=4.4, title=title) as (figure, ((axes,),)):
        if energy is not None:
            axes.contour(*energy, levels=14, colors=PALE, linewidths=0.7)
        for (name, (s, p)), colour in zip(paths.items(), SEVERAL, strict=False):
            axes.plot(s, p, color=colour, marker=".", markersize=4, linewidth=1.2, label=name)
            axes.plot(s[0], p[0], "o", color=colour, markersize=6)
        axes.set_xlabel("state $s$")
        axes.set_ylabel("momentum $p$")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def gradient_error(nudges: np.ndarray, errors: Mapping[str, np.ndarray], title: str = "") -> Figure:
    """Error of the echo's gradient against the size of the nudge, on logarithmic axes, with slopes 1 and 2 for reference."""
    nudges = np.asarray(nudges)
    with sheet(title=title, width=6.4, height=4) as (figure, ((axes,),)):
        for (name, error), colour in zip(errors.items(), SEVERAL, strict=False):
            axes.loglog(nudges, error, color=colour, marker="o", markersize=4, label=name)
        lowest = min(np.min(error[error > 0]) for error in map(np.asarray, errors.values()))
        top = max(np.max(error) for error in errors.values())
        for slope, style in ((1, ":"), (2, "--")):
            axes.loglog(nudges, top * (nudges / nudges.max()) ** slope, color="0.6", linestyle=style, label=f"slope {slope}")
        axes.set_ylim(lowest / 3, top * 3)
        axes.set_xlabel("nudge ε")
        axes.set_ylabel("relative error of the gradient")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    return figure


def conserved(time: np.ndarray, panels: Mapping[str, Mapping[str, np.ndarray]], title: str = "") -> Figure:
    """Quantities that should be conserved, relative to their initial values, one panel each.

    Args:
        time: `[T]`.
        panels: by quantity and then by run, `[T]`.
    """
    with sheet(1, len(panels), 4.4 * len(panels), 3.4, title) as (figure, (axes,)):
        for panel, (quantity, runs) in zip(axes, panels.items(), strict=True):
            for (name, values), colour, style in zip(runs.items(), SEVERAL, itertools.cycle(LINES), strict=False):
                values = np.asarray(values)
                panel.plot(time, values / values[0], color=colour, linestyle=style, label=name)
            panel.set_xlabel("time")
            panel.set_ylabel(f"{quantity}, relative to the start")
            panel.ticklabel_format(axis="y", useOffset=False)
            panel.grid(alpha=0.25)
        axes[0].legend(frameon=False)
    return figure


def energies(energy: np.ndarray, title: str = "") -> Figure:
    """Energy along the flow of each block: the mean over positions, and the interquartile band.

    Args:
        energy: `[N, T + 1, P]`, of `P` positions.
    """
    energy = np.asarray(energy)
    blocks, steps, _ = energy.shape
    with sheet(title=title, height=3.4) as (figure, ((axes,),)):
        for index, series in enumerate(energy):
            time = index + np.linspace(0, 0.8, steps)
            low, high = np.quantile(series, (0.25, 0.75), axis=1)
            axes.fill_between(time, low, high, color=PALE, alpha=0.6, linewidth=0, label="half of the positions" * (not index))
            axes.plot(time, series.mean(1), color=INK, marker="o", markersize=3, label="mean" * (not index))
        for index in range(blocks - 1):
            here, there = energy[index, -1].mean(), energy[index + 1, 0].mean()
            axes.plot(
                (index + 0.8, index + 1), (here, there), color=ACCENT, linestyle=":", label="to the next block" * (not index)
            )
        axes.set_xticks(np.arange(blocks) + 0.4, [f"block {index}" for index in range(blocks)])
        axes.set_ylabel("energy H(s, p)")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    return figure


def field_maps(maps: Mapping[str, np.ndarray], label: str, title: str = "", cmap: str = "viridis") -> Figure:
    """Maps `[Nx, Ny]` of a field on its grid, side by side, with a common colour scale."""
    highest = max(float(np.max(image)) for image in maps.values())
    lowest = min(0.0, *(float(np.min(image)) for image in maps.values()))
    with sheet(1, len(maps), 2.9 * len(maps) + 0.6, 3.2, title) as (figure, (axes,)):
        colours = ScalarMappable(Normalize(lowest, highest), cmap)
        for panel, (name, image) in zip(axes, maps.items(), strict=True):
            panel.imshow(np.asarray(image).T, origin="lower", cmap=cmap, norm=colours.norm)
            panel.set_title(name, fontsize=10)
            panel.set_xlabel("x (grid cells)")
        axes[0].set_ylabel("y (grid cells)")
        figure.colorbar(colours, ax=axes, shrink=0.85, pad=0.02).set_label(label)
    return figure
