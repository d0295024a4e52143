"""Echo against automatic differentiation of the same loss: time, temporary memory, agreement.

    python benchmarks/gradient.py                       the table of the README: 12 blocks, 12 x 64 tokens
    python benchmarks/gradient.py --blocks 4 --steps 2  other shapes

Every row is loss and gradient of one batch. Times are medians, taken in turn row by row so that a drift of the
machine's speed touches all alike; memory is what the compiled program allocates beside arguments and results.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lior_jax import learning, model
from lior_jax.config import Config, LearningConfig, ModelConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shape = {"blocks": 12, "width": 128, "units": 256, "steps": 1, "batch": 12, "context": 64}
    for name, default in (shape | {"repeat": 15}).items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"({default})")
    parser.add_argument(
        "--without", nargs="*", default=[], metavar="TEXT", help="leave out rows whose names contain one of these"
    )
    arguments = parser.parse_args()

    shapes = ModelConfig(
        vocab_size=65,
        context=arguments.context,
        width=arguments.width,
        blocks=arguments.blocks,
        potential_units=arguments.units,
        leapfrog_steps=arguments.steps,
    )
    batch = _batch(arguments.batch, arguments.context)
    coarse = shapes.model_copy(update={"precision": "bfloat16"})
    carried = shapes.model_copy(update={"carry_momentum": True})
    tf32 = shapes.model_copy(update={"precision": "tf32"})
    chunk = 4 if arguments.batch % 4 == 0 else 1
    rows = {
        "autodiff": _autodiff(shapes),
        "autodiff, blocks rematerialised": _autodiff(shapes, remat=True),
        "echo": _echo(shapes),
        f"echo, {chunk} sequences at once": _echo(shapes, chunk=chunk),
        "echo, one-sided": _echo(shapes, nudge="one_sided"),
        "autodiff, bfloat16 products": _autodiff(coarse),
        "echo, bfloat16 products": _echo(coarse),
        "autodiff, carried momentum": _autodiff(carried),
        "echo, carried momentum": _echo(carried),
        f"echo, carried momentum, {chunk} at once": _echo(carried, chunk=chunk),
    }
    if jax.default_backend() == "gpu":  # elsewhere it is float32
        rows |= {"autodiff, TF32 products": _autodiff(tf32), "echo, TF32 products": _echo(tf32)}
    rows = {name: row for name, row in rows.items() if not any(text in name for text in arguments.without)}
    params = jax.jit(model.init, static_argnums=1)(jax.random.key(0), shapes)
    compiled = {name: jax.jit(function).lower(params, batch).compile() for name, function in rows.items()}
    gradients = {name: program(params, batch)[1] for name, program in compiled.items()}
    seconds = _time(compiled, params, batch, arguments.repeat)
    memory = {name: program.memory_analysis().temp_size_in_bytes / 2**20 for name, program in compiled.items()}

    device = jax.devices()[0].device_kind
    print(f"{model.count(params):,} parameters, {shapes.blocks} blocks of width {shapes.width}, ", end="")
    print(f"{arguments.steps} leapfrog step(s),")
    print(f"{arguments.batch} x {arguments.context} tokens, {device}, medians of {arguments.repeat}\n")
    print("| loss and gradient by | ms | time ratio | temporary MiB | memory ratio | cosine, worst leaf | relative error |")
    print("|---|---|---|---|---|---|---|")
    for name in rows:
        baseline = "autodiff, carried momentum" if "carried" in name else "autodiff"
        cosine, error = _agreement(gradients[name], gradients[baseline])
        print(
            f"| {name} | {seconds[name] * 1e3:.0f} | {seconds[name] / seconds[baseline]:.2f} | {memory[name]:.1f} "
            f"| 1/{memory[baseline] / memory[name]:.1f} | {cosine:.6f} | {error:.0e} |"
        )
    print("\nRatios, cosines and errors are against float32 autodiff of the same network, with or without carried momentum.")


def _batch(sequences: int, context: int) -> tuple[jax.Array, jax.Array]:
    tokens = jax.random.randint(jax.random.key(1), (sequences, context + 1), 0, 65)
    return tokens[:, :-1], tokens[:, 1:]


def _autodiff(shapes: ModelConfig, remat: bool = False) -> Callable[..., Any]:
    loss = model.loss
    if remat:
        from lior_jax.model import block, network, operators

        def loss(params, tokens, targets, shapes):
            step = jax.checkpoint(lambda state, applied: (block.apply(applied, *state, shapes)[0], None))
            s = network.embed(params.embedding, tokens)
            prepared = operators.prepare(params, tokens.shape[1], shapes)
            (s, _), _ = jax.lax.scan(step, (s, jnp.zeros_like(s)), prepared)
            return jnp.mean(network.cross_entropy(network.readout(params.readout, s, shapes.precision), targets))

    def loss_and_gradient(params, batch):
        learned = params._replace(carried=None)  # what is carried is not differentiated
        value = jax.value_and_grad(lambda x: loss(x._replace(carried=params.carried), *batch, shapes))
        return value(learned)

    return loss_and_gradient


def _echo(shapes: ModelConfig, **learning_options: Any) -> Callable[..., Any]:
    config = Config(model=shapes, learning=LearningConfig(**learning_options))

    def loss_and_gradient(params, batch):
        gradient, info = learning.estimate(params, batch, config)
        return info.loss, gradient._replace(carried=None)

    return loss_and_gradient


def _time(programs: dict[str, Any], params: Any, batch: Any, repeat: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeat):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(params, batch))
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


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
