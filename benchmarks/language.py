"""Echo, equilibrium propagation and back-propagation on the same text: loss and time after equal tokens.

    python benchmarks/language.py                                       the table of the README, on the embedded corpus
    python benchmarks/language.py --set data.path=tinyshakespeare.txt   another text

Two networks of the same parameters, one that flows and one that relaxes; each learns by its own rule and by exact
back-propagation of the same forward pass (of the relaxation: through its unrolled steps). Same first parameters, same batches,
same optimiser. Loss is that of the whole validation part. Times are medians of training steps taken in turn, row by row, so
that a drift of the machine's speed touches all alike. Ratios are to back-propagation through the flow.
"""

import argparse
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lior_jax import config as configuration
from lior_jax import learning
from lior_jax.config import Config
from lior_jax.inference import scoring
from lior_jax.model import dropout, network
from lior_jax.model.operators import carry
from lior_jax.training import data, loop
from lior_jax.training.data import Corpus
from lior_jax.training.step import dropout_key

MODEL = """
model: {context: 64, width: 64, blocks: 3, potential_units: 128}
optimizer: {learning_rate: 4e-3, warmup_steps: 40}
training: {steps: 400, batch_size: 8}
"""
BASELINE = "back-propagation, flow"
ROWS = {
    BASELINE: ("echo", True),
    "echo": ("echo", False),
    "back-propagation, unrolled relaxation": ("equilibrium", True),
    "equilibrium": ("equilibrium", False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="(1)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for all rows")
    arguments = parser.parse_args()

    configs = {
        name: configuration.parse(MODEL, "the benchmark", [*arguments.set, f"learning.rule={rule}"])
        for name, (rule, _) in ROWS.items()
    }
    corpus = data.load(configs["echo"])
    configs = {name: loop.with_vocabulary(config, corpus) for name, config in configs.items()}
    steps = {name: _by_autodiff if exact else loop.train_step for name, (_, exact) in ROWS.items()}
    runs = [_run(configs, steps, corpus, seed) for seed in range(arguments.seeds)]

    training, context = configs["echo"].training, configs["echo"].model.context
    print(f"{training.steps} steps of {training.batch_size} x {context} tokens, {arguments.seeds} seed(s), ", end="")
    print(f"{jax.devices()[0].device_kind}\n")
    print("| learning by | nats/char | ratio | ms a step | ratio | largest residual |")
    print("|---|---|---|---|---|---|")
    nats, seconds, health = ({name: np.mean([run[name][i] for run in runs]) for name in ROWS} for i in range(3))
    for name in ROWS:
        print(
            f"| {name} | {nats[name]:.4f} | {nats[name] / nats[BASELINE]:.3f} | {seconds[name] * 1e3:.0f} "
            f"| {seconds[name] / seconds[BASELINE]:.2f} | {'–' if ROWS[name][1] else f'{health[name]:.0e}'} |"
        )


def _run(configs: dict[str, Config], steps: dict[str, Any], corpus: Corpus, seed: int) -> dict[str, tuple[float, float, float]]:
    """Of every row: loss of the validation part, median seconds of a step, largest residual of all steps."""
    start = jax.jit(loop.initial_state, static_argnums=1)
    states = {name: start(jax.random.key(seed), config) for name, config in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    health = dict.fromkeys(configs, 0.0)
    training, context = configs["echo"].training, configs["echo"].model.context
    for step in range(training.steps):
        batch = data.batch_at(corpus.train, seed, step, training.batch_size, context)
        for name, config in configs.items():
            begin = time.perf_counter()
            states[name], info = jax.block_until_ready(steps[name](states[name], batch, config))
            seconds[name].append(time.perf_counter() - begin)
            health[name] = max(health[name], float(info.reversibility) if info is not None else 0.0)
    windows = scoring.cover(corpus.validation, context)
    return {
        name: (
            scoring.mean_nats(states[name].params, windows, config.model) / corpus.characters_per_token,
            float(np.median(seconds[name][1:])),  # the first one compiles
            health[name],
        )
        for name, config in configs.items()
    }


@partial(jax.jit, static_argnums=2, donate_argnums=0)
def _by_autodiff(state: loop.State, batch: tuple[jax.Array, jax.Array], config: Config) -> tuple[loop.State, None]:
    """`loop.train_step` with the gradient of automatic differentiation."""
    tokens, targets = batch
    params = state.params
    masks = _masks(state, tokens, config)

    def loss(learned):
        s, observed = network.run(learned._replace(carried=params.carried), tokens, config.model, masks)
        logits = network.readout(learned.readout, s, config.model.precision)
        return jnp.mean(network.cross_entropy(logits, targets)), observed

    gradient, observed = jax.grad(loss, has_aux=True)(params)
    updates, optimizer = learning.make_optimizer(config).update(gradient, state.optimizer, params)
    carried = carry(params, observed.action, observed.moment, config.model)
    return loop.State(optax.apply_updates(params, updates)._replace(carried=carried), optimizer), None


def _masks(state: loop.State, tokens: jax.Array, config: Config) -> dropout.Masks:
    """All masks that `loop.train_step` would draw in this step."""
    rate, model = config.learning.dropout, config.model
    if not rate:
        return dropout.KEEP_ALL
    key = dropout_key(optax.tree.get_all_with_path(state.optimizer, "count")[0][1], config)
    keys, length = dropout.keys(key, model.blocks, tokens.shape[0]), tokens.shape[1]
    blocks = jax.vmap(lambda own: dropout.block_masks(own, length, rate, model))(keys.blocks)
    return dropout.Masks(dropout.embedding_mask(keys.embedding, length, rate, model), blocks)


if __name__ == "__main__":
    main()
