"""Shared style of figures: colours, fonts, and layout of axes."""

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK, PALE, ACCENT = "#1b3a5c", "#b7c7d9", "#d1495b"
SEVERAL = (INK, ACCENT, "#e0a030", "#2a9d8f", "#8d6a9f", "#7a8b99", "#5a7d2a", "#a0522d")
"""Colours of up to eight categories."""
LINES = ("-", "--", ":", "-.")
"""Styles of lines that may overlap."""
_LEAST_FONT = 5.5
"""Smallest font size in points; 9 pixels."""
HEAT, DIVERGING = "magma_r", "RdBu_r"


def shades(count: int) -> list:
    """Colours of an ordered series, dark to light."""
    return list(matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, max(count, 1))))


@contextmanager
def sheet(
    rows: int = 1, columns: int = 1, width: float = 7.0, height: float = 4.0, title: str = "", **options
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure and its axes `[rows, columns]`; `width` and `height` in inches."""
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(width, height), dpi=120, layout=ConstrainedLayoutEngine(h_pad=0.08))
        axes = figure.subplots(rows, columns, squeeze=False, **options)
        if title and axes.size == 1:
            headline(axes[0, 0], title)
        elif title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        yield figure, axes


def headline(axes: Axes, title: str) -> None:
    """A title above the left end of the axes."""
    axes.set_title(title, loc="left", fontsize=11)


def heat(axes: Axes, image: np.ndarray, label: str, cmap: str = HEAT, **options) -> None:
    """A heat map with its own colour bar."""
    drawn = axes.imshow(image, cmap=cmap, interpolation="nearest", **options)
    figure = axes.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(drawn, ax=axes, shrink=0.85, pad=0.02, aspect=max(20, 3 * figure.get_figheight()))
    bar.set_label(label)
    bar.outline.set_visible(False)
    for side in axes.spines.values():
        side.set_visible(False)


def name_tokens(axes: Axes, rows: list[str], columns: list[str]) -> None:
    """Tokens as labels of the rows and columns of a heat map, with visible whitespace; if there are too many to read, every
    second one, or fewer."""
    figure, place = axes.get_figure(root=True), axes.get_subplotspec()
    assert figure is not None
    assert place is not None
    grid = place.get_gridspec()
    ratios = np.asarray(grid.get_width_ratios(), float)
    width, height = figure.get_size_inches() * 72 / (ratios.sum() / ratios[place.colspan.start], grid.nrows)
    for axis, names, room in ((axes.yaxis, rows, height), (axes.xaxis, columns, width)):
        size = float(np.clip(0.6 * room / max(len(names), 1), _LEAST_FONT, 9))
        every = int(np.ceil(size * len(names) / room))
        axis.set_ticks(
            range(0, len(names), every), [visible(name) for name in names[::every]], fontsize=size, family="monospace"
        )
        axis.set_tick_params(length=0)
    if max(map(len, columns), default=0) > 1:
        axes.xaxis.set_tick_params(rotation=90)


def visible(token: str) -> str:
    """A token as a label: whitespace as a mark, and `$`, which would start mathematics, escaped."""
    return token.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥").replace("$", r"\$")
