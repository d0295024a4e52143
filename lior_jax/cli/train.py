"""Training from the command line (train.py, lior train): arguments, what is printed of a run, and exit statuses."""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lior_jax.cli import arguments as reading
from lior_jax.cli import backend, calling, joining, output, pages

if TYPE_CHECKING:
    from lior_jax.parallel import Processes

MOST_DEVICES = 4096
"""Devices that this machine can pretend to have."""


def main(words: Sequence[str] | None = None) -> None:
    """Run the program with the given words, by default those of the command line."""
    # From the first step on Ctrl-C is handled by training.signals.
    mend = ". Saved checkpoints are kept; fix this and continue with --resume."
    output.main(calling.program("train"), lambda: parse(words), run, mend, stopped="\nStopped.")


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments; a mistake in them ends the program with status 2."""
    parser = reading.Parser(prog=calling.program("train"), description="Train a language model without back-propagation.")
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=reading.path,
        help="YAML configuration, or the name of one that comes with the package, such as quickstart",
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
        help="resume a run; without RUN, that of --config",
    )
    parser.add_argument(
        "--init-from",
        metavar="RUN",
        type=reading.path,
        help="start a new run with the weights and the tokenizer of a run, a checkpoint of one, or an exported model; without "
        "--config, with the run's configuration",
    )
    parser.add_argument("--force", action="store_true", help="resume even if the configuration or the corpus has changed")
    parser.add_argument(
        "--dry-run", action="store_true", help="report size, memory and tokens per epoch, without training or writing anything"
    )
    parser.add_argument(
        "--devices",
        metavar="N",
        type=int,
        help="with --dry-run: compile a step for this number of devices, which need not exist, and report the memory, "
        "computation and communication of each",
    )
    parser.add_argument("--peak", metavar="FLOP/S", type=float, help="with --devices: peak performance of each device")
    parser.add_argument("--bandwidth", metavar="BYTES/S", type=float, help="with --devices: send bandwidth of each device")
    parser.add_argument(
        "--find-rate",
        metavar="STEPS",
        type=int,
        nargs="?",
        const=100,
        help="train for N steps (100) with a growing learning rate, suggest one, draw the loss, and discard the result",
    )
    parser.add_argument("--profile", metavar="STEPS", type=int, help="trace N steps, after compilation, into RUN/profile")
    parser.add_argument(
        "--prepare", action="store_true", help="tokenise a long text into the cache, where later runs find it; do not train"
    )
    parser.add_argument("--stop-after", metavar="STEP", type=int, help="save and exit at this step, to be resumed later")
    parser.add_argument(
        "--report", metavar="RUN", type=reading.path, help="write a page about a run, RUN/report.html, without training"
    )
    parser.add_argument(
        "--compare",
        metavar="RUN",
        type=reading.path,
        nargs="+",
        help="compare runs, without training: table and picture",
    )
    parser.add_argument(
        "--options", metavar="SECTION", nargs="?", const="", help="print every key of a configuration, or of a section of it"
    )
    joining.add_options(parser)
    arguments = parser.read(words)
    alone = arguments.config, arguments.resume, arguments.set, arguments.stop_after, arguments.force, arguments.dry_run
    alone += (arguments.init_from, arguments.find_rate, arguments.profile, arguments.prepare)
    shown = [name for name in ("report", "compare", "options") if getattr(arguments, name) is not None]
    if shown and (any(alone) or len(shown) > 1):
        parser.error(f"--{shown[0]} goes with no other option")
    if arguments.init_from and arguments.resume:
        parser.error("--init-from starts a new run, and --resume continues one; give one of them")
    if not (arguments.config or isinstance(arguments.resume, str) or arguments.init_from or shown):
        parser.error("give --config FILE, --resume RUN, --init-from RUN, --report RUN, --compare RUN RUN, or --options")
    if arguments.prepare and (
        arguments.resume or arguments.dry_run or arguments.find_rate or arguments.profile or arguments.stop_after is not None
    ):
        parser.error("--prepare goes with --config, --init-from and --set alone")
    if arguments.force and not arguments.resume:
        parser.error("--force goes with --resume")
    if arguments.devices is not None and not (arguments.dry_run and not arguments.resume):
        parser.error("--devices goes with --dry-run and --config")
    if (arguments.peak is not None or arguments.bandwidth is not None) and arguments.devices is None:
        parser.error("--peak and --bandwidth go with --devices")
    for option in ("peak", "bandwidth"):
        value = getattr(arguments, option)
        if value is not None and not 0 < value < math.inf:
            parser.error(f"--{option} is {value:g}, but must be a number above 0")
    if arguments.devices is not None and arguments.devices > MOST_DEVICES:
        parser.error(f"--devices is {arguments.devices}, but must be {MOST_DEVICES:,} or fewer")
    for option, least in (("stop_after", 1), ("profile", 1), ("find_rate", 20), ("devices", 1)):
        value = getattr(arguments, option)
        if value is not None and value < least:
            parser.error(f"--{option.replace('_', '-')} is {value}, but must be {least} or more")
    if arguments.find_rate and (arguments.resume or arguments.dry_run or arguments.stop_after or arguments.profile):
        parser.error("--find-rate goes with --config, --init-from and --set alone")
    joining.check(parser, arguments, not shown and _trains(arguments))
    return arguments


def _trains(arguments: argparse.Namespace) -> bool:
    """Whether the arguments ask for training, and not for a look at it."""
    return not (arguments.prepare or arguments.dry_run or arguments.find_rate)


def run(arguments: argparse.Namespace) -> None:
    """Run the requested task."""
    if arguments.options is not None:
        pages.options(arguments.options)
    elif arguments.compare:
        pages.compare(arguments.compare)
    elif arguments.report:
        pages.report(arguments.report)
    else:
        _run(arguments)


def _run(arguments: argparse.Namespace) -> None:
    """Train, or do a dry run or range test, with the configuration from the arguments."""
    from lior_jax import config as configuration

    resumes_from = arguments.resume if isinstance(arguments.resume, str) else None
    config = configuration.load(arguments.config, arguments.set) if arguments.config else None

    # JAX starts only now, so that a mistake in the configuration is reported immediately.
    if arguments.devices:
        backend.pretend(arguments.devices)
    backend.prepare()
    if not _trains(arguments):
        backend.begin()
    from lior_jax import training
    from lior_jax.cli import progress
    from lior_jax.training import dry_run, origin

    if arguments.init_from:
        config = config or origin.config_of(arguments.init_from, arguments.set)
        config = configuration.replace(config, "run", init_from=arguments.init_from)
    elif config is None:
        assert resumes_from is not None  # one of the three is given
        config = training.resume_config(resumes_from, arguments.set)
    elif resumes_from:
        config = configuration.replace(config, "run", directory=resumes_from)
    if arguments.prepare:
        prepare(config)
    elif arguments.devices:
        from lior_jax.training import plan

        print(plan.report(config, arguments.peak or plan.PEAK, arguments.bandwidth or plan.BANDWIDTH), flush=True)
    elif arguments.dry_run:
        with progress.reading() as reading:
            print(dry_run.report(config, reading), flush=True)
    elif arguments.find_rate:
        from lior_jax.cli import rate

        rate.find(config, arguments)
    else:
        with joining.joined(arguments, config) as team:
            backend.begin()
            train(config, arguments, team)


def prepare(config) -> None:
    """Tokenise the text of a configuration, and print where the tokens are."""
    from lior_jax.cli import progress
    from lior_jax.training import origin

    with progress.reading() as reading:
        _, corpus, _ = origin.begin(config, reading)
    counts = f"{len(corpus.train):,} tokens for training and {len(corpus.validation):,} for validation"
    where = (
        "not cached, since every run tokenises so short a text in a moment" if corpus.folder is None else f"in {corpus.folder}"
    )
    print(f"{counts}, {where}.", flush=True)


def train(config, arguments: argparse.Namespace, team: "Processes") -> None:
    """Train, show the progress, and print the results; of several processes, the first does that."""
    from lior_jax import training
    from lior_jax.cli.progress import Bar, Sentences
    from lior_jax.training import memory, signals
    from lior_jax.training.profile import Profiler

    memory.check(config)
    bar, finished = Bar(), Finished()
    sentences = Sentences(bar)
    profiler = Profiler(arguments.profile or 0, sentences)
    patience = signals.PATIENCE if team.count == 1 else signals.PATIENCE_TOGETHER
    say = output.complain_at_once if team.is_first else lambda sentence: None
    with memory.explained(config), signals.watched(say, patience) as stop:
        try:
            summary = training.train(
                config,
                [bar, sentences, finished, profiler],
                resume=bool(arguments.resume),
                stop_after=arguments.stop_after,
                force=arguments.force,
                stop=stop,
                team=team,
            )
        except signals.NotBegunError as stopped:
            team.end(stopped.status, str(stopped))
            output.complain(str(stopped))
            sys.exit(stopped.status)
        except signals.StoppedError as stopped:
            if team.is_first:
                said = f"{stopped} Saved checkpoints are kept" if str(stopped) else "Saved"
                output.complain(f"{said}; continue with --resume {config.run.directory}.")
            sys.exit(stopped.status)
        finally:
            profiler.close()
            bar.close()
    if not team.is_first:
        return
    if not finished.before:
        draw_loss(config, summary)
    conclude(summary, bool(arguments.resume) and not finished.before)


def validation_table(context: int, summary) -> str:
    """Losses over the whole validation part by both protocols, for the best and the last step."""
    best, last = f"best of {summary.evaluations} evaluations, step {summary.best_step:,}", f"last step, {summary.step:,}"
    rows = [("validation, all of it, nats/char", f"windows of {context}", f"history of at least {context - context // 2}")]

    def written(loss: float) -> str:
        return f"{loss:.4f} = {loss / math.log(2):.4f} bits"

    for name, nats, with_history in (
        (best, summary.nats_per_character, summary.nats_per_character_with_history),
        (last, summary.last_nats_per_character, summary.last_nats_per_character_with_history),
    ):
        rows.append((f"  {name}", written(nats), written(with_history)))
    return "\n".join(f"{name:40}{disjoint:>22}{history:>26}" for name, disjoint, history in rows)


class Finished:
    """Subscriber: records whether the run was finished `before` this session, so that nothing is written."""

    before = False

    def __call__(self, event) -> None:
        from lior_jax.training import events

        self.before = self.before or isinstance(event, events.AlreadyFinished)


def draw_loss(config, summary) -> None:
    """Draw the loss curve into the run's folder."""
    from lior_jax.analysis import plots
    from lior_jax.registry import RULES
    from lior_jax.training import metrics

    title = f"{summary.directory.name}: {summary.parameters:,} parameters, learning by {RULES[config.learning.rule].title}"
    plots.loss_curve(metrics.read(summary.directory), title).savefig(summary.directory / "loss.png")


def conclude(summary, resumed: bool) -> None:
    """Print the results of the run and possible next commands."""
    from lior_jax import training

    config = training.resume_config(summary.directory)
    prompt = shlex.quote(config.sample.prompt or "")
    session = " in this session" if resumed else ""
    text = f"""
{summary.step:,} steps, {summary.parameters:,} parameters, {summary.seconds / 60:.1f} minutes{session}
{validation_table(config.model.context, summary)}

  {summary.directory}/loss.png       loss curve
  {summary.directory}/metrics.jsonl  all figures        (tensorboard --logdir {summary.directory}/tensorboard)
  {summary.directory}/checkpoints    latest and best, with configuration and tokenizer
  {summary.directory}/config.yaml    configuration

Talk to it:  {calling.start("infer")} --checkpoint {summary.directory} --prompt={prompt}"""
    try:
        print(text, flush=True)
    except output.BROKEN as problem:  # the run is complete anyway
        name = calling.program("train")
        output.complain(f"{name}: standard output cannot be written to ({problem}); see {summary.directory}/summary.json.")
