"""Events of a run, and their subscribers.

`training.train(config, on_event)` calls its subscriber with one of these records at a time, in order. Events of a step that is
saved are reported after the save. Progress bars, sentences and live curves are subscribers, as is `metrics.Metrics`, which
writes the figures.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lior_jax.settings import Config
from lior_jax.training.signals import StoppedError


@dataclass(frozen=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True)
class Stepped(Event):
    """Base of events of a step with figures."""

    step: int


@dataclass(frozen=True)
class Started(Event):
    """The corpus is read and the folder is locked: the run starts or resumes."""

    directory: Path
    config: Config
    """The configuration, with the vocabulary of the corpus."""
    parameters: int


@dataclass(frozen=True)
class Spread(Event):
    """How the run uses several available devices."""

    sentence: str


@dataclass(frozen=True)
class Tokenising(Event):
    """A long text is being tokenised into the cache, before the run starts."""

    what: str
    """Current task: `reading`, `tokenising` and so on."""
    done: int
    total: int


@dataclass(frozen=True)
class Replaced(Event):
    """The text has characters outside the vocabulary, which were replaced."""

    sentence: str


@dataclass(frozen=True)
class Initialised(Event):
    """The run starts from the parameters and the tokenizer of a trained model, with a new optimiser state."""

    source: str
    step: int | None
    """Step of the checkpoint; None for an exported model."""


@dataclass(frozen=True)
class Resumed(Event):
    """The state of a checkpoint was restored."""

    step: int
    passed: tuple[str, ...] = ()
    """A sentence for each newer checkpoint that was skipped as damaged."""


@dataclass(frozen=True)
class Rescheduled(Event):
    """The resumed run has a different length, and therefore a different learning rate."""

    step: int
    steps_before: int
    steps: int
    rate_before: float
    """Learning rate of the next step before the change."""
    rate: float
    """Learning rate of the next step now."""


@dataclass(frozen=True)
class AlreadyFinished(Event):
    """The run is already finished; nothing is written."""

    directory: Path
    step: int


@dataclass(frozen=True)
class Compiling(Event):
    """The session's first training step is being compiled, which takes seconds to minutes."""


@dataclass(frozen=True)
class Step(Stepped):
    """A step was applied."""

    step: int
    loss: float
    """Nats per token of its batch, before the update."""
    tokens_per_second: float | None = None
    """Speed since the previous measurement; None at steps without one."""
    figures: Mapping[str, Any] | None = None
    """The logged values: numbers, and arrays by block; None unless `training.log_every` is due."""


@dataclass(frozen=True)
class RefusedStep(Stepped):
    """A step was not applied, because its estimate is not sound."""

    step: int
    reasons: tuple[str, ...]
    folder: Path
    """Folder of batch and state."""
    problem: str = ""
    """Why they could not be written, if so."""


@dataclass(frozen=True)
class Checked(Stepped):
    """The bias of a step's estimate was measured."""

    step: int
    nudge_bias: float
    """`learning.bias.nudge_bias` of its batch, before the update."""
    advice: str = ""
    """Advice, if it is above `learning.nudge_bias_limit`."""


@dataclass(frozen=True)
class Validated(Stepped):
    """The validation loss was measured."""

    step: int
    training_loss: float | None
    """Training loss of the last step; None if this session has made none."""
    nats_per_token: float
    """If not finite, the step cannot be the best, and no figure is logged."""
    nats_per_character: float
    bits_per_character: float


@dataclass(frozen=True)
class Sampled(Stepped):
    """The prompt of the configuration was continued."""

    step: int
    text: str
    """Prompt and continuation."""


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint is complete on disk."""

    step: int


@dataclass(frozen=True)
class SaveFailed(Event):
    """A checkpoint could not be saved; training continues."""

    sentence: str


@dataclass(frozen=True)
class FiguresNotWritten(Event):
    """Metrics cannot be written; they are kept and written later. Reported once per failure period."""

    step: int
    problem: str


@dataclass(frozen=True)
class EnvironmentNotRecorded(Event):
    """`environment.json` could not be written; the run continues."""

    sentence: str


@dataclass(frozen=True)
class Scoring(Event):
    """Progress of a long pass over a text, from its first (0 done) to its last batch (all done)."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class SubscriberFailed(Event):
    """A subscriber raised an exception. It still gets later events; further failures are not reported."""

    subscriber: str
    """Its `name`, or that of its function or class."""
    problem: str


@dataclass(frozen=True)
class Profiled(Event):
    """A trace was written."""

    folder: Path
    steps: int


@dataclass(frozen=True)
class Finished(Event):
    """The run, or this session of it, ended."""

    summary: Any
    """`training.Summary`."""


Subscriber = Callable[[Event], object]


class Several:
    """Several subscribers as one. An exception of one is reported to the others, once, and does not end the run; only
    `StoppedError` and exceptions outside `Exception` (Ctrl-C) propagate."""

    def __init__(self, subscribers: Iterable[Subscriber]):
        self._subscribers = tuple(subscribers)
        self._failed: set[int] = set()

    def __call__(self, event: Event) -> None:
        for index, problem in self._call(event):
            self._failed.add(index)
            failure = SubscriberFailed(_name(self._subscribers[index]), f"{problem}" or type(problem).__name__)
            self._failed.update(other for other, _ in self._call(failure))

    def _call(self, event: Event) -> list[tuple[int, Exception]]:
        """Call all; returns those that fail for the first time. Those that failed before get no failure events."""
        failing = []
        for index, subscriber in enumerate(self._subscribers):
            if isinstance(event, SubscriberFailed) and index in self._failed:
                continue
            try:
                subscriber(event)
            except StoppedError:
                raise
            except Exception as problem:
                if index not in self._failed:
                    failing.append((index, problem))
        return failing


def several(*subscribers: Subscriber) -> Subscriber:
    """One subscriber that calls all, even if some raise."""
    return Several(subscribers)


def as_one(on_event: Subscriber | Iterable[Subscriber] | None) -> Several:
    """One subscriber from one, several or none."""
    if on_event is None:
        return Several(())
    return Several((on_event,) if callable(on_event) else on_event)


def _name(subscriber: Subscriber) -> str:
    given = getattr(subscriber, "name", None) or getattr(subscriber, "__name__", None)
    return given if isinstance(given, str) else type(subscriber).__name__
