"""Use a trained model: python infer.py --checkpoint runs/quickstart --prompt "The " """

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from lior_jax import config as configuration
from lior_jax.cli import arguments as reading
from lior_jax.cli import backend, outputs
from lior_jax.errors import UserError

MEMORY = "memory.safetensors"


def main() -> None:
    arguments = parse()
    try:
        run(arguments)
    except UserError as problem:
        print(f"infer.py: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print()
        sys.exit(130)
    except BrokenPipeError:  # the reader, `head` for one, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as problem:
        print(f"infer.py: {problem}; choose another file or folder.", file=sys.stderr)
        sys.exit(2)


def parse() -> argparse.Namespace:
    parser = reading.Parser(description="Use a trained model. Without --prompt, it is read from standard input.")
    model = parser.add_argument_group("the model").add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--checkpoint",
        metavar="RUN",
        type=reading.path,
        help="folder that train.py or --export wrote, for example runs/quickstart",
    )
    model.add_argument("--config", metavar="FILE", type=reading.path, help="configuration whose run.directory is that folder")
    parser.add_argument("--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="override a key of --config")
    parser.add_argument("--step", type=int, help="use the checkpoint of this step instead of the best one")

    task = parser.add_argument_group("what to do").add_mutually_exclusive_group()
    task.add_argument("--prompt", metavar="TEXT", help="continue a text")
    task.add_argument(
        "--prompts",
        metavar="FILE",
        type=reading.path,
        help='continue each line {"prompt": "..."} of a file; JSON lines come out',
    )
    task.add_argument("--chat", action="store_true", help="talk in turns; /help lists the commands")
    task.add_argument("--score", metavar="FILE", type=reading.path, help="how well the model predicts a text")
    task.add_argument(
        "--export", metavar="FOLDER", type=reading.path, help="write model.safetensors with its configuration and tokenizer"
    )
    task.add_argument("--compress", metavar="RANK|auto", help="write RUN-compressed with matrices of low rank, if it pays")

    parser.add_argument(
        "--explain",
        metavar="PNG",
        type=reading.path,
        nargs="?",
        const="explanation.png",
        help="with --prompt: what each token was retrieved from, as a table and a picture (explanation.png)",
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
    sampling.add_argument("--max-tokens", metavar="N", type=int, default=400, help="length of a continuation (400)")
    sampling.add_argument(
        "--temperature", metavar="T", type=float, default=0.8, help="Boltzmann; 0 takes the most probable (0.8)"
    )
    sampling.add_argument("--top-k", metavar="K", type=int, default=0, help="only the K most probable tokens; 0 for all (0)")
    sampling.add_argument("--top-p", metavar="P", type=float, default=1.0, help="only the most probable that reach P (1)")
    sampling.add_argument(
        "--min-p", metavar="P", type=float, default=0.0, help="only those above P times the most probable (0)"
    )
    sampling.add_argument("--repetition-penalty", metavar="X", type=float, default=1.0, help="above 1 avoids repetition (1)")
    sampling.add_argument("--stop", metavar="TEXT", action="append", help="end before this text; may be repeated")
    sampling.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (0)")
    sampling.add_argument("--samples", metavar="N", type=int, default=1, help="number of continuations (1)")
    sampling.add_argument("--speed", action="store_true", help="print tokens per second to standard error")
    arguments = parser.parse_args()

    if arguments.set and not arguments.config:
        parser.error("--set goes with --config")
    if arguments.samples < 1:
        parser.error(f"--samples is {arguments.samples}, but must be 1 or more")
    if arguments.explain and (arguments.prompts or arguments.chat or arguments.score or arguments.export or arguments.compress):
        parser.error("--explain goes with --prompt; in a chat, say /explain")
    if arguments.explain and arguments.samples > 1:
        parser.error("--explain explains one continuation; leave --samples out")
    if arguments.capacity is not None and not arguments.remember:
        parser.error("--capacity goes with --remember")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    folder = arguments.checkpoint or configuration.load(arguments.config, arguments.set).run.directory

    if arguments.explain:
        outputs.check_picture(arguments.explain)

    # JAX starts only now, so that a mistake in the configuration is told at once.
    backend.start()
    if arguments.compress is not None:
        from lior_jax.analysis import compression

        print(compression.compress_run(folder, arguments.compress, arguments.step))
        return
    from lior_jax.inference import Engine

    engine = with_memory(Engine.from_checkpoint(folder, arguments.step), Path(folder) / MEMORY, arguments)
    if arguments.export:
        print(f"Written: {engine.export(arguments.export)}")
    elif arguments.score:
        score(engine, arguments.score)
    elif arguments.chat:
        chat(engine, arguments)
    elif arguments.prompts:
        complete(engine, arguments)
    elif arguments.prompt is not None or not arguments.remember:
        continue_prompt(engine, arguments)


def with_memory(engine: Any, path: Path, arguments: argparse.Namespace) -> Any:
    """The engine with the memory that was asked for; what it reads is saved."""
    from lior_jax.data import read_file

    if arguments.memory or (arguments.remember and path.exists()):
        engine = engine.with_memory(path)
    for file in arguments.remember:
        text = read_file(file)
        engine = engine.remember(text, *([] if arguments.capacity is None else [arguments.capacity]))
        engine.save_memory(path)
        trust = f"it has a weight of {engine.memory.mixture.weight:.3f} beside the model"
        print(f"{len(text):,} characters of {file} are remembered in {path}; {trust}", file=sys.stderr)
    return engine


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """How tokens are chosen, as `Engine.generate` takes it."""
    names = "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_tokens", "seed"
    return {name: getattr(arguments, name) for name in names} | {"stop": arguments.stop or ()}


def score(engine: Any, path: str) -> None:
    """Print how well the model predicts a file."""
    from lior_jax.data import read_file

    found = engine.score(read_file(path))
    history = engine.config.context - max(1, engine.config.context // 2)
    print(
        f"{found.nats_per_character:.4f} nats/char = {found.bits_per_character:.4f} bits/char, "
        f"perplexity {found.perplexity:.3f} per token, over {found.tokens:,} tokens.\n"
        f"The first token is only given, not scored. Each other one is predicted from at least {history} tokens before it, "
        "or from all that there are."
    )
    if engine.memory is not None:
        print(f"Without the memory: {found.nats_per_character_alone:.4f} nats/char.")


def chat(engine: Any, arguments: argparse.Namespace) -> None:
    """Talk in turns."""
    from lior_jax.inference import chat as conversations
    from lior_jax.inference.sampling import Settings

    if sys.stdin.isatty():
        import readline  # noqa: F401 - gives `input` its line editing and history
    else:  # what is no UTF-8 is refused by the tokenizer, and the talk goes on
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")

    chosen = settings(arguments)
    how = Settings(**{name: chosen[name] for name in Settings._fields})
    stop = tuple(chosen["stop"]) or ("\n\n",)
    conversations.run(conversations.Conversation(engine, how, stop, arguments.max_tokens, arguments.seed))


def complete(engine: Any, arguments: argparse.Namespace) -> None:
    """Continue every line of a file."""
    from lior_jax.inference import prompts

    began, tokens = time.monotonic(), 0
    items = prompts.read(arguments.prompts, engine, arguments.samples)
    for item in prompts.complete(items, engine, arguments.samples, **settings(arguments)):
        tokens += len(engine.tokenizer.encode(item["completion"]))
        print(prompts.to_line(item, sys.stdout.encoding or "utf-8"), flush=True)
    if arguments.speed:
        tell_speed(tokens, time.monotonic() - began, "in all, compilation included")


def continue_prompt(engine: Any, arguments: argparse.Namespace) -> None:
    """Show continuations of one prompt as they are decoded."""
    from lior_jax import data

    prompt = arguments.prompt
    if prompt is None:
        if sys.stdin.isatty():
            print("Type a prompt and end it with Ctrl-D (or give --prompt TEXT).", file=sys.stderr)
        prompt = data.read_stream(sys.stdin.buffer)
        prompt = prompt.removesuffix("\r\n" if prompt.endswith("\r\n") else "\n")
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
        print()
        if arguments.speed and first:
            tell_speed(len(engine.tokenizer.encode("".join(text)[first[1] :])), time.monotonic() - first[0], "after the first")
            print(f"the first {first[0] - began:.2f} s later than asked for, compilation included", file=sys.stderr)
        if arguments.explain:
            explain(engine, prompt, "".join(text), arguments.explain)


def explain(engine: Any, prompt: str, continuation: str, path: str) -> None:
    """Print a table and draw a picture of what each token was retrieved from."""
    from lior_jax.analysis import plots

    explained = engine.explain(prompt, continuation)
    print(f"\n{explained.table()}")
    rows = [repr(token)[1:-1] for token in explained.tokens]
    figure = plots.retrieval_map(
        explained.weight, rows[explained.first :], rows, "Boltzmann weight of the tokens retrieved from"
    )
    figure.savefig(path, **outputs.PICTURE)
    print(f"\n{path}: the weights as a picture")


def tell_speed(tokens: int, seconds: float, what: str) -> None:
    print(f"{tokens:,} tokens in {seconds:.2f} s = {tokens / max(seconds, 1e-9):,.0f} tokens/s {what}", file=sys.stderr)


if __name__ == "__main__":
    main()
