"""What a run reports of itself as it goes on, and whom to.

`training.train(config, on_event)` calls its subscriber with one of these records at a time, in the order of the run. What
belongs to a step that is saved is reported after the save. Progress bars, sentences and live curves are subscribers;
`metrics.Metrics`, which writes the figures down, is one too.
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
    """Base of the events of a step that have figures."""

    step: int


@dataclass(frozen=True)
class Started(Event):
    """The corpus is read and the folder is taken: the run begins, or goes on."""

    directory: Path
    config: Config
    """The configuration, with the vocabulary of the corpus."""
    parameters: int


@dataclass(frozen=True)
class Spread(Event):
    """How the run uses the devices that there are, where there are several."""

    sentence: str


@dataclass(frozen=True)
class Tokenising(Event):
    """A long text is on its way into the cache of tokenised texts; before the run begins."""

    what: str
    """Part of the work: `reading`, `tokenising` and so on."""
    done: int
    total: int


@dataclass(frozen=True)
class Replaced(Event):
    """The text has characters that the vocabulary has not, and that were replaced."""

    sentence: str


@dataclass(frozen=True)
class Initialised(Event):
    """The run begins with the parameters and the tokenizer of a trained model; its optimiser begins anew."""

    source: str
    step: int | None
    """Step of the checkpoint; None for an exported model."""


@dataclass(frozen=True)
class Resumed(Event):
    """The state of a checkpoint was restored."""

    step: int
    passed: tuple[str, ...] = ()
    """A sentence for each newer checkpoint that was passed over."""


@dataclass(frozen=True)
class Rescheduled(Event):
    """The resumed run has another length than before, and so another learning rate."""

    step: int
    steps_before: int
    steps: int
    rate_before: float
    """Learning rate that the next step would have had."""
    rate: float
    """Learning rate that it has."""


@dataclass(frozen=True)
class AlreadyFinished(Event):
    """There is nothing to go on with, and nothing is written."""

    directory: Path
    step: int


@dataclass(frozen=True)
class Compiling(Event):
    """The first training step of the session is being compiled, which takes seconds or minutes."""


@dataclass(frozen=True)
class Step(Stepped):
    """A step was applied."""

    step: int
    loss: float
    """Nats per token of its batch, before the update."""
    tokens_per_second: float | None = None
    """Since the last one that was measured; None if this one was not."""
    figures: Mapping[str, Any] | None = None
    """All that is written down of it: numbers, and arrays by block; None unless `training.log_every` is due."""


@dataclass(frozen=True)
class RefusedStep(Stepped):
    """A step was not applied, because its numbers are bad."""

    step: int
    reasons: tuple[str, ...]
    folder: Path
    """Where batch and state are."""
    problem: str = ""
    """Why they could not be written there, if so."""


@dataclass(frozen=True)
class Checked(Stepped):
    """The bias of a step's estimate was measured."""

    step: int
    nudge_bias: float
    """`learning.bias.nudge_bias` of its batch, before the update."""
    advice: str = ""
    """What to do about it, if it is above `learning.nudge_bias_limit`."""


@dataclass(frozen=True)
class Validated(Stepped):
    """The validation loss was measured."""

    step: int
    training_loss: float | None
    """The last step's; None if this session has made none."""
    nats_per_token: float
    """Not finite if the model is broken; then the step cannot be the best, and no figure is written down."""
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
    """A checkpoint is whole and on the disk."""

    step: int


@dataclass(frozen=True)
class SaveFailed(Event):
    """A checkpoint could not be saved; training goes on."""

    sentence: str


@dataclass(frozen=True)
class FiguresNotWritten(Event):
    """The disk does not take the figures; they are kept and written when it does. Reported once for each such time."""

    step: int
    problem: str


@dataclass(frozen=True)
class EnvironmentNotRecorded(Event):
    """`environment.json` could not be written, which does not end the run."""

    sentence: str


@dataclass(frozen=True)
class Scoring(Event):
    """A long pass over a text, between its first (0 done) and its last batch (all done)."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class SubscriberFailed(Event):
    """A subscriber raised an exception. It is called with later events as before, and this is not reported again."""

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
    """The run, or this session of it, came to its end."""

    summary: Any
    """`training.Summary`."""


Subscriber = Callable[[Event], object]


class Several:
    """Subscribers as one. One that raises an exception is reported to the others, once, and does not end the run; only
    `StoppedError` and what is no `Exception` (Ctrl-C) pass."""

    def __init__(self, subscribers: Iterable[Subscriber]):
        self._subscribers = tuple(subscribers)
        self._failed: set[int] = set()

    def __call__(self, event: Event) -> None:
        for index, problem in self._call(event):
            self._failed.add(index)
            failure = SubscriberFailed(_name(self._subscribers[index]), f"{problem}" or type(problem).__name__)
            self._failed.update(other for other, _ in self._call(failure))

    def _call(self, event: Event) -> list[tuple[int, Exception]]:
        """Call all; returns those that fail for the first time. Those that failed before are not told of failures."""
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
    """One subscriber that calls all of them, whatever one of them raises."""
    return Several(subscribers)


def as_one(on_event: Subscriber | Iterable[Subscriber] | None) -> Several:
    """The subscriber of one, of several or of none."""
    if on_event is None:
        return Several(())
    return Several((on_event,) if callable(on_event) else on_event)


def _name(subscriber: Subscriber) -> str:
    given = getattr(subscriber, "name", None) or getattr(subscriber, "__name__", None)
    return given if isinstance(given, str) else type(subscriber).__name__
