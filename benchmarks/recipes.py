"""Several models of one shape, trained in parallel in one program, each with its own learning rate, weight decay and seed.

    python benchmarks/recipes.py configs/shakespeare.yaml --set data.path=tinyshakespeare.txt --recipes 0.005:0.3:3 0.01:0.2
    python benchmarks/recipes.py configs/gpu.yaml --set data.path=tinyshakespeare.txt --recipes 0.005:0.6 --seconds 200

A recipe is `peak learning rate:weight decay`, with `:seeds` for more than one seed. Everything else is that of the
configuration, with Muon; the ratio of the rate of its AdamW part to that of Muon is the configuration's. A small model does not
fill a GPU, so four cost little more than one. A seed has the initial parameters and the batches that `train.py` gives it, but
other dropout masks. Losses are nats per character of the whole validation part by nanoGPT's protocol (disjoint windows of the
context), of the weights and of their average (`optimizer.average`, 0.999 by default); the table has those of the last step.

With `--seconds` the number of steps follows from the time that the first ones take, so that the schedule ends in time; at most
`training.steps`.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lior_jax import config as configuration
from lior_jax import data, learning, model
from lior_jax.inference import scoring
from lior_jax.learning.optimizer import averaged, make_schedule
from lior_jax.model import Params, decay_mask
from lior_jax.registry import OPTIMIZERS
from lior_jax.settings import Config
from lior_jax.training.step import step_key

CHUNK, TIMED = 20, 5
"""Steps that one call makes, and calls that are timed before the number of steps is fixed."""

WINDOWS = 32
"""Validation windows scored at once."""


class Recipe(NamedTuple):
    """What a model has of its own."""

    learning_rate: Any
    weight_decay: Any
    seed: Any


class State(NamedTuple):
    """One model as it trains."""

    params: Params
    average: Params
    optimizer: Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--recipes", nargs="+", required=True, metavar="RATE:DECAY[:SEEDS]")
    parser.add_argument("--seconds", type=float, help="longest time of training, without compilation")
    parser.add_argument("--evaluations", type=int, default=4, help="(4)")
    parser.add_argument("--out", type=Path, help="write all results to this JSON file")
    given = parser.parse_args()

    config = configuration.load(given.config, ["optimizer.name=muon", *given.set])
    corpus = data.load(config)
    config = data.with_vocabulary(config, corpus)
    recipes = [recipe for text in given.recipes for recipe in _parse(text)]
    print(f"{_parameters(config):,} parameters; {len(recipes)} at once on {jax.devices()[0].device_kind}", flush=True)
    result = train(config, corpus, recipes, given.seconds, given.evaluations)
    if given.out:
        given.out.write_text(json.dumps({"recipes": recipes, "settings": given.set, **result}) + "\n", encoding="utf-8")
    print(f"\n{result['steps']:,} steps, {result['ms']:.2f} ms a step of all, {result['seconds']:.0f} s\n")
    print("| learning rate | decay | training loss | validation | of the average |")
    print("|---|---|---|---|---|")
    last = result["rows"][-1]
    for recipe, *losses in zip(recipes, last["training"], last["validation"], last["average"], strict=True):
        print(f"| {recipe[0]:g} | {recipe[1]:g} | {losses[0]:.3f} | {losses[1]:.4f} | {losses[2]:.4f} |")


def _parse(text: str) -> list[Recipe]:
    rate, decay, *seeds = text.split(":")
    return [Recipe(float(rate), float(decay), seed) for seed in range(int(seeds[0]) if seeds else 1)]


def _parameters(config: Config) -> int:
    return model.count(jax.eval_shape(lambda key: model.init(key, config.model), jax.random.key(0)))


def train(config: Config, corpus: Any, recipes: list[Recipe], seconds: float | None, evaluations: int) -> dict[str, Any]:
    """Train all recipes; what the table is made of."""
    steps = config.training.steps
    stacked = Recipe(*(jnp.array(values) for values in zip(*recipes, strict=True)))
    state = _start(stacked.seed, config)
    windows = scoring.cover(corpus.validation, config.model.context)
    rows: list[dict[str, Any]] = []
    done, spent, recent, marks = 0, 0.0, [], []
    begin = time.perf_counter()
    while done < steps:
        batches = _batches(corpus.train, recipes, done, config)
        called = time.perf_counter()
        state, losses = _chunk(state, stacked, batches, jnp.int32(done), jnp.float32(steps), config)
        losses = np.asarray(losses)
        if done:
            spent += time.perf_counter() - called
        else:
            print(f"compiled in {time.perf_counter() - begin:.0f} s", flush=True)
        done, recent = done + CHUNK, [*recent[-9:], losses.mean(0)]
        if done == CHUNK * (TIMED + 1):
            if seconds:
                steps = min(steps, int(seconds / (spent / TIMED)) * CHUNK)
            marks = [steps * (i + 1) // evaluations // CHUNK * CHUNK for i in range(evaluations - 1)]
        if done in marks or done >= steps:
            found = {"step": done, "training": np.mean(recent, 0).tolist()}
            found["validation"], found["average"] = (
                (_validate(params, windows, config) / corpus.characters_per_token).tolist()
                for params in (state.params, state.average)
            )
            rows.append(found)
            print(json.dumps(found), flush=True)
    return {"rows": rows, "steps": done, "ms": 1e3 * spent / (done - CHUNK), "seconds": time.perf_counter() - begin}


def _batches(tokens: np.ndarray, recipes: list[Recipe], first: int, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and targets of the next steps, `[CHUNK, models, B, L]`."""

    def of(seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        return data.batch_at(tokens, seed, step, config.training.batch_size, config.model.context)

    by_seed = {seed: [of(seed, first + step) for step in range(CHUNK)] for seed in sorted({recipe.seed for recipe in recipes})}
    steps = [[by_seed[recipe.seed][step] for recipe in recipes] for step in range(CHUNK)]
    return np.array([[batch[0] for batch in row] for row in steps]), np.array([[batch[1] for batch in row] for row in steps])


@partial(jax.jit, static_argnums=1)
def _start(seeds: jax.Array, config: Config) -> State:
    def one(seed: jax.Array) -> State:
        params = model.init(jax.random.key(seed), config.model)
        return State(params, params, _directions(config).init(params))

    return jax.vmap(one)(seeds)


def _directions(config: Config) -> optax.GradientTransformation:
    own = config.optimizer
    return optax.chain(optax.clip_by_global_norm(own.clip_norm), OPTIMIZERS[own.name](own))


@partial(jax.jit, static_argnums=5, donate_argnums=0)
def _chunk(
    state: State, recipes: Recipe, batches: Any, first: jax.Array, steps: jax.Array, config: Config
) -> tuple[State, jax.Array]:
    """Some steps of all models, and their training losses."""

    def one(state: State, recipe: Recipe, batch: Any, step: jax.Array, key: jax.Array) -> tuple[State, jax.Array]:
        gradient, info = learning.estimate(state.params, batch, config.model, config.learning, key)
        directions, optimizer = _directions(config).update(gradient, state.optimizer, state.params)
        rate = recipe.learning_rate * _share(step, steps, config)
        moved = jax.tree.map(
            lambda p, u, decays: p - rate * (u + decays * recipe.weight_decay * p),
            state.params,
            directions,
            decay_mask(state.params),
        )
        moved = moved._replace(carried=info.carried)
        average = averaged(state.average, moved, step + 1, config.optimizer.average or 0.999)
        return State(moved, average, optimizer), info.loss

    def body(state: State, given: tuple[Any, jax.Array]) -> tuple[State, jax.Array]:
        batch, step = given
        keys = jax.vmap(lambda index: jax.random.fold_in(step_key(step, config), index))(jnp.arange(len(recipes.seed)))
        return jax.vmap(one, in_axes=(0, 0, 0, None, 0))(state, recipes, batch, step, keys)

    return jax.lax.scan(body, state, (batches, first + jnp.arange(CHUNK)))


def _share(step: jax.Array, steps: jax.Array, config: Config) -> jax.Array:
    """The learning rate as a share of its peak: the configuration's schedule, stretched to a number of steps that is known only
    when the program runs."""
    long = 10**6
    optimizer = config.optimizer.model_copy(update={"learning_rate": 1.0, "warmup_steps": 0})
    warmup = config.optimizer.warmup_steps
    fallen = make_schedule(optimizer, long)(jnp.maximum(step - warmup, 0) / (steps - warmup) * long)
    return fallen * jnp.minimum(1.0, step / max(1, warmup))


def _validate(params: Params, windows: scoring.Windows, config: Config) -> np.ndarray:
    """Mean nats per token of each model."""
    total = 0.0
    for first in range(0, len(windows), WINDOWS):
        piece = windows[first : first + WINDOWS]
        arrays = piece.tokens, piece.targets, piece.counted
        tokens, targets, counted = (np.pad(x, ((0, WINDOWS - len(x)), (0, 0))) for x in arrays)
        total = total + (np.asarray(_losses(params, tokens, targets, config), np.float64) * counted).sum((1, 2))
    return total / windows.counts.sum()


@partial(jax.jit, static_argnums=3)
def _losses(params: Params, tokens: jax.Array, targets: jax.Array, config: Config) -> jax.Array:
    return jax.vmap(lambda one: model.token_losses(one, tokens, targets, config.model))(params)


if __name__ == "__main__":
    main()
