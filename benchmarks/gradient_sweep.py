"""Echo against automatic differentiation over many shapes: growth of time and memory.

    python benchmarks/gradient_sweep.py --out docs/gradient               measure: tables, docs/gradient.json and .png
    python benchmarks/gradient_sweep.py --plot docs/gradient.json         tables and figure of a stored measurement
    python benchmarks/gradient_sweep.py --axes blocks --compile-only ...  memory only; nothing is run

One axis at a time around 12 blocks of width 128 with one leapfrog step and 12 x 64 tokens; a longer context comes with fewer
sequences, so that a step has 768 tokens, or nearly. Rows, times and memory are as in `gradient.py`; the ratio is that of the
echo to the fastest form of automatic differentiation. More than 24 blocks are not unrolled: that takes minutes to compile.
"""

import argparse
import json
from pathlib import Path

import gradient
import jax
import matplotlib.pyplot as plt

from lior_jax.settings import FlowConfig, ModelConfig

BASE = {"blocks": 12, "steps": 1, "context": 64, "width": 128}
AXES = {
    "blocks": (2, 4, 8, 12, 24, 48),
    "steps": (1, 2, 4, 8),
    "context": (64, 128, 256, 512, 1024),
    "width": (64, 128, 256, 512),
}
TOKENS, UNROLLED = 768, 24
STYLES = {
    "autodiff": ("#4477aa", "o"),
    "autodiff, unrolled": ("#66ccee", "v"),
    "autodiff, rematerialised": ("#228833", "s"),
    "echo": ("#ee6677", "D"),
    "echo, a quarter at once": ("#ccbb44", "^"),
    "echo, carried momentum": ("#aa3377", "P"),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), help="by default all")
    parser.add_argument("--at", nargs="+", type=int, metavar="SIZE", help="sizes on the axes, instead of the usual ones")
    for name, default in (BASE | {"tokens": TOKENS, "repeat": 9}).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"({default})")
    parser.add_argument("--compile-only", action="store_true", help="memory of the compiled programs only")
    parser.add_argument("--out", type=Path, metavar="NAME", help="write NAME.json after each shape, and NAME.png")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="measure nothing; show the measurements in this JSON file")
    given = parser.parse_args(arguments)
    if given.plot:
        results, out = json.loads(given.plot.read_text()), given.plot.with_suffix("")
    else:
        results, out = _measure(given), given.out
    _print(results)
    if out and "blocks" in results["axes"]:
        figure(results).savefig(out.with_suffix(".png"), dpi=150)
        print(f"Written: {out.with_suffix('.json')}, {out.with_suffix('.png')}")


def _measure(given: argparse.Namespace) -> dict:
    base = {name: getattr(given, name) for name in BASE}
    results = {"device": jax.devices()[0].device_kind, "base": base, "tokens": given.tokens, "axes": {}}
    for axis in given.axes:
        results["axes"][axis] = {}
        for size in given.at or AXES[axis]:
            shape = base | {axis: size}
            results["axes"][axis][str(size)] = _measure_shape(shape, given)
            print(f"{axis} {size}", flush=True)
            if given.out:
                given.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
            jax.clear_caches()
    return results


def _measure_shape(shape: dict[str, int], given: argparse.Namespace) -> dict[str, dict]:
    """Of every row, what `gradient.Measured` has; with `--compile-only` its memory alone."""
    sizes = {name: size for name, size in shape.items() if name != "steps"}
    shapes = ModelConfig(vocab_size=65, flow=FlowConfig(units=2 * shape["width"], steps=shape["steps"]), **sizes)
    carried = shapes.model_copy(update={"flow": shapes.flow.model_copy(update={"carry_momentum": True})})
    sequences = max(1, given.tokens // shapes.context)
    rows = {
        "autodiff": gradient.autodiff(shapes),
        "autodiff, unrolled": gradient.autodiff(shapes, unroll=True),
        "autodiff, rematerialised": gradient.autodiff(shapes, remat=True),
        "echo": gradient.echo(shapes),
        "echo, a quarter at once": gradient.echo(shapes, chunk=sequences // 4 or 1),
    }
    if shapes.blocks > UNROLLED:
        del rows["autodiff, unrolled"]
    if sequences % 4:
        del rows["echo, a quarter at once"]
    with_momentum = {
        "autodiff, carried momentum": gradient.autodiff(carried),
        "echo, carried momentum": gradient.echo(carried),
    }
    params, batch = gradient.start(shapes, sequences)
    if given.compile_only:
        programs = {name: jax.jit(row).lower(params, batch).compile() for name, row in (rows | with_momentum).items()}
        return {name: {"memory": program.memory_analysis().temp_size_in_bytes} for name, program in programs.items()}
    measured = gradient.measure(rows, params, batch, given.repeat)
    measured |= gradient.measure(with_momentum, params, batch, given.repeat)
    return {name: row._asdict() for name, row in measured.items()}


def _print(results: dict) -> None:
    base = results["base"]
    print(
        f"\n{base['blocks']} blocks of width {base['width']}, {base['steps']} leapfrog step(s), context "
        f"{base['context']}, {results['tokens']} tokens, {results['device']}; milliseconds / temporary MiB"
    )
    for axis, shapes in results["axes"].items():
        names = [name for name in STYLES if any(name in rows for rows in shapes.values())]
        title = "leapfrog steps" if axis == "steps" else axis
        print(f"\n| {title} | {' | '.join(names)} | echo's time to the fastest autodiff's | worst cosine |")
        print("|---" * (len(names) + 3) + "|")
        for size, rows in shapes.items():
            print(f"| {size} | {' | '.join(_cell(rows.get(name)) for name in names)} | {_verdict(rows)} |")


def _cell(row: dict | None) -> str:
    if row is None:
        return "–"
    memory = f"{row['memory'] / 2**20:.1f}"
    return f"{row['seconds'] * 1e3:.0f} ± {row['spread'] * 1e3:.0f} / {memory}" if "seconds" in row else memory


def _verdict(rows: dict[str, dict]) -> str:
    """Of the centred echo: its time to that of the fastest other; and its worst cosine, with carried momentum or not."""
    if "seconds" not in rows["echo"]:
        return "– | –"
    fastest = min(row["seconds"] for name, row in rows.items() if name.startswith("autodiff") and "carried" not in name)
    cosine = min(row["cosine"] for name, row in rows.items() if name.startswith("echo"))
    return f"{rows['echo']['seconds'] / fastest:.2f} | {cosine:.6f}"


def figure(results: dict) -> plt.Figure:
    """Memory and time against depth, both axes logarithmic."""
    depths = results["axes"]["blocks"]
    timed = any("seconds" in row for rows in depths.values() for row in rows.values())
    drawn, axes = plt.subplots(1, 1 + timed, figsize=(5.5 * (1 + timed), 4.6), layout="constrained", squeeze=False)
    quantities = [("memory", 2**-20, "temporary memory, MiB"), ("seconds", 1e3, "time of loss and gradient, ms")]
    for panel, (quantity, unit, label) in zip(axes[0], quantities, strict=False):
        for name, (colour, marker) in STYLES.items():
            points = [(int(size), unit * rows[name][quantity]) for size, rows in depths.items() if name in rows]
            if points:
                panel.plot(*zip(*points, strict=True), color=colour, marker=marker, label=name)
        ticks = [int(size) for size in depths]
        panel.set(xscale="log", yscale="log", xlabel="blocks", ylabel=label, xticks=ticks)
        panel.set_xticklabels(ticks)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    axes[0, 0].legend(frameon=False, fontsize="small")
    base = results["base"]
    drawn.suptitle(f"width {base['width']}, {results['tokens']} tokens, {results['device']}", fontsize="medium")
    return drawn


if __name__ == "__main__":
    main()
