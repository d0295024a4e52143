"""Generate text: python infer.py --checkpoint runs/quickstart --prompt "The " """

import argparse
import os
import sys

from lior_jax import config as configuration
from lior_jax.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description="Continue a prompt with a trained model.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", metavar="RUN", help="folder that train.py wrote, for example runs/quickstart")
    source.add_argument("--config", metavar="FILE", help="configuration whose run.directory is that folder")
    parser.add_argument("--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="override a key of --config")
    parser.add_argument("--step", type=int, help="use the checkpoint of this step instead of the best one")
    parser.add_argument("--prompt", help="text to continue")
    parser.add_argument("--max-tokens", metavar="N", type=int, default=400, help="length of a continuation (400)")
    parser.add_argument("--temperature", type=float, default=0.8, help="Boltzmann temperature; 0 takes the most probable (0.8)")
    parser.add_argument("--top-k", metavar="K", type=int, default=0, help="only the K most probable tokens; 0 for all (0)")
    parser.add_argument("--top-p", metavar="P", type=float, default=1.0, help="only the most probable tokens that reach P (1)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (0)")
    parser.add_argument("--samples", metavar="N", type=int, default=1, help="number of continuations (1)")
    parser.add_argument(
        "--compress",
        metavar="RANK|auto",
        help="do not generate, but write RUN-compressed with matrices of low rank, if it pays",
    )
    arguments = parser.parse_args()
    if (arguments.prompt is None) == (arguments.compress is None):
        parser.error("give --prompt TEXT, or --compress RANK|auto")
    if arguments.set and not arguments.config:
        parser.error("--set goes with --config")
    if arguments.samples < 1:
        parser.error(f"--samples is {arguments.samples}, but must be 1 or more")
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


def run(arguments: argparse.Namespace) -> None:
    folder = arguments.checkpoint or configuration.load(arguments.config, arguments.set).run.directory

    if arguments.compress is not None:
        from lior_jax.analysis import compression

        print(compression.compress_run(folder, arguments.compress, arguments.step))
        return

    # JAX starts only now, so that a mistake in the configuration is told at once.
    from lior_jax.inference import Engine

    engine = Engine.from_checkpoint(folder, arguments.step)
    for sample in range(arguments.samples):
        pieces = engine.stream(
            arguments.prompt,
            max_tokens=arguments.max_tokens,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            seed=arguments.seed,
            sample=sample,
        )
        if arguments.samples > 1:
            print(f"--- {sample + 1} of {arguments.samples} ---")
        print(arguments.prompt, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
