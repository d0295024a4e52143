"""The order of writing and reporting: an event's figures are written at once, and it is reported after its step is saved.

If a run is killed after a save, all figures of the saved step must be on disk, so they are written before the save. Display
comes after it, so that a display that fails, hangs or kills the process loses no training.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from lior_jax.data.sources import Report
from lior_jax.training import events, metrics
from lior_jax.training.signals import NotBegunError, Stop


class Reporter:
    """Records events and reports them.

    Args:
        writer: of the figures.
        subscriber: receives the events.
    """

    def __init__(self, writer: metrics.Metrics | metrics.Unwritten, subscriber: events.Several):
        self._writer, self._subscriber = writer, subscriber
        self._noted: list[events.Event] = []
        self._figures_are_written = True

    def note(self, event: events.Event) -> None:
        """Write the figures of an event, and keep it for `send`. A failure to write is reported once and does not end the
        run."""
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
        """Report the recorded events, in order."""
        noted, self._noted = self._noted, []
        for event in noted:
            self._subscriber(event)

    def report(self, event: events.Event) -> None:
        """Report an event now, before the recorded ones."""
        self._subscriber(event)


def watched_reading(report: events.Subscriber, stop: Stop) -> Report:
    """The `Report` of `data.load`: passes it on, and raises when the run is asked to stop."""

    def told(what: str, done: int, total: int) -> None:
        if stop.number is not None:
            raise NotBegunError(stop.number, "Stopped while the text was being tokenised; start again by the same command.")
        report(events.Tokenising(what, done, total))

    return told


def watched_pass(items: Sequence, what: str, report: events.Subscriber, stop: Stop) -> Iterator[Any]:
    """Yield the items (a `scoring.Progress`), reporting progress; raises when the run is asked to stop."""
    report(events.Scoring(what, 0, len(items)))
    for done, item in enumerate(items):
        stop.check()
        yield item
        report(events.Scoring(what, done + 1, len(items)))
