"""Echo against automatic differentiation of the same loss: time, temporary memory, agreement.

    python benchmarks/gradient.py                       the table of docs/results.md: 12 blocks, 12 x 64 tokens
    python benchmarks/gradient.py --blocks 4 --steps 2  other shapes; gradient_sweep.py measures many

Every row is loss and gradient of one batch. Automatic differentiation is measured in its best forms: with scanned blocks, with
unrolled ones, and with blocks whose activations are recomputed (rematerialised). Times are medians of runs that alternate
between the rows, so that a drift of the machine's speed affects all equally, with half the distance of their quartiles; memory
is what the compiled program allocates in addition to its arguments and results.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lior_jax import learning, model
from lior_jax.model import Params, block, network, operators
from lior_jax.settings import FlowConfig, LearningConfig, ModelConfig

Estimate = Callable[[Params, tuple[jax.Array, jax.Array]], tuple[jax.Array, Params]]
"""Loss and gradient of a batch."""


class Measured(NamedTuple):
    """Of one row: median seconds and half the distance of the quartiles, temporary bytes, smallest cosine of a leaf with the
    first row's gradient, and relative error of the whole."""

    seconds: float
    spread: float
    memory: int
    cosine: float
    error: float


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shape = {"blocks": 12, "width": 128, "units": 256, "steps": 1, "batch": 12, "context": 64}
    for name, default in (shape | {"repeat": 15}).items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"({default})")
    parser.add_argument(
        "--without", nargs="*", default=[], metavar="TEXT", help="leave out rows whose names contain one of these"
    )
    given = parser.parse_args(arguments)

    shapes = ModelConfig(
        vocab_size=65,
        context=given.context,
        width=given.width,
        blocks=given.blocks,
        flow=FlowConfig(units=given.units, steps=given.steps),
    )
    coarse = shapes.model_copy(update={"precision": "bfloat16"})
    carried = shapes.model_copy(update={"flow": shapes.flow.model_copy(update={"carry_momentum": True})})
    tf32 = shapes.model_copy(update={"precision": "tf32"})
    chunk = 4 if given.batch % 4 == 0 else 1
    plain = {
        "autodiff": autodiff(shapes),
        "autodiff, blocks unrolled": autodiff(shapes, unroll=True),
        "autodiff, blocks rematerialised": autodiff(shapes, remat=True),
        "autodiff, unrolled and rematerialised": autodiff(shapes, unroll=True, remat=True),
        "echo": echo(shapes),
        f"echo, {chunk} sequences at once": echo(shapes, chunk=chunk),
        "echo, units kept": echo(shapes, keep="units"),
        f"echo, units kept, {chunk} at once": echo(shapes, keep="units", chunk=chunk),
        "echo, one-sided": echo(shapes, nudge="one_sided"),
        "autodiff, bfloat16 products": autodiff(coarse),
        "echo, bfloat16 products": echo(coarse),
    }
    if jax.default_backend() == "gpu":  # elsewhere it is float32
        plain |= {"autodiff, TF32 products": autodiff(tf32), "echo, TF32 products": echo(tf32)}
    with_momentum = {
        "autodiff, carried momentum": autodiff(carried),
        "autodiff, carried momentum, rematerialised": autodiff(carried, remat=True),
        "echo, carried momentum": echo(carried),
        f"echo, carried momentum, {chunk} at once": echo(carried, chunk=chunk),
    }
    params, batch = start(shapes, given.batch)
    print(
        f"{model.count(params):,} parameters, {shapes.blocks} blocks of width {shapes.width}, {given.steps} leapfrog step(s),"
    )
    print(f"{given.batch} x {given.context} tokens, {jax.devices()[0].device_kind}, medians of {given.repeat}\n")
    print("| loss and gradient by | ms | time ratio | temporary MiB | memory ratio | cosine, worst leaf | relative error |")
    print("|---|---|---|---|---|---|---|")
    for rows in (plain, with_momentum):
        rows = {name: row for name, row in rows.items() if not any(text in name for text in given.without)}
        if rows:
            _print(measure(rows, params, batch, given.repeat))
    print("\nRatios, cosines and errors are against the first row of the same network, with or without carried momentum.")


def _print(rows: dict[str, Measured]) -> None:
    first = next(iter(rows.values()))
    for name, row in rows.items():
        print(
            f"| {name} | {row.seconds * 1e3:.0f} ± {row.spread * 1e3:.0f} | {row.seconds / first.seconds:.2f} "
            f"| {row.memory / 2**20:.1f} | 1/{first.memory / row.memory:.1f} | {row.cosine:.6f} | {row.error:.0e} |",
            flush=True,
        )


def start(shapes: ModelConfig, sequences: int) -> tuple[Params, tuple[jax.Array, jax.Array]]:
    """Initial parameters, and random tokens with targets, `[sequences, context]` each."""
    params = jax.jit(model.init, static_argnums=1)(jax.random.key(0), shapes)
    tokens = jax.random.randint(jax.random.key(1), (sequences, shapes.context + 1), 0, shapes.vocab_size)
    return params, (tokens[:, :-1], tokens[:, 1:])


def measure(rows: dict[str, Estimate], params: Params, batch: tuple[jax.Array, jax.Array], repeat: int) -> dict[str, Measured]:
    """Compile and time rows; gradients are compared with the first one's."""
    compiled = {name: jax.jit(row).lower(params, batch).compile() for name, row in rows.items()}
    gradients = {name: jax.block_until_ready(program(params, batch))[1] for name, program in compiled.items()}
    exact = next(iter(gradients.values()))
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(repeat):
        for name, program in compiled.items():
            begin = time.perf_counter()
            jax.block_until_ready(program(params, batch))
            seconds[name].append(time.perf_counter() - begin)
    measured = {}
    for name, program in compiled.items():
        low, median, high = np.quantile(seconds[name], (0.25, 0.5, 0.75))
        memory = program.memory_analysis().temp_size_in_bytes
        measured[name] = Measured(float(median), float(high - low) / 2, memory, *_agreement(gradients[name], exact))
    return measured


def autodiff(shapes: ModelConfig, unroll: bool = False, remat: bool = False) -> Estimate:
    """The gradient by automatic differentiation, through blocks scanned or unrolled, kept or computed again."""
    plain = shapes.retrieval.model_copy(update={"kernel": "plain"})  # no fused kernel can be differentiated
    shapes = shapes.model_copy(update={"retrieval": plain})

    def step(state, applied):
        return block.apply(applied, *state, shapes)[0], None

    def loss(params, tokens, targets):
        s = network.embed(params.embedding, tokens)
        prepared = operators.prepare(params, tokens.shape[1], shapes)
        through = jax.checkpoint(step) if remat else step
        (s, _), _ = jax.lax.scan(through, (s, jnp.zeros_like(s)), prepared, unroll=unroll)
        return jnp.mean(network.cross_entropy(network.readout(params.readout, s, shapes.precision), targets))

    def loss_and_gradient(params, batch):
        learned = params._replace(carried=None)  # what is carried is not differentiated
        return jax.value_and_grad(lambda x: loss(x._replace(carried=params.carried), *batch))(learned)

    return loss_and_gradient


def echo(shapes: ModelConfig, **learning_options: Any) -> Estimate:
    """The estimate by the echo."""
    settings = LearningConfig(**learning_options)

    def loss_and_gradient(params, batch):
        gradient, info = learning.estimate(params, batch, shapes, settings)
        return info.loss, gradient._replace(carried=None)

    return loss_and_gradient


def _agreement(estimate: Any, gradient: Any) -> tuple[float, float]:
    """Smallest cosine of all leaves, and relative error of the whole."""
    pairs = [
        (np.asarray(x, np.float64).ravel(), np.asarray(y, np.float64).ravel())
        for x, y in zip(jax.tree.leaves(estimate), jax.tree.leaves(gradient), strict=True)
    ]
    # The kernel of a field state whose gate is still zero has a gradient of zero, which has no direction.
    cosine = min(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) for x, y in pairs if x.any() or y.any())
    whole, exact = (np.concatenate(leaves) for leaves in zip(*pairs, strict=True))
    return cosine, float(np.linalg.norm(whole - exact) / np.linalg.norm(exact))


if __name__ == "__main__":
    main()
