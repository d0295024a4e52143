"""Multi-query associative recall: pairs of a key and a value, a gap, then the keys again, each to be answered by its value.

    python benchmarks/recall.py                                        4 pairs of 8 symbols, charts of 16 dimensions, all rows
    python benchmarks/recall.py --pairs 4 8 16 --symbols 16 --dims 8 16 32 --seeds 3 --out docs/recall.json

Retrieval sees `--window` positions, and the gap is longer than what windows and taps of all blocks reach together: so the
answers can only come through the field's state, of `dims` times `width / heads` numbers a head and site. Row by row, the field
is off, the kernel's, the master equation's, and that with keys and values projected from it; all of them learn by the echo. The
transformer (`transformer.py`, of as many parameters and by back-propagation) sees everything; its accuracy is an upper
reference. Source: Arora et al. 2023, "Zoology: Measuring and Improving Recall in Efficient Language Models".

Accuracy is that of the answers in sequences that were not trained on; guessing one of the values that occur gives 1 / pairs.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import transformer

from lior_jax import config as configuration
from lior_jax import model
from lior_jax.model import network
from lior_jax.model.terms import Recipe
from lior_jax.physics.scores import LagPrior
from lior_jax.registry import SCORE_TERMS
from lior_jax.settings import Config
from lior_jax.training.step import initial_state, train_step

BLANK = 0
TAPS, BLOCKS = 2, 2
MODEL = f"""
data: {{tokenizer: char}}
model:
  width: 64
  blocks: {BLOCKS}
  heads: 2
  geometry: {{rank: 0}}
  convolution: {{taps: {TAPS}}}
  retrieval: {{products: [window]}}
  flow: {{units: 64}}
optimizer: {{learning_rate: 1e-2, weight_decay: 0.0}}
"""
ROWS = {
    "retrieval alone": ["model.field.evolution=off"],
    "kernel": ["model.field.evolution=kernel"],
    "master": ["model.field.evolution=master"],
    "master, projected": ["model.field.evolution=master", "model.field.project=true"],
    "transformer": [],
}


class Task(NamedTuple):
    """How many keys (`pairs`) a sequence has, each written `writes` times with a value of its own, out of so many different
    keys and values (`symbols` of each), and the `gap` behind them."""

    pairs: int
    writes: int
    symbols: int
    gap: int

    @property
    def vocabulary(self) -> int:
        return 1 + 2 * self.symbols

    @property
    def length(self) -> int:
        return self.pairs * (2 * self.writes + 1) + self.gap

    def batch(self, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and targets `[B, L]`; the target is the latest value of a key where it is asked for, else blank."""
        drawn = rng.permuted(np.tile(np.arange(self.symbols), (size, 1)), axis=1)[:, : self.pairs]
        which = rng.permuted(np.tile(np.arange(self.pairs), (size, self.writes)), axis=1)
        values = rng.integers(0, self.symbols, which.shape)
        asked = rng.permuted(np.tile(np.arange(self.pairs), (size, 1)), axis=1)
        latest = which.shape[1] - 1 - np.argmax(which[:, None, ::-1] == asked[:, :, None], axis=-1)
        tokens, targets = np.full((2, size, self.length), BLANK, np.int32)
        written = 2 * which.shape[1]
        tokens[:, :written:2], tokens[:, 1:written:2] = 1 + np.take_along_axis(drawn, which, 1), 1 + self.symbols + values
        tokens[:, -self.pairs :] = 1 + np.take_along_axis(drawn, asked, 1)
        targets[:, -self.pairs :] = 1 + self.symbols + np.take_along_axis(values, latest, 1)
        return tokens, targets


class Row(NamedTuple):
    """What learns: the first state of a seed, a step, and the logits of a state."""

    start: Callable[[int], Any]
    step: Callable[[Any, Any], Any]
    logits: Callable[[Any, Any], jax.Array]
    parameters: int


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="(all)")
    parser.add_argument("--pairs", nargs="+", type=int, default=[4], help="in a sequence (4)")
    parser.add_argument("--writes", type=int, default=2, help="of each key, with other values; the latest counts (2)")
    parser.add_argument("--symbols", type=int, default=8, help="different keys, and values; no fewer than pairs (8)")
    parser.add_argument("--dims", nargs="+", type=int, default=[16], help="of a head's chart (16)")
    parser.add_argument("--window", type=int, default=8, help="positions that retrieval sees (8)")
    parser.add_argument("--steps", type=int, default=1500, help="(1500)")
    parser.add_argument("--batch", type=int, default=64, help="sequences a step (64)")
    parser.add_argument("--seeds", type=int, default=1, help="(1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write what was measured as JSON, after each run")
    given = parser.parse_args(arguments)
    if max(given.pairs) > given.symbols:
        parser.error(f"--pairs {max(given.pairs)}: a sequence has no more pairs than there are --symbols ({given.symbols})")
    SCORE_TERMS.register("window", window_of(given.window))

    measured = []
    for pairs, dims in [(pairs, dims) for pairs in given.pairs for dims in given.dims]:
        task = Task(pairs, given.writes, given.symbols, BLOCKS * (given.window + TAPS))
        for name in given.rows:
            row = make_row(name, task, dims, given.steps)
            runs = [train(row, task, given.steps, given.batch, seed) for seed in range(given.seeds)]
            accuracy, seconds = zip(*runs, strict=True)
            measured.append({"row": name, "pairs": pairs, "dims": dims, "parameters": row.parameters, "accuracy": accuracy})
            spread = f" ± {np.std(accuracy, ddof=1):.3f}" if given.seeds > 1 else ""
            print(
                f"{pairs:3} pairs, {dims:3} dimensions, {name:18} {row.parameters:7,} parameters: "
                f"{np.mean(accuracy):.3f}{spread} recalled, {np.mean(seconds):.0f} s",
                flush=True,
            )
            if given.out:
                given.out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def window_of(window: int) -> Recipe:
    """A score term that hides what lies further back; its one parameter a head does nothing."""

    def prepare(raw, state, length, config):
        return LagPrior(jnp.where(jnp.arange(length)[None] < window, 0.0, -1e9) + 0 * raw[:, None])

    return Recipe(
        init=lambda config, normal: jnp.zeros(config.heads),
        prepare=prepare,
        prepare_adjoint=lambda raw, state, cotangent, config: jnp.zeros_like(raw),
    )


def make_row(name: str, task: Task, dims: int, steps: int) -> Row:
    shapes = [
        f"model.vocab_size={task.vocabulary}",
        f"model.context={task.length}",
        f"model.geometry.chart_dim={dims}",
        f"model.geometry.rotor_layers={min(4, dims - 1)}",
        f"training.steps={steps}",
        f"optimizer.warmup_steps={min(100, steps // 2)}",
    ]
    config = configuration.parse(MODEL, "the benchmark", shapes + ROWS[name])
    count = model.count(jax.eval_shape(lambda: model.init(jax.random.key(0), config.model)))
    if name == "transformer":
        return _transformer(count, config)
    start = jax.jit(initial_state, static_argnums=1)
    logits = jax.jit(partial(model.logits, config=config.model))
    return Row(
        lambda seed: start(jax.random.key(seed), config),
        lambda state, batch: train_step(state, batch, config)[0],
        lambda state, tokens: logits(state.params, tokens),
        count,
    )


def _transformer(parameters: int, config: Config) -> Row:
    net = transformer.of_size(parameters, config.model.vocabulary, BLOCKS)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 5e-3, config.optimizer.warmup_steps, config.training.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    @jax.jit
    def start(seed):
        params = net.init(jax.random.key(seed), jnp.zeros((1, config.model.context), jnp.int32))
        return params, optimizer.init(params)

    @partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        gradient = jax.grad(lambda params: jnp.mean(network.cross_entropy(net.apply(params, batch[0]), batch[1])))(state[0])
        updates, moments = optimizer.update(gradient, state[1], state[0])
        return optax.apply_updates(state[0], updates), moments

    shapes = jax.eval_shape(start, 0)[0]
    return Row(
        start, step, jax.jit(lambda state, tokens: net.apply(state[0], tokens)), sum(x.size for x in jax.tree.leaves(shapes))
    )


def train(row: Row, task: Task, steps: int, batch: int, seed: int) -> tuple[float, float]:
    """Share of the answers that are right after training, and its seconds."""
    jax.block_until_ready(row.step(row.start(seed), task.batch(np.random.default_rng(seed), batch)))  # compiles
    state, begin = row.start(seed), time.perf_counter()
    for step in range(steps):
        state = jax.block_until_ready(row.step(state, task.batch(np.random.default_rng((seed, step)), batch)))
    seconds = time.perf_counter() - begin
    tokens, targets = task.batch(np.random.default_rng((seed, steps)), 256)
    answers = np.argmax(row.logits(state, tokens), -1)
    return float(np.mean((answers == targets)[:, -task.pairs :])), seconds


if __name__ == "__main__":
    main()
