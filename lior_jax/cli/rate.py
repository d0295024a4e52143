"""The option --find-rate of training: a range test, its picture, and the command that uses the suggested rate."""

import argparse
import shlex
from pathlib import Path

from lior_jax.analysis import plots
from lior_jax.cli import calling, output, overwriting
from lior_jax.settings import Config
from lior_jax.training import memory, rate


def find(config: Config, arguments: argparse.Namespace) -> None:
    """Run a range test, draw it next to the run's folder, and print the suggested rate with the command to use it."""
    picture = Path(f"{config.run.directory}-rate.png")
    overwriting.check_picture(picture)
    memory.check(config)
    with memory.explained(config):
        found = rate.find(config, arguments.find_rate, output.progress)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure = plots.learning_rates(
        found.rates, found.losses, found.smoothed, found.suggestion, "Loss as the learning rate grows"
    )
    figure.savefig(picture, **overwriting.PICTURE)
    end = f"it diverged after {found.rates[-1]:.1e}" if found.diverged else f"its last step had {found.rates[-1]:.1e}"
    print(
        f"Suggested learning rate: {found.suggestion:.2g}, where the loss falls fastest. The test began with "
        f"{found.rates[0]:.0e}; {end}.\n\n  {picture}   loss against learning rate\n\n"
        f"Use it:  {command(arguments, found.suggestion)}",
        flush=True,
    )


def command(arguments: argparse.Namespace, suggestion: float) -> str:
    """The typed command, with the rate instead of the test."""
    words: list[str] = []
    for option in ("config", "init_from"):
        if getattr(arguments, option):
            words += [f"--{option.replace('_', '-')}", getattr(arguments, option)]
    for setting in [*arguments.set, f"optimizer.learning_rate={suggestion:.2g}"]:
        words += ["--set", setting]
    return f"{calling.start('train')} {shlex.join(words)}"
