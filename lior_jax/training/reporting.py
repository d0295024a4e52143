"""The way of an event: its figures are written down at once, and it is reported when the step that it is of is saved.

A run that is killed after a save must find all figures of the saved step on the disk, so they come before the save. What is
shown comes after it, so that a display that fails, hangs or takes the process with it costs nothing that was trained.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from lior_jax.data.sources import Report
from lior_jax.training import events, metrics
from lior_jax.training.signals import NotBegunError, Stop


class Reporter:
    """Notes events and reports them.

    Args:
        writer: of the figures.
        subscriber: to whom the events are reported.
    """

    def __init__(self, writer: metrics.Metrics, subscriber: events.Several):
        self._writer, self._subscriber = writer, subscriber
        self._noted: list[events.Event] = []
        self._figures_are_written = True

    def note(self, event: events.Event) -> None:
        """Write the figures of an event down, and keep it for `send`. A disk that does not take them is reported once, and
        does not end the run."""
        self._noted.append(event)
        found = metrics.figures(event)
        if found is None:
            return
        assert isinstance(event, events.Stepped)
        kind, values = found
        try:
            self._writer.write(kind, event.step, values)
            self._figures_are_written = True
        except OSError as problem:
            if self._figures_are_written:
                self._noted.append(events.FiguresNotWritten(event.step, str(problem)))
            self._figures_are_written = False

    def send(self) -> None:
        """Report what was noted, in order."""
        noted, self._noted = self._noted, []
        for event in noted:
            self._subscriber(event)

    def report(self, event: events.Event) -> None:
        """Report an event now, before what was noted."""
        self._subscriber(event)


def watched_reading(report: events.Subscriber, stop: Stop) -> Report:
    """What `data.load` reports to: passes it on, and gives up when the run is asked to stop."""

    def told(what: str, done: int, total: int) -> None:
        if stop.number is not None:
            raise NotBegunError(stop.number, "Stopped while the text was being tokenised; start again by the same command.")
        report(events.Tokenising(what, done, total))

    return told


def watched_pass(items: Sequence, what: str, report: events.Subscriber, stop: Stop) -> Iterator[Any]:
    """Yield the items (a `scoring.Progress`), reporting how far it has come; gives up when the run is asked to stop."""
    report(events.Scoring(what, 0, len(items)))
    for done, item in enumerate(items):
        stop.check()
        yield item
        report(events.Scoring(what, done + 1, len(items)))
