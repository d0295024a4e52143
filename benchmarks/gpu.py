"""The training step on a GPU, piece by piece, compared with a flax GPT with cuDNN attention and a compiled PyTorch GPT.

    python benchmarks/gpu.py                            every section, within four minutes, at 64 x 256 characters
    python benchmarks/gpu.py --only check,pieces        some sections: check, pieces, step, gpt, torch, agree, tune
    python benchmarks/gpu.py --precision bfloat16       some precisions
    python benchmarks/gpu.py --tiny                     tiny shapes, on any backend, to test the script

`check` compares the fused kernels with the plain form on the device; `pieces` times a block's parts with either; `step` is the
whole training step; `gpt` and `torch` are those of models of equal size. Only if named: `agree` compares whole estimates,
`tune` times the kernels with other tiles, warps and stages. A section that fails is reported, and the next one runs; rows are
printed as they are measured, and `--out FILE` writes them as JSON lines. Times are medians of three rounds; model FLOPs are 6 x
parameters x characters.
"""

import argparse
import gc
import gzip
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from transformer import GPT

from lior_jax import config as configuration
from lior_jax import learning, model
from lior_jax.kernels import retrieval as fused
from lior_jax.model import block, operators
from lior_jax.model.retrieval import choice
from lior_jax.physics import flow
from lior_jax.physics import retrieval as plain
from lior_jax.physics.field_state import ReadOut
from lior_jax.physics.pair import Pair
from lior_jax.physics.retrieval import Couplings
from lior_jax.physics.scores import LagPrior
from lior_jax.settings import Config
from lior_jax.training import step as training

MODEL = """
model: {context: 256, width: 512, blocks: 6, heads: 8, geometry: {chart_dim: 32, rank: 4}, flow: {units: 1024}}
learning: {dropout: 0.2}
optimizer: {learning_rate: 2e-3, warmup_steps: 200, weight_decay: 0.2}
training: {steps: 1800, batch_size: 64}
"""
"""Eleven million parameters."""

PEAKS = {"bfloat16": 989.4e12, "tf32": 494.7e12, "float32": 66.9e12}
"""FLOP/s of an H100 or H200 (SXM) without sparsity."""

TINY = [
    "model.width=32",
    "model.blocks=2",
    "model.context=20",
    "model.heads=2",
    "model.geometry.chart_dim=5",
    "model.flow.units=16",
]


class Bench:
    """Where rows go, and until when there is time for more."""

    def __init__(self, given: argparse.Namespace):
        self.given, self.begin = given, time.perf_counter()
        self.on_gpu = jax.default_backend() == "gpu"
        self.interpret = not self.on_gpu
        self.batch = 2 if given.tiny else 64
        self.context = 20 if given.tiny else 256

    def row(self, name: str, **figures: Any) -> None:
        shown = "  ".join(
            f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items()
        )
        print(f"{name:62s} {shown}", flush=True)
        if self.given.out:
            with open(self.given.out, "a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, **figures}) + "\n")

    def fails(self, name: str, problem: Exception) -> None:
        text = f"{type(problem).__name__}: {problem}"
        self.row(name, failed=text if len(text) < 3000 else f"{text[:1500]} … {text[-1500:]}")
        traceback.print_exc(limit=-3)

    @property
    def is_late(self) -> bool:
        return time.perf_counter() - self.begin > 60 * self.given.minutes

    def config(self, precision: str, *more: str) -> Config:
        tiny = [*TINY, "training.batch_size=2"] if self.given.tiny else []
        overrides = ["model.vocab_size=65", "data.path=null", f"model.precision={precision}", *tiny, *more]
        return configuration.parse(MODEL, "the benchmark", overrides)

    def kernels(self) -> list[str]:
        """Both forms of retrieval."""
        return ["interpret" if self.interpret else "auto", "plain"]

    def timed(self, name: str, function: Callable, *arguments: Any, flops: float = 0, peak: str = "") -> float | None:
        """Compile and time; a row of it."""
        if self.is_late:
            self.row(name, skipped="no time left")
            return None
        try:
            begin = time.perf_counter()
            run = jax.jit(function).lower(*arguments).compile()
            compiled = time.perf_counter() - begin
            seconds = self.seconds(lambda: run(*arguments))
        except Exception as problem:
            self.fails(name, problem)
            return None
        figures = {"ms": 1e3 * seconds, "MiB": run.memory_analysis().temp_size_in_bytes / 2**20, "compile_s": compiled}
        self.row(name, **figures, **self.rates(seconds, flops, peak))
        return seconds

    def seconds(self, run: Callable) -> float:
        """Of one call."""
        jax.block_until_ready(run())
        count = 1 if self.given.tiny else 20
        rounds = []
        for _ in range(3):
            begin = time.perf_counter()
            for _ in range(count):
                result = run()
            jax.block_until_ready(result)
            rounds.append((time.perf_counter() - begin) / count)
        return sorted(rounds)[1]

    def rates(self, seconds: float, flops: float, peak: str) -> dict[str, float]:
        if not flops:
            return {}
        share = {"percent_of_peak": 100 * flops / seconds / PEAKS[peak]} if peak and _is_hopper() else {}
        return {"TFLOP/s": flops / seconds / 1e12, **share}


def _is_hopper() -> bool:
    return any(name in jax.devices()[0].device_kind for name in ("H100", "H200"))


# --- the kernels against the plain form --------------------------------------------------------------------------------


def inputs_of(batch: int, length: int, heads: int, m: int, v: int, seed: int = 0) -> tuple:
    """Queries, keys, values, resilience, couplings and a cotangent, at the scale of a trained model's."""
    keys = jax.random.split(jax.random.key(seed), 9)

    def normal(index: int, *shape: int) -> jax.Array:
        return jax.random.normal(keys[index], shape, jnp.float32)

    resilience = jax.random.uniform(keys[4], (batch, length, heads), jnp.float32, 0.3, 2.0)
    couplings = Couplings(
        jax.random.uniform(keys[5], (heads,), jnp.float32, 0.3, 2.0),
        (LagPrior(normal(6, heads, length)),),
        (ReadOut(0.1 * normal(7, heads, length)),),
    )
    points = normal(0, batch, length, heads, m), normal(1, batch, length, heads, m), normal(2, batch, length, heads, v)
    return *points, resilience, couplings, normal(3, batch, length, heads, v)


def check(bench: Bench) -> None:
    """Worst relative error of what is retrieved and of every cotangent, beside the plain form's in the same precision; both
    against the plain form in float32."""
    shapes = (
        [(2, 20, 2, 5, 4), (1, 33, 1, 3, 3)]
        if bench.given.tiny
        else [(64, 256, 8, 36, 64), (3, 200, 5, 21, 24), (1, 7, 1, 4, 3)]
    )
    for shape in shapes:
        inputs = inputs_of(*shape)
        exact = _named(jax.jit(partial(plain.retrieve_and_adjoint, tile=64))(*inputs))
        for precision in bench.given.precision:
            name = f"check {precision} {'x'.join(map(str, shape))}"
            try:
                run = partial(fused.retrieve_and_adjoint, precision=precision, interpret=bench.interpret)
                found = _named(jax.jit(run)(*inputs))
                forward = jax.jit(partial(fused.retrieve, precision=precision, interpret=bench.interpret))(*inputs[:-1])
                errors = _errors(found, exact) | {"forward": _error(forward, exact["retrieved"])}
                of_plain = _errors(_named(jax.jit(partial(plain.retrieve_and_adjoint, precision=precision))(*inputs)), exact)
                bench.row(name, worst=max(errors.values()), worst_of_plain=max(of_plain.values()))
                for leaf, error in errors.items():
                    bench.row(f"    {leaf}", kernel=error, plain=of_plain.get(leaf, float("nan")))
            except Exception as problem:
                bench.fails(name, problem)


def _named(result: Any) -> dict[str, jax.Array]:
    retrieved, (c_q, c_k, c_v, c_resilience, couplings) = result
    leaves = jax.tree_util.tree_leaves_with_path(couplings)
    named = {"retrieved": retrieved, "queries": c_q, "keys": c_k, "values": c_v, "resilience": c_resilience}
    return named | {jax.tree_util.keystr(path): x for path, x in leaves}


def _errors(found: dict[str, jax.Array], exact: dict[str, jax.Array]) -> dict[str, float]:
    return {name: _error(found[name], x) for name, x in exact.items()}


def _error(found: jax.Array, exact: jax.Array) -> float:
    found, exact = (np.asarray(x, np.float64) for x in (found, exact))
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


# --- pieces of a step --------------------------------------------------------------------------------------------------


def pieces(bench: Bench) -> None:
    for precision in bench.given.precision:
        config = bench.config(precision).model
        params = jax.jit(model.init, static_argnums=1)(jax.random.key(0), config)
        own = jax.tree.map(lambda x: x[0], jax.jit(operators.prepare, static_argnums=(1, 2))(params, bench.context, config))
        s = jax.random.normal(jax.random.key(2), (bench.batch, bench.context, config.width))
        inputs = inputs_of(bench.batch, bench.context, config.heads, config.geometry.whitened_dim, config.width // config.heads)
        kernel = {"precision": precision, "interpret": bench.interpret}
        for form, options in ((fused, kernel), (plain, {"precision": precision, "tile": config.retrieval.tile})):
            name = f"{precision} {form.__name__.split('.')[1]}"
            bench.timed(f"{name}: retrieve", partial(form.retrieve, **options), *inputs[:-1])
            bench.timed(f"{name}: retrieve_and_adjoint", partial(form.retrieve_and_adjoint, **options), *inputs)
        for kernel in bench.kernels():
            chosen = bench.config(precision, f"model.retrieval.kernel={kernel}").model
            bench.timed(f"{precision} {kernel}: kick", partial(block.kick, config=chosen), own, s)
            bench.timed(f"{precision} {kernel}: kick_and_adjoint", partial(block.kick_and_adjoint, config=chosen), own, s, s)
        bench.timed(f"{precision}: move (flow forward)", partial(block.move, config=config), own, s, s, s)
        bench.timed(f"{precision}: echo of the flow", partial(_echo, config=config), own, s)


def _echo(own: operators.Operators, s: jax.Array, config: Any) -> Any:
    span = jnp.full((*s.shape[:2], 1), 1e-3)
    return flow.echo(block.system(own, config), Pair(s, s), Pair(s, s), span, block.schedule(config))


def tune(bench: Bench) -> None:
    """Each kernel's time by tile, warps and stages, in what runs them all (`retrieve_and_adjoint`); and forward alone."""
    heads, m, v = (2, 5, 4) if bench.given.tiny else (8, 36, 64)
    inputs = inputs_of(bench.batch, bench.context, heads, m, v)
    before = fused.TILE, dict(fused.LAUNCH)
    for precision in bench.given.precision:
        for tile, warps, stages in ((64, 8, 2), (64, 4, 2), (32, 4, 2), (64, 8, 3), (64, 8, 1), (32, 2, 2), (32, 4, 3)):
            fused.TILE = tile
            fused.LAUNCH.update(dict.fromkeys(fused.LAUNCH, (warps, stages)))
            name, options = f"{precision} tile {tile} warps {warps} stages {stages}", {"precision": precision}
            options["interpret"] = bench.interpret
            bench.timed(f"{name}: retrieve", partial(fused.retrieve, **options), *inputs[:-1])
            function = partial(fused.retrieve_and_adjoint, **options)
            if bench.timed(f"{name}: retrieve_and_adjoint", function, *inputs) is not None and bench.on_gpu:
                with suppress(Exception):
                    run = jax.jit(function)
                    _kernels(bench, partial(run, *inputs), 8)
    fused.TILE = before[0]
    fused.LAUNCH.update(before[1])


def _kernels(bench: Bench, run: Callable, shown: int) -> None:
    """What the device spends a call on, by kernel, from the profiler."""
    jax.block_until_ready(run())
    calls = 4
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            for _ in range(calls):
                result = run()
            jax.block_until_ready(result)
        trace = next(Path(folder).rglob("perfetto_trace.json.gz"))
        events = json.loads(gzip.decompress(trace.read_bytes()))
    events = events["traceEvents"] if isinstance(events, dict) else events
    named = [e for e in events if e.get("ph") == "M" and "name" in e.get("args", {})]
    devices = {e["pid"] for e in named if e["name"] == "process_name" and "GPU" in e["args"]["name"]}
    streams = {(e["pid"], e["tid"]) for e in named if e["name"] == "thread_name" and "Stream" in e["args"]["name"]}
    total: dict[str, list[float]] = {}
    for event in events:
        if event.get("ph") == "X" and event["pid"] in devices and (event["pid"], event["tid"]) in streams:
            total.setdefault(event["name"][:60], []).append(event["dur"])
    everything = sum(map(sum, total.values()))
    bench.row("    kernels", ms=everything / calls / 1e3, launches=sum(map(len, total.values())) // calls)
    for name, spent in sorted(total.items(), key=lambda pair: -sum(pair[1]))[:shown]:
        bench.row(f"      {name}", ms=sum(spent) / calls / 1e3, launches=len(spent) // calls)


# --- whole steps -------------------------------------------------------------------------------------------------------


def step(bench: Bench) -> None:
    """The whole training step, dropout and optimiser included; the gradients of both forms agree."""
    tokens = jax.random.randint(jax.random.key(1), (bench.batch, bench.context + 1), 0, 65)
    batch = tokens[:, :-1], tokens[:, 1:]
    for precision in bench.given.precision:
        for kernel in bench.kernels():
            config, name = bench.config(precision, f"model.retrieval.kernel={kernel}"), f"step {precision} {kernel}"
            if bench.is_late:
                bench.row(name, skipped="no time left")
                continue
            try:
                _step(bench, name, config, batch, precision)
            except Exception as problem:
                bench.fails(name, problem)
            gc.collect()


def _step(bench: Bench, name: str, config: Config, batch: tuple, precision: str) -> None:
    begin = time.perf_counter()
    state = jax.jit(training.initial_state, static_argnums=1)(jax.random.key(0), config)
    run = training.train_step.lower(state, batch, config, True).compile()
    compiled, held = time.perf_counter() - begin, [state]

    def once() -> Any:
        held[0], report = run(held[0], batch, True)
        return report.info.loss

    first = float(once())
    seconds = bench.seconds(once)
    count = model.count(held[0].params)
    figures = {"ms": 1e3 * seconds, "characters/s": batch[0].size / seconds, "loss": first, "then": float(once())}
    figures |= bench.rates(seconds, 6 * count * batch[0].size, precision)
    figures |= {"MiB": run.memory_analysis().temp_size_in_bytes / 2**20, "compile_s": compiled, "parameters": count}
    bench.row(name, **figures, retrieval=choice(config.model).sentence)
    if bench.on_gpu and bench.given.profile:
        _kernels(bench, once, 25)


def agree(bench: Bench) -> None:
    """Cosine of the worst leaf of the whole estimate, fused with plain, and each precision with float32."""
    tokens = jax.random.randint(jax.random.key(1), (bench.batch, bench.context + 1), 0, 65)
    batch, exact = (tokens[:, :-1], tokens[:, 1:]), None
    for precision in ("float32", *(p for p in bench.given.precision if p != "float32")):
        for kernel in reversed(bench.kernels()) if exact is None else bench.kernels()[:1]:
            name = f"estimate {precision} {kernel}"
            if bench.is_late:
                bench.row(name, skipped="no time left")
                continue
            config = bench.config(precision, f"model.retrieval.kernel={kernel}", "learning.dropout=0.0")
            try:
                params = jax.jit(model.init, static_argnums=1)(jax.random.key(0), config.model)
                run = jax.jit(learning.estimate, static_argnums=(2, 3))
                gradient, _ = run(params, batch, config.model, config.learning)
            except Exception as problem:
                bench.fails(name, problem)
                continue
            exact = gradient if exact is None else exact
            bench.row(name, **_cosine(gradient, exact))


def _cosine(gradient: Any, exact: Any) -> dict[str, Any]:
    worst = (2.0, "")
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(exact), strict=True):
        x, y = (np.asarray(z, np.float64).ravel() for z in (x, y))
        if np.linalg.norm(y) > 0:
            worst = min(worst, (float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)), jax.tree_util.keystr(path)))
    return {"cosine": f"{worst[0]:.7f}", "leaf": worst[1]}


# --- beside it ---------------------------------------------------------------------------------------------------------


def gpt(bench: Bench) -> None:
    """A flax GPT of nanoGPT's size, by back-propagation and AdamW, without dropout."""
    tokens = jax.random.randint(jax.random.key(1), (bench.batch, bench.context + 1), 0, 65)
    size = {"width": 48, "layers": 2, "heads": 2} if bench.given.tiny else {}
    for precision in bench.given.precision:
        half = precision == "bfloat16"
        fast = "cudnn" if half and bench.on_gpu else None
        net = GPT(65, bench.context, **size, dtype=jnp.bfloat16 if half else jnp.float32, implementation=fast)
        with jax.default_matmul_precision("float32" if precision == "float32" else "default"):
            params = net.init(jax.random.key(0), tokens[:, :-1])
            optimizer = optax.adamw(1e-3)
            count = sum(x.size for x in jax.tree.leaves(params))

            def update(params: Any, state: Any, net: GPT = net, optimizer: Any = optimizer) -> tuple:
                def loss(params: Any) -> jax.Array:
                    logits = net.apply(params, tokens[:, :-1])
                    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

                value, gradient = jax.value_and_grad(loss)(params)
                updates, state = optimizer.update(gradient, state, params)
                return optax.apply_updates(params, updates), state, value

            flops = 6 * count * bench.batch * bench.context
            name = f"flax GPT {precision}, {count:,} parameters"
            seconds = bench.timed(name, update, params, optimizer.init(params), flops=flops, peak=precision)
        if seconds:
            bench.row(f"    {precision}", **{"characters/s": bench.batch * bench.context / seconds})


def torch(bench: Bench) -> None:
    """nanoGPT's model, compiled by PyTorch, where it is installed."""
    try:
        import torch_gpt
    except ImportError:
        bench.row("torch", skipped="PyTorch is not installed")
        return
    if bench.is_late:
        bench.row("torch", skipped="no time left")
        return
    size = {"width": 48, "layers": 2, "heads": 2} if bench.given.tiny else {}
    for name, seconds, count in torch_gpt.steps(bench.batch, bench.context, compiled=not bench.given.tiny, **size):
        flops = 6 * count * bench.batch * bench.context
        rates = bench.rates(seconds, flops, "bfloat16")
        bench.row(f"torch GPT {name}", ms=1e3 * seconds, **{"characters/s": bench.batch * bench.context / seconds}, **rates)


SECTIONS = {"check": check, "pieces": pieces, "step": step, "gpt": gpt, "torch": torch, "agree": agree, "tune": tune}
USUAL = ["check", "pieces", "step", "gpt", "torch"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=USUAL, help=f"of {', '.join(SECTIONS)}")
    precisions = ["bfloat16", "tf32", "float32"]
    parser.add_argument(
        "--precision", type=lambda text: text.split(","), default=precisions, help=f"of {', '.join(precisions)}"
    )
    parser.add_argument("--minutes", type=float, default=4.0, help="after which nothing new begins (4)")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes")
    parser.add_argument("--profile", action="store_true", help="list the kernels of a step, too")
    parser.add_argument("--out", help="a file for the rows, as JSON lines")
    given = parser.parse_args(arguments)
    for name in [*given.only, *given.precision]:
        if name not in [*SECTIONS, *precisions]:
            parser.error(f"there is no {name}; sections are {', '.join(SECTIONS)}, precisions {', '.join(precisions)}")
    bench, failed = Bench(given), 0
    bench.row("device", kind=jax.devices()[0].device_kind, jax=jax.__version__, backend=jax.default_backend())
    for name in given.only:
        try:
            SECTIONS[name](bench)
        except Exception as problem:
            failed += 1
            bench.fails(name, problem)
        bench.row(f"[{name}]", seconds=time.perf_counter() - bench.begin)
        jax.clear_caches()
        gc.collect()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
