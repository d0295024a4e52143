"""A trace of some training steps for TensorBoard and Perfetto, by `jax.profiler`."""

from collections.abc import Callable
from pathlib import Path

import jax

from lior_jax.training import events
from lior_jax.training.run_folder import PROFILE


class Profiler:
    """Subscriber: traces `steps` steps of a run into `RUN/profile`, starting after the second; compilation happens in the
    first.

    Args:
        tell: called with `events.Profiled` when the trace is written.
    """

    name = "The profiler"

    def __init__(self, steps: int, tell: Callable[[events.Event], object]):
        self._left, self._tell = steps, tell
        self._folder: Path | None = None
        self._seen, self._traced = 0, 0
        self._runs = False

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.Started(directory):
                self._folder = directory / PROFILE
            case events.Step():
                self._step()

    def _step(self) -> None:
        self._seen += 1
        if self._runs:
            self._traced, self._left = self._traced + 1, self._left - 1
            if not self._left:
                self.close()
        elif self._seen == 2 and self._left:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._runs = True

    def close(self) -> None:
        """Write the trace, if there is one."""
        if self._runs:
            self._runs = False
            jax.profiler.stop_trace()
            assert self._folder is not None  # of `Started`
            self._tell(events.Profiled(self._folder, self._traced))
