"""Equilibrium propagation compared with the implicit function theorem: cosine against steps, residual and nudge, with a plot.

    python benchmarks/equilibrium.py --out docs/equilibrium.png     the tables and the plot of docs/results.md

A small model is trained by the rule itself. Then one batch's estimate, in float32, is compared with the gradient at
the exact fixed point in float64 (`tests/implicit.py`), leaf by leaf.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lior_jax import config as configuration
from lior_jax import data, learning
from lior_jax.settings import Config
from lior_jax.training import loop
from lior_jax.training.step import initial_state

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the oracles of the tests
from tests import implicit
from tests.oracles import agreement, to64

MODEL = """
model: {context: 32, width: 48, blocks: 3, heads: 4, geometry: {chart_dim: 8}, flow: {units: 96}}
learning: {rule: equilibrium}
optimizer: {learning_rate: 4e-3, warmup_steps: 20}
training: {steps: 300, batch_size: 8}
"""
DESCENTS = {"heavy ball": (0.85, 0.15), "gradient flow": (1.0, 0.0)}
STEPS = (2, 4, 8, 12, 16)
NUDGES = (1e-4, 1e-3, 1e-2, 1e-1)


class Point(NamedTuple):
    """Of one estimate: residual, worst leaf's cosine, relative error of the whole gradient."""

    residual: float
    cosine: float
    error: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=100, help="steps of training before (100)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--out", help="file of the plot")
    arguments = parser.parse_args()

    config = configuration.parse(MODEL, "the benchmark", arguments.set)
    corpus = data.load(config)
    config = data.with_vocabulary(config, corpus)
    state = jax.jit(initial_state, static_argnums=1)(jax.random.key(0), config)
    training, context = config.training, config.model.context
    for step in range(arguments.train):
        batch = data.batch_at(corpus.train, 0, step, training.batch_size, context)
        state, report = loop.train_step(state, batch, config)
    params, batch = state.params, data.batch_at(corpus.validation, 0, 0, training.batch_size, context)
    with jax.enable_x64(True):
        _, exact = implicit.gradient(to64(params), *batch, config)

    loss = float(report.info.loss)
    print(f"{arguments.train} steps of training, to a loss of {loss:.3f}; cosines are those of the worst leaf\n")
    print("| relaxation | steps | residual | cosine | relative error |")
    print("|---|---|---|---|---|")
    by_steps: dict[str, list[Point]] = {}
    for name, (rate, momentum) in DESCENTS.items():
        for steps in STEPS:
            moved = {"steps": steps, "rate": rate, "momentum": momentum}
            point = _measure(params, batch, configuration.replace(config, "model.relaxation", **moved), exact)
            by_steps.setdefault(name, []).append(point)
            print(f"| {name} | {steps} | {point.residual:.0e} | {point.cosine:.6f} | {point.error:.0e} |", flush=True)
    print("\n| nudge | size | residual | cosine | relative error |")
    print("|---|---|---|---|---|")
    by_nudge: dict[str, list[Point]] = {}
    settled = configuration.replace(config, "model.relaxation", steps=24)
    for name in ("centred", "one_sided"):
        for size in NUDGES:
            nudged = configuration.replace(settled, "learning", nudge=name, nudge_size=size)
            point = _measure(params, batch, nudged, exact)
            by_nudge.setdefault(name, []).append(point)
            print(f"| {name} | {size:g} | {point.residual:.0e} | {point.cosine:.6f} | {point.error:.0e} |", flush=True)
    if arguments.out:
        _plot(by_steps, by_nudge).savefig(arguments.out)


def _measure(params: Any, batch: Any, config: Config, exact: Any) -> Point:
    estimate, info = jax.jit(learning.estimate, static_argnums=(2, 3))(params, batch, config.model, config.learning)
    leaves = agreement(estimate._replace(carried=None), exact._replace(carried=None))
    cosine = min(x.cosine for x in leaves.values() if x.share > 1e-6)
    error = np.sqrt(sum((x.relative_error * x.share) ** 2 for x in leaves.values()))
    return Point(float(info.reversibility), cosine, float(error))


def _plot(by_steps: dict[str, list[Point]], by_nudge: dict[str, list[Point]]) -> Figure:
    """`1 − cosine` of the worst leaf, on logarithmic axes, against steps, residual and nudge."""
    colours = ("#1b3a5c", "#d1495b")
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 3.2), dpi=150, layout="constrained")
        of_steps, of_residual, of_nudge = figure.subplots(1, 3, sharey=True)
        for (name, points), colour in zip(by_steps.items(), colours, strict=True):
            distance = [_distance(point) for point in points]
            of_steps.plot(STEPS, distance, color=colour, marker="o", markersize=3, label=name)
            of_residual.loglog([x.residual for x in points], distance, color=colour, marker="o", markersize=3, label=name)
        for (name, points), colour in zip(by_nudge.items(), colours, strict=True):
            distance = [_distance(point) for point in points]
            of_nudge.loglog(NUDGES, distance, color=colour, marker="o", markersize=3, label=name.replace("_", " "))
        of_residual.axvline(1e-3, color="#b7c7d9", linewidth=1, linestyle="--")
        of_steps.set(yscale="log", xlabel="steps of each relaxation", ylabel="1 − cosine, worst leaf")
        of_residual.set(xlabel="largest residual")
        of_nudge.set(xlabel="nudge ε₀ (24 steps)")
        for axes in (of_steps, of_nudge):
            axes.legend(frameon=False, fontsize=8)
    return figure


def _distance(point: Point) -> float:
    return max(1 - point.cosine, 1e-10)


if __name__ == "__main__":
    main()
