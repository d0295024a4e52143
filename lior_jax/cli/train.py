"""train.py: arguments, what is said of a run, and exit statuses."""

import argparse
import shlex
import sys

from lior_jax.cli import arguments as reading
from lior_jax.cli import backend, output


def main() -> None:
    """Run the program with the arguments of the command line."""
    # From the first step on Ctrl-C is taken by training.signals.
    mend = ". What was saved is kept; mend it and go on with --resume."
    output.main("train.py", parse, run, mend, stopped="\nStopped.")


def parse() -> argparse.Namespace:
    """The arguments; a mistake in them ends the program with status 2."""
    parser = reading.Parser(prog="train.py", description="Train a language model without back-propagation.")
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
        "--dry-run", action="store_true", help="report size, memory and tokens per epoch; train and write nothing"
    )
    parser.add_argument("--stop-after", metavar="STEP", type=int, help="save and leave at this step, to be resumed later")
    parser.add_argument(
        "--report", metavar="RUN", type=reading.path, help="do not train, but write a page about a run, RUN/report.html"
    )
    parser.add_argument(
        "--compare",
        metavar="RUN",
        type=reading.path,
        nargs="+",
        help="do not train, but set runs side by side: table and picture",
    )
    parser.add_argument(
        "--options", metavar="SECTION", nargs="?", const="", help="print every key of a configuration, or of a section of it"
    )
    arguments = parser.parse_args()
    alone = arguments.config, arguments.resume, arguments.set, arguments.stop_after, arguments.force, arguments.dry_run
    shown = [name for name in ("report", "compare", "options") if getattr(arguments, name) is not None]
    if shown and (any(alone) or len(shown) > 1):
        parser.error(f"--{shown[0]} goes with no other option")
    if not (arguments.config or isinstance(arguments.resume, str) or shown):
        parser.error("give --config FILE, --resume RUN, --report RUN, --compare RUN RUN, or --options")
    if arguments.force and not arguments.resume:
        parser.error("--force goes with --resume")
    if arguments.stop_after is not None and arguments.stop_after < 1:
        parser.error(f"--stop-after is {arguments.stop_after}, but must be 1 or more")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Do what was asked for."""
    if arguments.options is not None:
        from lior_jax import options

        print(options.text(arguments.options or None), flush=True)
        return
    if arguments.compare:
        from lior_jax.analysis import compare

        table, picture = compare.compare(arguments.compare)
        print(f"{table}\n\n{picture}: the curves over steps, tokens and seconds", flush=True)
        return
    if arguments.report:
        from lior_jax.analysis import report

        print(report.write(arguments.report), flush=True)
        return
    from lior_jax import config as configuration

    resumes_from = arguments.resume if isinstance(arguments.resume, str) else None
    config = configuration.load(arguments.config, arguments.set) if arguments.config else None

    # JAX starts only now, so that a mistake in the configuration is reported at once.
    backend.start()
    from lior_jax import training
    from lior_jax.training import dry_run

    if config is None:
        config = training.resume_config(resumes_from, arguments.set)
    elif resumes_from:
        config = configuration.replace(config, "run", directory=resumes_from)
    if arguments.dry_run:
        print(dry_run.report(config), flush=True)
    else:
        train(config, arguments)


def train(config, arguments: argparse.Namespace) -> None:
    """Train, show how it goes, and say what came of it."""
    from lior_jax import training
    from lior_jax.cli.progress import Bar, Sentences
    from lior_jax.training import memory, signals

    memory.check(config)
    bar = Bar()
    with memory.explained(config), signals.watched(output.complain_at_once) as stop:
        try:
            summary = training.train(
                config,
                [bar, Sentences(bar)],
                resume=bool(arguments.resume),
                stop_after=arguments.stop_after,
                force=arguments.force,
                stop=stop,
            )
        except signals.StoppedError as stopped:
            said = f"{stopped} What was saved before is kept" if str(stopped) else "Saved"
            output.complain(f"{said}; go on with --resume {config.run.directory}.")
            sys.exit(stopped.status)
        finally:
            bar.close()
    conclude(config, summary, bool(arguments.resume))


def conclude(config, summary, resumed: bool) -> None:
    """Draw the loss curve, and print what the run came to and what can be done with it."""
    from lior_jax import training
    from lior_jax.analysis import plots
    from lior_jax.registry import RULES
    from lior_jax.training import metrics

    prompt = training.resume_config(summary.directory).sample.prompt

    title = f"{summary.directory.name}: {summary.parameters:,} parameters, learning by {RULES[config.learning.rule].title}"
    plots.loss_curve(metrics.read(summary.directory), title).savefig(summary.directory / "loss.png")
    session = " in this session" if resumed else ""
    text = f"""
{summary.step:,} steps, {summary.parameters:,} parameters, {summary.seconds / 60:.1f} minutes{session}
validation, all of it, best checkpoint (step {summary.best_step:,}): \
{summary.nats_per_character:.4f} nats/char = {summary.bits_per_character:.4f} bits/char

  {summary.directory}/loss.png       loss curve
  {summary.directory}/metrics.jsonl  all figures        (tensorboard --logdir {summary.directory}/tensorboard)
  {summary.directory}/checkpoints    latest and best, with configuration and tokenizer
  {summary.directory}/config.yaml    configuration

Talk to it:  python infer.py --checkpoint {summary.directory} --prompt={shlex.quote(prompt)}"""
    try:
        print(text, flush=True)
    except output.BROKEN as problem:  # the run is done all the same
        output.complain(f"train.py: standard output cannot be written to ({problem}); see {summary.directory}/summary.json.")
