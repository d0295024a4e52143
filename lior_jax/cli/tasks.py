"""The tasks of inference from the command line, and their output."""

import argparse
import io
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from lior_jax.cli import conversation, output, overwriting
from lior_jax.data import read_file, read_stream
from lior_jax.inference import Engine, prompts, scoring
from lior_jax.inference.chat import Conversation
from lior_jax.inference.engine import CAPACITY
from lior_jax.inference.explanation import SHOWN
from lior_jax.inference.sampling import Sampling

MAX_TOKENS = 400
"""Default length of a continuation."""


def with_memory(engine: Engine, path: Path, arguments: argparse.Namespace) -> Engine:
    """The engine with the requested memory; texts read into it are saved."""
    if arguments.memory or (arguments.remember and path.exists()):
        engine = engine.with_memory(path)
    for file in arguments.remember:
        text = read_file(file)
        capacity = CAPACITY if arguments.capacity is None else arguments.capacity
        say_replaced(engine, text)
        engine = engine.remember(text, capacity, output.progress)
        engine.save_memory(path)
        assert engine.memory is not None  # set by `remember`
        trust = f"it has a weight of {engine.memory.mixture.weight:.3f} beside the model"
        print(f"{len(text):,} characters of {file} are remembered in {path}; {trust}", file=sys.stderr)
    return engine


def say_replaced(engine: Engine, text: str) -> None:
    """Report on standard error which characters of a text are replaced, if any."""
    if said := engine.replaced(text):
        print(said, file=sys.stderr, flush=True)


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The sampling settings, as arguments of `Engine.generate`."""
    names = "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_tokens", "seed"
    chosen = {name: getattr(arguments, name) for name in names} | {"stop": arguments.stop or ()}
    if chosen["max_tokens"] is None:
        chosen["max_tokens"] = SHOWN if arguments.explain else MAX_TOKENS
    return chosen


def score(engine: Engine, path: str, stride: int | None) -> None:
    """Print how well the model predicts a file."""
    stride = scoring.half_window(engine.config.context) if stride is None else stride
    text = read_file(path)
    say_replaced(engine, text)
    found = engine.score(text, stride, progress=output.progress)
    history = engine.config.context - stride
    print(
        f"{found.nats_per_character:.4f} nats/char = {found.bits_per_character:.4f} bits/char, "
        f"perplexity {found.perplexity:.3f} per token, over {found.tokens:,} tokens.\n"
        f"The first token is not scored. Every other one is predicted from at least {history + 1} of the tokens before it, or "
        "from all of them if they are fewer.",
        flush=True,
    )
    if engine.memory is not None:
        print(f"Without the memory: {found.nats_per_character_alone:.4f} nats/char.", flush=True)


def chat(engine: Engine, arguments: argparse.Namespace) -> None:
    """Chat in turns."""
    # Input that is not text is refused by the tokenizer, and the chat continues.
    assert isinstance(sys.stdin, io.TextIOWrapper)
    sys.stdin.reconfigure(encoding=None if sys.stdin.isatty() else "utf-8", errors="surrogateescape")
    if sys.stdin.isatty():
        with suppress(ImportError):  # not available on Windows
            import readline  # noqa: F401 - gives `input` its line editing and history

    chosen = settings(arguments)
    how = Sampling(**{name: chosen[name] for name in Sampling._fields})
    stop = tuple(chosen["stop"]) or ("\n\n",)
    conversation.run(Conversation(engine, how, stop, chosen["max_tokens"], arguments.seed))


def complete(engine: Engine, arguments: argparse.Namespace) -> None:
    """Continue each prompt of a file."""
    began, tokens = time.monotonic(), 0
    items = prompts.read(arguments.prompts, engine, arguments.samples)
    say_replaced(engine, "".join(item["prompt"] for item in items))
    for item in prompts.complete(items, engine, arguments.samples, **settings(arguments)):
        tokens += len(engine.tokenizer.encode(item["completion"]))
        print(prompts.to_line(item, sys.stdout.encoding or "utf-8"), flush=True)
    if arguments.speed:
        report_speed(tokens, time.monotonic() - began, "in all, compilation included")


def continue_prompt(engine: Engine, arguments: argparse.Namespace) -> None:
    """Stream continuations of one prompt."""
    prompt = arguments.prompt
    if prompt is None:
        if sys.stdin.isatty():
            print("Type a prompt and end it with Ctrl-D (or give --prompt TEXT).", file=sys.stderr)
        prompt = read_stream(sys.stdin.buffer)
        prompt = prompt.removesuffix("\r\n" if prompt.endswith("\r\n") else "\n")
    say_replaced(engine, prompt)
    chosen = settings(arguments)
    for sample in range(arguments.samples):
        pieces = engine.stream(prompt, sample=sample, **chosen)
        if arguments.samples > 1:
            print(f"--- {sample + 1} of {arguments.samples} ---")
        print(prompt, end="", flush=True)
        began, first, text = time.monotonic(), None, []
        for piece in pieces:
            first = first or (time.monotonic(), len(piece))
            text.append(piece)
            print(piece, end="", flush=True)
        print(flush=True)
        if arguments.speed and first:
            report_speed(
                len(engine.tokenizer.encode("".join(text)[first[1] :])), time.monotonic() - first[0], "after the first"
            )
            print(f"the first after {first[0] - began:.2f} s, compilation included", file=sys.stderr)
        if arguments.explain:
            explain(engine, prompt, "".join(text), arguments.explain)


def explain(engine: Engine, prompt: str, continuation: str, path: str) -> None:
    """Print a table and draw a picture of the sources of each token."""
    from lior_jax.analysis import plots

    explained = engine.explain(prompt, continuation)
    print(f"\n{explained.table()}")
    names = [repr(token)[1:-1] for token in explained.tokens]
    seen = int(np.argmax(explained.weight.any(0)))  # retrieval does not reach further back than the context
    figure = plots.retrieval_map(
        explained.weight[:, seen:],
        names[explained.first :],
        names[seen:],
        "Boltzmann weight of the tokens retrieved from",
        memory_share=explained.memory_share,
    )
    figure.savefig(path, **overwriting.PICTURE)
    print(f"\n{path}: the weights as a picture", flush=True)


def report_speed(tokens: int, seconds: float, what: str) -> None:
    """Print tokens per second to standard error."""
    print(f"{tokens:,} tokens in {seconds:.2f} s = {tokens / max(seconds, 1e-9):,.0f} tokens/s {what}", file=sys.stderr)
