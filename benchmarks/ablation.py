"""What each part of the physics is worth: one small model with parts switched on or off, several seeds, one table.

    python benchmarks/ablation.py --set data.path=tinyshakespeare.txt      the table of docs/results.md
    python benchmarks/ablation.py --only "memory;field" --seeds 1          some rows, one seed
    python benchmarks/ablation.py --workers 8 --no-times                   on a GPU
    python benchmarks/ablation.py --no-losses --only "field state;master" --set model.context=256      times alone

Each row changes the reference only by the settings in its name. Differences are computed per seed, with the same data and most
of the same initial parameters; their spread is the standard deviation over the seeds. The seeds of a row train in parallel in
one program, as do several rows with `--workers`. Times are medians of training steps that alternate between the rows, so a
drift of the machine's speed affects all rows equally.
"""

import argparse
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
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

_MUON = ["optimizer.name=muon", "optimizer.learning_rate=1e-2", "optimizer.adam_learning_rate=6e-3"]

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
    "field state, projected": ["model.field.evolution=kernel", "model.field.project=true"],
    "master equation": ["model.field.evolution=master"],
    "master equation, projected": ["model.field.evolution=master", "model.field.project=true"],
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
    "learning rate doubled": ["optimizer.learning_rate=8e-3"],
    "learning rate by a line": ["optimizer.schedule=linear"],
    "warm-up, stable, decay": ["optimizer.schedule=warmup_stable_decay"],
    "decay falls as a cosine": ["optimizer.weight_decay_schedule=cosine"],
    "average of weights, 0.99": ["optimizer.average=0.99"],
    "Muon": [*_MUON, "optimizer.weight_decay=0.2"],
    "Muon, decay 0.05": _MUON,
    "Muon, decay falls as a cosine": [*_MUON, "optimizer.weight_decay=0.2", "optimizer.weight_decay_schedule=cosine"],
    "Muon, rate by a line": [*_MUON, "optimizer.weight_decay=0.2", "optimizer.schedule=linear"],
    "Muon, average of weights, 0.99": [*_MUON, "optimizer.weight_decay=0.2", "optimizer.average=0.99"],
}

CHUNK = 50
"""Steps that one call of the compiled program makes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="(3)")
    parser.add_argument(
        "--only", default="", help="rows whose name contains one of these texts, split at semicolons, beside the reference"
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for all rows")
    parser.add_argument("--workers", type=int, default=1, help="rows at once (1)")
    parser.add_argument("--losses", action=argparse.BooleanOptionalAction, default=True, help="train and score")
    parser.add_argument("--times", action=argparse.BooleanOptionalAction, default=True, help="measure times of steps")
    parser.add_argument("--out", type=Path, help="keep finished rows in this file, one JSON object each, and go on from it")
    arguments = parser.parse_args()

    words = [word.strip() for word in arguments.only.split(";") if word.strip()]
    chosen = {name: row for name, row in ROWS.items() if not words or name == "reference" or any(w in name for w in words)}
    configs = {name: configuration.parse(REFERENCE, "the ablation", [*arguments.set, *row]) for name, row in chosen.items()}
    corpus = data.load(configs["reference"])
    configs = {name: data.with_vocabulary(config, corpus) for name, config in configs.items()}

    lines = arguments.out.read_text().splitlines() if arguments.out and arguments.out.exists() else []
    losses = {row["row"]: np.array(row["nats"]) for row in map(json.loads, lines) if len(row["nats"]) == arguments.seeds}
    writing = threading.Lock()

    def measure(name: str) -> None:
        nats = _train(configs[name], corpus, arguments.seeds)
        with writing:
            losses[name] = nats
            print(f"{name:42} {' '.join(f'{x:.4f}' for x in nats)} nats/char", flush=True)
            if arguments.out:
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"row": name, "nats": nats.tolist()}) + "\n")

    if arguments.losses:
        with ThreadPoolExecutor(arguments.workers) as pool:
            list(pool.map(measure, [name for name in configs if name not in losses]))
    jax.clear_caches()
    _print_table(configs, losses, _time(configs, corpus) if arguments.times else {})


def _start(config: Config, seed: int) -> State:
    return jax.jit(initial_state, static_argnums=1)(jax.random.key(seed), config)


def _batch(config: Config, corpus: Corpus, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    return data.batch_at(corpus.train, seed, step, config.training.batch_size, config.model.context)


def _train(config: Config, corpus: Corpus, seeds: int) -> np.ndarray:
    """Nats per character of the whole validation part after training, of each seed. The seed stays out of the configuration,
    which is compiled in."""
    steps = config.training.steps
    states = [_start(config, seed) for seed in range(seeds)]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    @jax.jit
    def train(state: State, batches: tuple[jax.Array, jax.Array]) -> State:
        one = jax.vmap(lambda state, tokens, targets: loop.train_step(state, (tokens, targets), config)[0])
        return jax.lax.scan(lambda state, batch: (one(state, *batch), None), state, batches)[0]

    for first in range(0, steps, CHUNK):
        taken = range(first, min(first + CHUNK, steps))
        batches = [[_batch(config, corpus, seed, step) for seed in range(seeds)] for step in taken]
        state = train(
            state, (np.array([[b[0] for b in row] for row in batches]), np.array([[b[1] for b in row] for row in batches]))
        )
    windows = scoring.cover(corpus.validation, config.model.context)
    weights = (jax.tree.map(lambda x, seed=seed: x[seed], state.weights) for seed in range(seeds))
    return np.array([scoring.mean_nats(params, windows, config.model) for params in weights]) / corpus.characters_per_token


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
    spread = {"ddof": 1 if len(losses.get("reference", ())) > 1 else 0}
    for name in configs:
        figures = ["–"] * 4
        if name in losses:
            nats, difference = losses[name], losses[name] - losses["reference"]
            own, other = nats.std(**spread), difference.std(**spread)
            figures = [f"{nats.mean():.4f}", f"{own:.4f}", f"{difference.mean():+.4f}", f"{other:.4f}"]
        time_ratio = f"{seconds[name] / seconds['reference']:.2f}" if seconds else "–"
        parameters = model.count(jax.eval_shape(lambda config=configs[name]: model.init(jax.random.key(0), config.model)))
        print(f"| {name} | {' | '.join(figures)} | {time_ratio} | {parameters:,} |")


if __name__ == "__main__":
    main()
