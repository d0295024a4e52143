"""The processes that write a run together."""

from collections.abc import Callable
from typing import Any


class Writers:
    """A process that writes alone, and the interface of several (`parallel.processes`)."""

    index = 0
    count = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes whatever is not part of an array."""
        return self.index == 0

    def share(self, make: Callable[[], Any], channel: str = "") -> Any:
        """The result of `make`, which only the first process calls; with several, a plain value (JSON).

        All processes must share in the same order; threads that do so beside each other use different channels. What `make`
        raises is raised in the first process, and as `OSError` in the others.
        """
        return make()


ALONE = Writers()
