"""A run on the terminal: a progress bar on standard error, and sentences on standard output."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from tqdm import tqdm

from lior_jax.cli import output
from lior_jax.cli.sentences import sentence
from lior_jax.data.sources import Report
from lior_jax.training import events


class Bar:
    """Subscriber: a progress bar with loss and speed. It raises when its stream breaks."""

    name = "The progress bar"

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream is not None and self._stream.isatty()
        self._steps = 0
        self._bar: tqdm | None = None
        self._pass: tqdm | None = None
        self._figures: dict[str, str] = {}

    def __call__(self, event: events.Event) -> None:
        if self._stream is None:
            return
        try:
            self._show(event)
        except output.BROKEN:
            self.close()
            raise

    def _show(self, event: events.Event) -> None:
        match event:
            case events.Started():
                self._steps = event.config.training.steps
            case events.Resumed(step):
                self._open(step)
            case events.Compiling():
                self._open(0)
            case events.Step():
                self._step(event)
            case events.Validated():
                self._figure("val", f"{event.nats_per_token:.3f}")
            case events.Scoring() | events.Tokenising() if self._is_terminal:
                self._passing(event)
            case events.SubscriberFailed():
                self.clear()
                print(sentence(event), file=self._stream, flush=True)
            case events.Finished():
                self.close()

    def _open(self, step: int) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=self._steps,
                initial=step,
                file=self._stream,
                unit="step",
                dynamic_ncols=True,
                mininterval=0.2 if self._is_terminal else 20,
                bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            )

    def _step(self, event: events.Step) -> None:
        self._figure("loss", f"{event.loss:.3f}")
        if event.tokens_per_second is not None:
            self._figure("tok/s", f"{event.tokens_per_second:,.0f}")
        if self._bar is not None:
            self._bar.update(event.step - self._bar.n)

    def _figure(self, name: str, value: str) -> None:
        self._figures[name] = value
        if self._bar is not None:
            self._bar.set_postfix(self._figures, refresh=False)

    def _passing(self, event: events.Scoring | events.Tokenising) -> None:
        if self._pass is not None and self._pass.desc != event.what:
            self._pass.close()
            self._pass = None
        if self._pass is None:
            shown = {"file": self._stream, "leave": False, "delay": 3, "unit_scale": True}
            self._pass = tqdm(total=event.total, desc=event.what, **shown)
        self._pass.update(event.done - self._pass.n)
        if event.done == event.total:
            self._pass.close()
            self._pass = None

    def clear(self) -> None:
        """Clear the bar for a line on the same terminal; it reappears at the next step."""
        for bar in (self._pass, self._bar):
            if bar is not None and self._is_terminal:
                with suppress(*output.BROKEN):
                    bar.clear()

    def close(self) -> None:
        """Leave the bar as it is. A broken stream is ignored."""
        for bar in (self._pass, self._bar):
            if bar is not None:
                with suppress(*output.BROKEN):
                    bar.close()
                bar.disable = True
        self._bar = self._pass = self._stream = None


@contextmanager
def reading() -> Iterator[Report]:
    """A progress bar for `data.load`."""
    bar = Bar()
    try:
        yield lambda what, done, total: bar(events.Tokenising(what, done, total))
    finally:
        bar.close()


class Sentences:
    """Subscriber: prints sentences about events, clearing the bar if there is one on the terminal."""

    name = "Standard output"

    def __init__(self, bar: Bar | None = None, stream: TextIO | None = None):
        self._bar, self._stream = bar, stream or sys.stdout

    def __call__(self, event: events.Event) -> None:
        said = sentence(event)
        if said is None:
            return
        if self._bar is not None:
            self._bar.clear()
        print(said, file=self._stream, flush=True)
