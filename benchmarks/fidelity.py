"""Echo and equilibrium compared with exact gradients during training: cosine and ratio of norms, by parameter and block.

    python benchmarks/fidelity.py --out fidelity            measure: table, fidelity.json and .png
    python benchmarks/fidelity.py --plot fidelity.json      table and figure of a stored measurement

A small model trains by the rule itself, in float32. At some steps its estimate of one fixed batch's gradient is compared with
the exact one in float64: automatic differentiation of the loss for the echo, and the implicit function theorem at the exact
minima for equilibrium propagation (`tests/implicit.py`). Leaves whose share of the gradient is below 1e-6 are left out.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lior_jax import config as configuration
from lior_jax import data, learning, model
from lior_jax.settings import Config
from lior_jax.training.step import initial_state, train_step

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the oracles of the tests
from tests import implicit
from tests.oracles import named_leaves, to64

MODEL = """
model: {context: 32, width: 48, blocks: 3, heads: 4, geometry: {chart_dim: 8}, flow: {units: 96}}
optimizer: {learning_rate: 4e-3, warmup_steps: 20}
training: {steps: 300, batch_size: 8}
"""
RULES = ("echo", "equilibrium")
MARKS = (0, 30, 100, 200, 300)
SMALLEST_SHARE = 1e-6

Point = dict[str, list[float]]
"""Cosine and ratio of norms of every leaf, and of every block's part of it, by name."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES), help="by default both")
    parser.add_argument("--marks", nargs="+", type=int, default=MARKS, help=f"steps to look at {MARKS}")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--out", type=Path, metavar="NAME", help="write NAME.json and NAME.png")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="measure nothing; show the measurements in this JSON file")
    given = parser.parse_args(arguments)
    if given.plot:
        results, out = json.loads(given.plot.read_text(encoding="utf-8")), given.plot
    else:
        results, out = {rule: measure(rule, given.marks, given.set) for rule in given.rules}, given.out
        if out:
            out.with_suffix(".json").write_text(json.dumps(results) + "\n", encoding="utf-8")
    _print(results)
    if out:
        figure(results).savefig(out.with_suffix(".png"))


def measure(rule: str, marks: tuple[int, ...], overrides: list[str]) -> dict[str, Point]:
    """By step."""
    config = configuration.parse(MODEL, "the benchmark", [f"learning.rule={rule}", f"training.steps={max(marks)}", *overrides])
    corpus = data.load(config)
    config = data.with_vocabulary(config, corpus)
    state = jax.jit(initial_state, static_argnums=1)(jax.random.key(0), config)
    size, context = config.training.batch_size, config.model.context
    fixed = data.batch_at(corpus.validation, 0, 0, size, context)
    found = {}
    for step in range(max(marks) + 1):
        if step in marks:
            found[str(step)] = compare(state.params, fixed, config)
        state, _ = train_step(state, data.batch_at(corpus.train, 0, step, size, context), config)
    return found


def compare(params: model.Params, batch: Any, config: Config) -> Point:
    """The estimate in float32 beside the exact gradient in float64."""
    estimate, _ = jax.jit(learning.estimate, static_argnums=(2, 3))(params, batch, config.model, config.learning)
    estimate = named_leaves(estimate._replace(carried=None))
    with jax.enable_x64(True):
        exact = named_leaves(exact_gradient(to64(params), batch, config)._replace(carried=None))
    whole = np.sqrt(sum(np.sum(leaf**2) for leaf in exact.values()))
    parts: Point = {}
    for name, leaf in exact.items():
        rows = [(name, estimate[name], leaf)]
        if name.startswith("blocks."):
            rows += [(f"{name} {i}", estimate[name][i], leaf[i]) for i in range(len(leaf))]
        for label, ours, theirs in rows:
            norms = np.linalg.norm(ours), np.linalg.norm(theirs)
            if norms[1] > SMALLEST_SHARE * whole:
                parts[label] = [float(np.sum(ours * theirs) / (norms[0] * norms[1])), float(norms[0] / norms[1])]
    return parts


def exact_gradient(params: model.Params, batch: Any, config: Config) -> model.Params:
    if config.learning.rule == "equilibrium":
        return implicit.gradient(params, *batch, config)[1]

    def loss(learned: model.Params) -> jax.Array:
        return model.loss(learned._replace(carried=params.carried), *batch, config.model)

    return jax.jit(jax.grad(loss))(params)


def _print(results: dict[str, dict[str, Point]]) -> None:
    print("| rule | step | worst cosine | of | largest departure of a norm's ratio from 1 | of |")
    print("|---|---|---|---|---|---|")
    for rule, by_step in results.items():
        for step, parts in by_step.items():
            worst = min(parts, key=lambda name: parts[name][0])
            longest = max(parts, key=lambda name: abs(parts[name][1] - 1))
            print(
                f"| {rule} | {step} | {parts[worst][0]:.8f} | {worst} | {abs(parts[longest][1] - 1):.0e} | {longest} |",
                flush=True,
            )


def figure(results: dict[str, dict[str, Point]]) -> Figure:
    """`1 − cosine` and `|ratio of norms − 1|` of every parameter over training, a colour for each block."""
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        drawn = Figure(figsize=(10, 5.6), dpi=150, layout="constrained")
        panels = drawn.subplots(2, len(results), sharex=True, sharey="row", squeeze=False)
        for (rule, by_step), (above, below) in zip(results.items(), panels.T, strict=True):
            _draw(above, by_step, lambda cosine, _: 1 - cosine)
            _draw(below, by_step, lambda _, ratio: abs(ratio - 1))
            above.set(title=rule, yscale="log")
            below.set(xlabel="step", yscale="log")
        panels[0, 0].set_ylabel("1 − cosine")
        panels[1, 0].set_ylabel("|ratio of norms − 1|")
        panels[0, -1].legend(frameon=False, fontsize=8)
    return drawn


def _draw(axes: Any, by_step: dict[str, Point], value: Any) -> None:
    steps = [int(step) for step in by_step]
    names = sorted({name for parts in by_step.values() for name in parts if not name.startswith("blocks.") or " " in name})
    labels = {}
    for name in names:
        block = name.split()[-1] if " " in name else ""
        label = f"block {block}" if block else "embedding, readout"
        colour = matplotlib.colormaps["viridis"](int(block) / 3) if block else "#d1495b"
        values = [max(value(*parts[name]), 1e-16) if name in parts else np.nan for parts in by_step.values()]
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.8, label=None if label in labels else label)
        labels[label] = True


if __name__ == "__main__":
    main()
