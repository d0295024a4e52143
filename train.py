"""Train a model: python train.py --config configs/quickstart.yaml"""

import argparse
import shlex
import sys

from lior_jax import config as configuration
from lior_jax.cli import arguments as reading
from lior_jax.cli import backend
from lior_jax.errors import UserError
from lior_jax.registry import RULES


def main() -> None:
    parser = reading.Parser(description="Train a language model without back-propagation.")
    parser.add_argument(
        "--config", metavar="FILE", type=reading.path, help="YAML configuration, for example configs/quickstart.yaml"
    )
    parser.add_argument(
        "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="override a key; may be repeated"
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        type=reading.path,
        nargs="?",
        const=True,
        help="go on with a run; without RUN, with that of --config",
    )
    parser.add_argument("--force", action="store_true", help="resume though the configuration or the corpus has changed")
    parser.add_argument(
        "--dry-run", action="store_true", help="tell size, memory and tokens per epoch; train and write nothing"
    )
    parser.add_argument("--stop-after", metavar="STEP", type=int, help="save and leave at this step, to be resumed later")
    parser.add_argument(
        "--report", metavar="RUN", type=reading.path, help="do not train, but write a page about a run, RUN/report.html"
    )
    arguments = parser.parse_args()
    alone = arguments.config, arguments.resume, arguments.set, arguments.stop_after, arguments.force, arguments.dry_run
    if arguments.report and any(alone):
        parser.error("--report RUN goes with no other option")
    if not (arguments.config or isinstance(arguments.resume, str) or arguments.report):
        parser.error("give --config FILE, --resume RUN, or --report RUN")
    if arguments.force and not arguments.resume:
        parser.error("--force goes with --resume")
    if arguments.stop_after is not None and arguments.stop_after < 1:
        parser.error(f"--stop-after is {arguments.stop_after}, but must be 1 or more")
    try:
        run(arguments)
    except UserError as problem:
        print(f"train.py: {problem}", file=sys.stderr)
        sys.exit(2)
    except OSError as problem:
        print(f"train.py: {problem}. What was saved is kept; mend it and go on with --resume.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before training began; from then on see training.signals
        print("\nStopped.", file=sys.stderr)
        sys.exit(130)


def run(arguments: argparse.Namespace) -> None:
    if arguments.report:
        from lior_jax.analysis import report

        print(report.write(arguments.report))
        return
    resumes_from = arguments.resume if isinstance(arguments.resume, str) else None
    config = configuration.load(arguments.config, arguments.set) if arguments.config else None

    # JAX starts only now, so that a mistake in the configuration is told at once.
    backend.start()
    from lior_jax import training
    from lior_jax.analysis import plots
    from lior_jax.training import dry_run, memory, metrics, signals

    if config is None:
        config = training.resume_config(resumes_from, arguments.set)
    elif resumes_from:
        config = configuration.replace(config, "run", directory=resumes_from)
    if arguments.dry_run:
        print(dry_run.report(config))
        return
    memory.check(config)
    with memory.explained(config), signals.watched() as stop:
        try:
            summary = training.train(config, bool(arguments.resume), arguments.stop_after, force=arguments.force, stop=stop)
        except signals.StoppedError as stopped:
            said = f"{stopped} What was saved before is kept" if str(stopped) else "Saved"
            print(f"{said}; go on with --resume {config.run.directory}.", file=sys.stderr)
            sys.exit(stopped.status)

    prompt = training.resume_config(summary.directory).sample.prompt
    session = " in this session" if arguments.resume else ""
    title = f"{summary.directory.name}: {summary.parameters:,} parameters, learning by {RULES[config.learning.rule].title}"
    plots.loss_curve(metrics.read(summary.directory), title).savefig(summary.directory / "loss.png")
    print(
        f"""
{summary.step:,} steps, {summary.parameters:,} parameters, {summary.seconds / 60:.1f} minutes{session}
validation, all of it, best checkpoint (step {summary.best_step:,}): \
{summary.nats_per_character:.4f} nats/char = {summary.bits_per_character:.4f} bits/char

  {summary.directory}/loss.png       loss curve
  {summary.directory}/metrics.jsonl  all figures        (tensorboard --logdir {summary.directory}/tensorboard)
  {summary.directory}/checkpoints    latest and best, with configuration and tokenizer
  {summary.directory}/config.yaml    configuration

Talk to it:  python infer.py --checkpoint {summary.directory} --prompt={shlex.quote(prompt)}"""
    )


if __name__ == "__main__":
    main()
