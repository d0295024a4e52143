"""Decoding by the recurrence: tokens per second after a short and a long history, compared with recomputing the window.

    python benchmarks/inference.py                            the table of docs/inference.md: shapes of configs/shakespeare.yaml
    python benchmarks/inference.py --config configs/gpu.yaml  other shapes

The parameters are initial ones: speed does not depend on training. Times are medians of runs that alternate between the rows,
so that a drift of the machine's speed affects all equally. Each run draws 256 tokens for a batch of one or more sequences.
"""

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lior_jax import config as configuration
from lior_jax import model
from lior_jax.inference.decoder import SEGMENT, Decoder, sequence_keys
from lior_jax.inference.sampling import Sampling, sample
from lior_jax.settings import ModelConfig

HISTORIES = 128, 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/shakespeare.yaml", help="whose model's shapes are taken")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="sequences at once (1 8)")
    parser.add_argument("--repeat", type=int, default=7, help="(7)")
    arguments = parser.parse_args()
    config = configuration.load(arguments.config, ["model.vocab_size=65"]).model
    decoder = Decoder(jax.jit(model.init, static_argnums=1)(jax.random.key(0), config), config)
    print(f"{model.count(decoder.params):,} parameters, context {config.context}, {jax.devices()[0].device_kind}, ", end="")
    print(f"medians of {arguments.repeat}\n")
    print("| sequences | decoding | tokens/s | ratio | carried, KiB a sequence |")
    print("|---|---|---|---|---|")
    for batch in arguments.batches:
        measure(decoder, batch, arguments.repeat)


def measure(decoder: Decoder, batch: int, repeat: int) -> None:
    keys, settings = sequence_keys(0, range(batch)), Sampling().check()
    text = np.random.default_rng(0).integers(0, decoder.config.vocab_size, (batch, max(HISTORIES)))
    prefixes = {length: decoder.read(decoder.empty(batch), text[:, :length]) for length in HISTORIES}
    runs = {
        f"recurrence, history {length:,}": (partial(decoder.draw, prefix, keys, settings, SEGMENT), SEGMENT)
        for length, prefix in prefixes.items()
    }
    window = jnp.asarray(text[:, -decoder.config.context :])
    # A share of the tokens is enough where each costs a whole window.
    few = max(8, SEGMENT // 8)
    runs["window recomputed"] = partial(recompute, decoder.params, window, keys, few, decoder.config), few
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(repeat + 1):
        for name, (run, count) in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if round_:  # the first one compiles
                seconds[name].append((time.perf_counter() - start) / count)
    speeds = {name: batch / float(np.median(times)) for name, times in seconds.items()}
    baseline = speeds["window recomputed"]
    for name, speed in speeds.items():
        length = next((length for length in HISTORIES if name.endswith(f"{length:,}")), None)
        carried = sum(x.nbytes for x in jax.tree.leaves(prefixes[length])) / batch / 1024 if length else 0
        print(f"| {batch} | {name} | {speed:,.0f} | {speed / baseline:.1f} | {f'{carried:,.0f}' if length else '–'} |")
    short, long = (speeds[f"recurrence, history {length:,}"] for length in HISTORIES)
    print(f"| {batch} | long beside short history | | {long / short:.3f} | |")


@partial(jax.jit, static_argnums=(3, 4))
def recompute(params: model.Params, window: jax.Array, keys: jax.Array, count: int, config: ModelConfig) -> jax.Array:
    """Decoding without a recurrence: the whole window again for every token."""
    seen = jnp.zeros((window.shape[0], config.vocab_size), bool)

    def step(window, place):
        logits = model.logits(params, window, config)[:, -1]
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, place)
        token = jax.vmap(sample, (0, 0, 0, None))(folded, logits, seen, Sampling())
        return jnp.concatenate([window[:, 1:], token[:, None]], 1), token

    return jax.lax.scan(step, window, jnp.arange(count))[1]


if __name__ == "__main__":
    main()
