"""Experiment trackers: subscribers that send a run's figures to Weights & Biases, MLflow or Aim (`training.track`).

A tracker is created by a function of the configuration and the run's folder that returns a subscriber; `registry.TRACKERS`
names them, and users can add their own. If the subscriber has a `close`, it is called at the end of the session, however it
ends.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from lior_jax import config as configuration
from lior_jax.errors import UserError
from lior_jax.registry import TRACKERS, resolve
from lior_jax.settings import Config
from lior_jax.training import events, metrics

PROJECT = "lior_jax"
"""Name of the project or experiment in the trackers."""
_PARAMS = 50
"""Number of parameters per call to MLflow, which accepts at most a hundred."""


class Tracker:
    """Subscriber: logs the numbers of events until that fails; the failure is raised once.

    Args:
        name: for reporting failures.
        log: called with values by their tags (`loss/train`), and the step.
        close: called at the end.
    """

    def __init__(self, name: str, log: Callable[[dict[str, float], int], object], close: Callable[[], object]):
        self.name, self._log, self._close = name, log, close
        self._works = True

    def __call__(self, event: events.Event) -> None:
        values = metrics.numbers(event)
        if self._works and values and isinstance(event, events.Stepped):
            try:
                self._log(values, event.step)
            except Exception:
                self._works = False
                raise

    def close(self) -> None:
        self._close()


@contextmanager
def opened(config: Config, run: Path) -> Iterator[list[events.Subscriber]]:
    """Context manager: the trackers of a configuration, closed at the end.

    Raises:
        UserError: a tracker cannot be started.
    """
    with ExitStack() as stack:
        trackers = []
        for name in config.training.track:
            try:
                tracker = resolve(TRACKERS[name])(config, run)
            except ImportError as problem:
                raise UserError(
                    f"training.track: {name} cannot be imported ({problem}); install it, or leave it out."
                ) from None
            except Exception as problem:  # clients raise many types: no network, no account, no disk
                reason = (str(problem).splitlines() or [""])[0].rstrip(". ") or type(problem).__name__
                raise UserError(f"training.track: {name} cannot be started ({reason}); fix this, or leave it out.") from None
            stack.callback(_closed, tracker)
            trackers.append(tracker)
        yield trackers


def wandb(config: Config, run: Path) -> Tracker:
    """Weights & Biases; with WANDB_MODE=offline only in the run's folder."""
    client = import_module("wandb")
    session = client.init(project=PROJECT, name=run.name, dir=str(run), config=config.model_dump())
    return Tracker("wandb", lambda values, step: session.log(values, step=step), session.finish)


def mlflow(config: Config, run: Path) -> Tracker:
    """MLflow, at MLFLOW_TRACKING_URI."""
    client = import_module("mlflow")
    client.set_experiment(PROJECT)
    client.start_run(run_name=run.name)
    keys = list(configuration.flat(config).items())
    for first in range(0, len(keys), _PARAMS):
        client.log_params(dict(keys[first : first + _PARAMS]))
    return Tracker("mlflow", lambda values, step: client.log_metrics(values, step=step), client.end_run)


def aim(config: Config, run: Path) -> Tracker:
    """Aim, in the repository of the current folder."""
    session = import_module("aim").Run(experiment=PROJECT)
    session["config"], session["name"] = config.model_dump(), run.name

    def log(values: dict[str, float], step: int) -> None:
        for tag, value in values.items():
            session.track(value, name=tag, step=step)

    return Tracker("aim", log, session.close)


def _closed(tracker: Any) -> None:
    """Close a tracker, ignoring failures: the figures are on disk anyway."""
    with suppress(Exception):
        getattr(tracker, "close", lambda: None)()
