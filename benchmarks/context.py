"""Loss and gradient of one long sequence: time and temporary memory against the context length, compared with a transformer of
equal size.

    python benchmarks/context.py                          contexts of 512, 2,048 and 8,192 characters
    python benchmarks/context.py --contexts 32768         other contexts
    python benchmarks/context.py --set model.convolution.long=true

The echo processes positions in tiles, so its memory is linear in the context. The transformer (`transformer.py`) is
differentiated automatically, with attention either over all positions at once, or in tiles that are recomputed in the backward
pass. A program that needs more than `--limit` MiB is compiled, but not run. Times are the minimum of a few alternating runs;
the CPU time of all cores is given as well, which is more reliable on a busy machine.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from transformer import of_size

from lior_jax import config as configuration
from lior_jax import learning, model
from lior_jax.model import network
from lior_jax.model.retrieval import tile
from lior_jax.settings import Config

SHAPES = "model: {vocab_size: 65, width: 64, blocks: 2, heads: 4, flow: {units: 128}}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 8192], metavar="L")
    parser.add_argument("--repeat", type=int, default=4, help="runs at a context of 512; fewer at longer ones (4)")
    parser.add_argument("--limit", type=int, default=4096, metavar="MIB", help="(4096)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    given = parser.parse_args(arguments)

    def settings(context: int) -> Config:
        return configuration.parse(SHAPES, "the benchmark", [f"model.context={context}", *given.set])

    first = settings(given.contexts[0])
    size = model.count(jax.eval_shape(lambda: model.init(jax.random.key(0), first.model)))
    print(f"{size:,} parameters, {first.model.blocks} blocks, one sequence, {jax.devices()[0].device_kind}\n")
    print("| context | loss and gradient by | temporary MiB | ms | CPU ms | compile time, s |")
    print("|---|---|---|---|---|---|")
    for context in given.contexts:
        config = settings(context)
        tokens = jax.random.randint(jax.random.key(1), (1, context + 1), 0, 65)
        rows = {
            "echo": _echo(config),
            "transformer, all at once": _transformer(config, size, None),
            "transformer, in tiles": _transformer(config, size, tile(config.model, context)),
        }
        repeat = max(1, given.repeat * 512 // context)
        for name, row in measure(rows, (tokens[:, :-1], tokens[:, 1:]), repeat, given.limit).items():
            print(f"| {context:,} | {name} | {row} |", flush=True)


Row = tuple[Callable[..., Any], Any]
"""A gradient as a function of parameters and batch, and the parameters."""


def measure(rows: dict[str, Row], batch: tuple[jax.Array, jax.Array], repeat: int, limit: int) -> dict[str, str]:
    """Temporary memory, and times unless that exceeds the limit, in MiB."""
    compiled, memory, seconds, best = {}, {}, {}, {}
    for name, (function, params) in rows.items():
        begin = time.perf_counter()
        compiled[name] = jax.jit(function).lower(params, batch).compile()
        seconds[name] = time.perf_counter() - begin
        memory[name] = compiled[name].memory_analysis().temp_size_in_bytes / 2**20
    for _ in range(repeat):
        for name in (name for name in rows if memory[name] <= limit):
            begin = time.perf_counter(), time.process_time()
            jax.block_until_ready(compiled[name](rows[name][1], batch))
            took = time.perf_counter() - begin[0], time.process_time() - begin[1]
            best[name] = tuple(map(min, took, best.get(name, took)))
    times = {name: " | ".join(f"{x * 1e3:,.0f}" for x in best[name]) if name in best else "– | –" for name in rows}
    return {name: f"{memory[name]:,.1f} | {times[name]} | {seconds[name]:.0f}" for name in rows}


def _echo(config: Config) -> Row:
    params = jax.jit(model.init, static_argnums=1)(jax.random.key(0), config.model)
    return lambda params, batch: learning.estimate(params, batch, config.model, config.learning)[0], params


def _transformer(config: Config, size: int, positions: int | None) -> Row:
    net = of_size(size, 65, config.model.blocks).clone(tile=positions)
    params = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))

    def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.mean(network.cross_entropy(net.apply(params, batch[0]), batch[1]))

    return jax.grad(loss), params


if __name__ == "__main__":
    main()
