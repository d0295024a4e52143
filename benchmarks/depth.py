"""Forty-eight blocks with carried momentum: memory, reversibility during training, agreement with automatic differentiation.

    XLA_FLAGS=--xla_cpu_use_fusion_emitters=false python benchmarks/depth.py --out docs/depth
    python benchmarks/depth.py --plot docs/depth.json               table and figure of a stored measurement

Each setting of `configs/deep.yaml` trains in a process of its own, whose peak resident memory is read before automatic
differentiation is compiled there. The flag (of JAX 0.10) makes XLA's compiler take less memory. Cosines are those of the
worst leaf, before and after training, on four windows of the text; the residual is the relative distance between the embedded
state and the one that the echo reconstructed through all blocks.
"""

import argparse
import json
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from lior_jax import config as configuration

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "deep.yaml"
SETTINGS = {
    "step 1": ["model.flow.step_size=1.0"],
    "step 1/4": ["model.flow.step_size=0.25"],
    "step 1/√48": [],
    "step 1/√48, halved in two": ["model.flow.step_size=0.072", "model.flow.steps=2"],
}
STYLES = (
    {"color": "#4477aa", "linewidth": 1.3},
    {"color": "#228833", "linewidth": 1.3},
    {"color": "#f5a3ad", "linewidth": 4.5},
    {"color": "#7a1f5c", "linewidth": 1.1, "linestyle": (0, (4, 2))},
)
"""The last two lie on each other: a dashed line within a broad one."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for all settings")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="by default all")
    parser.add_argument("--out", type=Path, metavar="NAME", help="write NAME.json after each setting, and NAME.png")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="measure nothing; show the measurements in this JSON file")
    given = parser.parse_args(arguments)
    if given.plot:
        results, out = json.loads(given.plot.read_text()), given.plot.with_suffix("")
    else:
        results, out = {}, given.out
        alone = multiprocessing.get_context("spawn")
        for name in given.settings:
            with ProcessPoolExecutor(1, mp_context=alone) as process:
                results[name] = process.submit(measure, [*given.set, *SETTINGS[name]]).result()
            if out:
                out.with_suffix(".json").write_text(json.dumps(results) + "\n")
    _print(results)
    if out:
        figure(results).savefig(out.with_suffix(".png"), dpi=150)
        print(f"\nWritten: {out.with_suffix('.json')}, {out.with_suffix('.png')}")


def measure(overrides: list[str]) -> dict:
    """Train, and look at the estimate before and after."""
    import gradient
    import jax

    from lior_jax import data, model
    from lior_jax.training.step import initial_state, train_step

    config = configuration.load(CONFIG, overrides)
    corpus = data.load(config)
    config = data.with_vocabulary(config, corpus)
    training, context = config.training, config.model.context
    state = jax.jit(initial_state, static_argnums=1)(jax.random.key(0), config)
    first = jax.device_get(state.params)
    residuals, losses, seconds = [], [], []
    for step in range(training.steps):
        batch = data.batch_at(corpus.train, config.run.seed, step, training.batch_size, context)
        begin = time.perf_counter()
        state, report = jax.block_until_ready(train_step(state, batch, config))
        seconds.append(time.perf_counter() - begin)
        residuals.append(float(report.info.reversibility))
        losses.append(float(report.info.loss))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    memory = train_step.lower(state, batch, config).compile().memory_analysis().temp_size_in_bytes

    batch = data.batch_at(corpus.train, config.run.seed, training.steps, 4, context)
    rows = {"autodiff": gradient.autodiff(config.model, remat=True), "echo": gradient.echo(config.model)}
    before, after = (gradient.measure(rows, params, batch, repeat=1)["echo"].cosine for params in (first, state.params))
    return {
        "parameters": model.count(first),
        "resident": resident,
        "temporary": memory,
        "seconds": float(np.median(seconds[1:])),
        "residuals": residuals,
        "losses": losses,
        "cosine_before": before,
        "cosine_after": after,
    }


def _print(results: dict[str, dict]) -> None:
    first = next(iter(results.values()))
    print(f"{first['parameters']:,} parameters, {len(first['losses'])} steps; loss is the mean of the last 20 steps\n")
    print("| setting | largest resident MB | temporary MiB | ms a step | largest residual | cosine before | after | loss |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row in results.items():
        print(
            f"| {name} | {row['resident'] / 1e6:.0f} | {row['temporary'] / 2**20:.1f} | {row['seconds'] * 1e3:.0f} "
            f"| {max(row['residuals']):.0e} | {row['cosine_before']:.6f} | {row['cosine_after']:.6f} "
            f"| {np.mean(row['losses'][-20:]):.3f} |"
        )


def figure(results: dict[str, dict]) -> plt.Figure:
    """Residual and loss over training."""
    drawn, (health, learning) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for (name, row), style in zip(results.items(), STYLES, strict=False):
        width = max(1, len(row["losses"]) // 20)
        smooth = np.convolve(row["losses"], np.ones(width) / width, "valid")
        health.semilogy(row["residuals"], label=name, **style)
        learning.plot(np.arange(len(smooth)) + width, smooth, label=name, **style)
    health.set(xlabel="step", ylabel="relative distance of the rebuilt input", title="The way back through all blocks")
    learning.set(xlabel="step", ylabel="training loss, nats/char (running mean)", title="Learning")
    health.grid(alpha=0.3)
    learning.grid(alpha=0.3)
    learning.legend(frameon=False, handlelength=3)
    return drawn


if __name__ == "__main__":
    main()
