"""Inference from the command line (infer.py, lior infer): arguments, tasks and exit statuses."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lior_jax.cli import arguments as reading
from lior_jax.cli import backend, calling, output, overwriting

MEMORY = "memory.safetensors"
"""File of the memory in a run's folder."""


def main(words: Sequence[str] | None = None) -> None:
    """Run the program with the given words, by default those of the command line."""
    output.main(calling.program("infer"), lambda: parse(words), run, mend="; choose another file or folder.")


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments; a mistake in them ends the program with status 2."""
    parser = reading.Parser(
        prog=calling.program("infer"), description="Use a trained model. Without --prompt, it is read from standard input."
    )
    model = parser.add_argument_group("the model").add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--checkpoint",
        metavar="RUN",
        type=reading.path,
        help="folder that training or --export wrote, for example runs/quickstart",
    )
    model.add_argument("--config", metavar="FILE", type=reading.path, help="configuration whose run.directory is that folder")
    parser.add_argument("--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="override a key of --config")
    parser.add_argument("--step", type=int, help="use the checkpoint of this step instead of the best one")

    parser.add_argument(
        "--unknown",
        choices=("refuse", "replace"),
        help="characters outside the vocabulary: refuse the text, or replace them and report their number; by default as in "
        "training (data.unknown)",
    )

    task = parser.add_argument_group("what to do").add_mutually_exclusive_group()
    task.add_argument("--prompt", metavar="TEXT", help="continue a text")
    task.add_argument(
        "--prompts",
        metavar="FILE",
        type=reading.path,
        help='continue each line {"prompt": "..."} of a file; JSON lines come out',
    )
    task.add_argument("--chat", action="store_true", help="chat in turns; /help lists the commands")
    task.add_argument("--score", metavar="FILE", type=reading.path, help="how well the model predicts a text")
    task.add_argument(
        "--export", metavar="FOLDER", type=reading.path, help="write model.safetensors with its configuration and tokenizer"
    )

    parser.add_argument(
        "--explain",
        metavar="PNG",
        type=reading.path,
        nargs="?",
        const="explanation.png",
        help="with --prompt: what each token was retrieved from, as a table and a picture (explanation.png)",
    )
    parser.add_argument(
        "--stride",
        metavar="N",
        type=int,
        help="with --score: tokens scored per window, the rest being history; half a window by default; a whole window is "
        "nanoGPT's protocol",
    )
    memory = parser.add_argument_group("memory")
    memory.add_argument(
        "--remember",
        metavar="FILE",
        type=reading.path,
        action="append",
        default=[],
        help=f"read a text into RUN/{MEMORY}, without training; use it",
    )
    memory.add_argument("--memory", action="store_true", help=f"use RUN/{MEMORY}")
    memory.add_argument(
        "--capacity", metavar="N", type=int, help="entries of a new memory; the oldest are overwritten (1048576)"
    )

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--max-tokens", metavar="N", type=int, help="length of a continuation (400; with --explain 40)")
    sampling.add_argument(
        "--temperature", metavar="T", type=float, default=0.8, help="Boltzmann temperature; 0 for greedy decoding (0.8)"
    )
    sampling.add_argument("--top-k", metavar="K", type=int, default=0, help="only the K most probable tokens; 0 for all (0)")
    sampling.add_argument("--top-p", metavar="P", type=float, default=1.0, help="only the most probable ones, P in total (1)")
    sampling.add_argument(
        "--min-p", metavar="P", type=float, default=0.0, help="only tokens of at least P times the largest probability (0)"
    )
    sampling.add_argument("--repetition-penalty", metavar="X", type=float, default=1.0, help="above 1 avoids repetition (1)")
    sampling.add_argument("--stop", metavar="TEXT", action="append", help="end before this text; may be repeated")
    sampling.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (0)")
    sampling.add_argument("--samples", metavar="N", type=int, default=1, help="number of continuations (1)")
    sampling.add_argument("--speed", action="store_true", help="print tokens per second to standard error")
    arguments = parser.read(words)

    if arguments.set and not arguments.config:
        parser.error("--set goes with --config")
    if arguments.stride is not None and not arguments.score:
        parser.error("--stride goes with --score")
    if arguments.samples < 1:
        parser.error(f"--samples is {arguments.samples}, but must be 1 or more")
    if arguments.explain and (arguments.prompts or arguments.chat or arguments.score or arguments.export):
        parser.error("--explain goes with --prompt; in a chat, say /explain")
    if arguments.explain and arguments.samples > 1:
        parser.error("--explain explains one continuation; leave --samples out")
    if arguments.capacity is not None and not arguments.remember:
        parser.error("--capacity goes with --remember")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Run the requested task."""
    from lior_jax import config as configuration

    folder = arguments.checkpoint or configuration.load(arguments.config, arguments.set).run.directory

    if arguments.explain:
        overwriting.check_picture(arguments.explain)

    # JAX starts only now, so that a mistake in the configuration is reported immediately.
    backend.start()
    from lior_jax.cli import tasks
    from lior_jax.inference import Engine

    engine = Engine.from_checkpoint(folder, arguments.step)
    if arguments.unknown:
        engine = engine.with_unknown(arguments.unknown)
    engine = tasks.with_memory(engine, Path(folder) / MEMORY, arguments)
    if arguments.export:
        print(f"Written: {engine.export(arguments.export)}", flush=True)
    elif arguments.score:
        tasks.score(engine, arguments.score, arguments.stride)
    elif arguments.chat:
        tasks.chat(engine, arguments)
    elif arguments.prompts:
        tasks.complete(engine, arguments)
    elif arguments.prompt is not None or not arguments.remember:
        tasks.continue_prompt(engine, arguments)
