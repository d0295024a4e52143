"""Every part of the physics off and on: the same small model, equal steps, several seeds, one table.

    python benchmarks/ablation.py --set data.path=tinyshakespeare.txt     the table of the README
    python benchmarks/ablation.py --only memory,field --seeds 1           a quick look

Each row changes the reference by the settings it names and nothing else. A difference is taken seed by seed, which share their
data and most of their initial parameters; its spread is the standard deviation over the seeds. Times are medians of training
steps, taken in turn row by row so that a drift of the machine's speed touches all alike.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np

from lior_jax import config as configuration
from lior_jax import data, model
from lior_jax.data.corpus import Corpus
from lior_jax.inference import scoring
from lior_jax.settings import Config
from lior_jax.training import loop
from lior_jax.training.step import State, initial_state

REFERENCE = """
data: {tokenizer: char}
model:
  context: 128
  width: 128
  blocks: 3
  flow: {units: 256, steps: 1, carry_momentum: false}
  geometry: {metric: diag_rot, frame: rotor, resilience: unit}
  convolution: {long: false}
  retrieval: {lag_prior: true, products: []}
  field: {evolution: off}
learning: {chunk: 4}
optimizer: {learning_rate: 4e-3, warmup_steps: 40}
training: {steps: 400, batch_size: 8}
"""

ROWS: dict[str, list[str]] = {
    "reference": [],
    "block_rot, blocks of 2": ["model.geometry.metric=block_rot"],
    "block_rot, blocks of 4": ["model.geometry.metric=block_rot", "model.geometry.block=4"],
    "no rotors: coordinate axes": ["model.geometry.rotor_layers=0"],
    "frame derived": ["model.geometry.frame=derived"],
    "frame learned_lowrank": ["model.geometry.frame=learned_lowrank"],
    "resilience constitutive": ["model.geometry.resilience=constitutive"],
    "resilience curvature": ["model.geometry.resilience=curvature"],
    "kernel memory": ["model.convolution.long=true"],
    "no lag prior": ["model.retrieval.lag_prior=false"],
    "adaptive order": ["model.retrieval.adaptive_order=true"],
    "action in the cost, weight 0.01": ["learning.action_weight=0.01"],
    "field state": ["model.field.evolution=kernel"],
    "product tensor": ["model.retrieval.products=[tensor]"],
    "product wedge": ["model.retrieval.products=[wedge]"],
    "product spinor": ["model.retrieval.products=[spinor]"],
    "all three products": ["model.retrieval.products=[tensor, wedge, spinor]"],
    "2 leapfrog steps of 0.5": ["model.flow.steps=2", "model.flow.step_size=0.5"],
    "2 leapfrog steps of 0.7": ["model.flow.steps=2", "model.flow.step_size=0.7"],
    "4 leapfrog steps of 0.25": ["model.flow.steps=4", "model.flow.step_size=0.25"],
    "1 step of 1, fourth order": ["model.flow.integrator=yoshida4"],
    "potential hopfield": ["model.flow.potential=hopfield"],
    "potential hopfield, as many parameters": ["model.flow.potential=hopfield", "model.flow.units=513"],
    "carried momentum": ["model.flow.carry_momentum=true"],
    "field state, kernel memory": ["model.field.evolution=kernel", "model.convolution.long=true"],
    "field state, kernel memory, product wedge": [
        "model.field.evolution=kernel",
        "model.convolution.long=true",
        "model.retrieval.products=[wedge]",
    ],
    "field state, frame derived": ["model.field.evolution=kernel", "model.geometry.frame=derived"],
    "field state, frame derived, kernel memory": [
        "model.field.evolution=kernel",
        "model.geometry.frame=derived",
        "model.convolution.long=true",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="(3)")
    parser.add_argument("--only", default="", help="rows whose name contains one of these words, beside the reference")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for all rows")
    parser.add_argument("--out", type=Path, help="keep finished runs in this file, one JSON object each, and go on from it")
    arguments = parser.parse_args()

    words = [word.strip() for word in arguments.only.split(",") if word.strip()]
    chosen = {name: row for name, row in ROWS.items() if not words or name == "reference" or any(w in name for w in words)}
    configs = {name: configuration.parse(REFERENCE, "the ablation", [*arguments.set, *row]) for name, row in chosen.items()}
    corpus = data.load(configs["reference"])
    configs = {name: data.with_vocabulary(config, corpus) for name, config in configs.items()}

    lines = arguments.out.read_text().splitlines() if arguments.out and arguments.out.exists() else []
    nats = {(run["row"], run["seed"]): run["nats"] for run in map(json.loads, lines)}
    for name, config in configs.items():
        for seed in range(arguments.seeds):
            if (name, seed) in nats:
                continue
            nats[name, seed] = _train(config, corpus, seed)
            print(f"{name:42} seed {seed}  {nats[name, seed]:.4f} nats/char", flush=True)
            if arguments.out:
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"row": name, "seed": seed, "nats": nats[name, seed]}) + "\n")
        jax.clear_caches()  # the next row compiles its own programs
    losses = {name: np.array([nats[name, seed] for seed in range(arguments.seeds)]) for name in configs}
    _print_table(configs, losses, _time(configs, corpus))


def _start(config: Config, seed: int) -> State:
    return jax.jit(initial_state, static_argnums=1)(jax.random.key(seed), config)


def _batch(config: Config, corpus: Corpus, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    return data.batch_at(corpus.train, seed, step, config.training.batch_size, config.model.context)


def _train(config: Config, corpus: Corpus, seed: int) -> float:
    """Train, and validate on the whole validation part. The seed stays out of the configuration, which is compiled in."""
    state = _start(config, seed)
    for step in range(config.training.steps):
        state, report = loop.train_step(state, _batch(config, corpus, seed, step), config)
    if not np.isfinite(report.info.loss):
        return float("nan")
    windows = scoring.cover(corpus.validation, config.model.context)
    return scoring.mean_nats(state.params, windows, config.model) / corpus.characters_per_token


def _time(configs: dict[str, Config], corpus: Corpus, repeat: int = 15) -> dict[str, float]:
    states = {name: _start(config, 0) for name, config in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    for step in range(repeat + 1):
        for name, config in configs.items():
            batch = _batch(config, corpus, 0, step)
            begin = time.perf_counter()
            states[name], _ = jax.block_until_ready(loop.train_step(states[name], batch, config))
            seconds[name].append(time.perf_counter() - begin)
    return {name: float(np.median(values[1:])) for name, values in seconds.items()}  # the first one compiles


def _print_table(configs: dict[str, Config], losses: dict[str, np.ndarray], seconds: dict[str, float]) -> None:
    print("\n| row | nats/char | spread | difference | its spread | time | parameters |")
    print("|---|---|---|---|---|---|---|")
    spread = {"ddof": 1 if len(losses["reference"]) > 1 else 0}
    for name, nats in losses.items():
        difference = nats - losses["reference"]
        parameters = model.count(jax.eval_shape(lambda config=configs[name]: model.init(jax.random.key(0), config.model)))
        print(
            f"| {name} | {nats.mean():.4f} | {nats.std(**spread):.4f} | {difference.mean():+.4f} | "
            f"{difference.std(**spread):.4f} | {seconds[name] / seconds['reference']:.2f} | {parameters:,} |"
        )


if __name__ == "__main__":
    main()
