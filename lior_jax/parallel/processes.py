"""The processes of a run: one, or several that train one model together (`jax.distributed`).

Several processes meet at a hub (`parallel.hub`), a small program that process 0 starts on the port of `--coordinator`. Through
it they exchange plain values, learn that one of them was asked to stop, and end with one status. Arrays go through JAX.
"""

import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from lior_jax.parallel import hub
from lior_jax.parallel.hub import BEAT, LOST, Message
from lior_jax.storage.writers import Writers

_GRACE = 10.0
"""Seconds that process 0 has for ending by itself when another one has reported the end."""

Say = Callable[[int, str], object]


class Stoppable(Protocol):
    """Something that remembers the signal that asked the run to stop (`training.signals.Stop`)."""

    number: int | None


class Processes(Writers):
    """The processes of a run, of which this is the only one. `Team` is several."""

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order; with several, plain ones (JSON). Waits for all."""
        return [value]

    def watch(self, stop: Stoppable) -> None:
        """From now on pass on requests to stop, in both directions."""

    def end(self, status: int, sentence: str = "") -> None:
        """Report the end of the run with an exit status: the others leave with the same, saying the sentence. The first report
        of any process counts."""


ALONE = Processes()


class Team(Processes):
    """Several processes, after `meeting.join`. A thread answers the hub, and ends the process when the run has ended elsewhere.

    Args:
        index: of this process.
        count: of all processes.
        connection: to the hub.
        say: called, in the thread, with the exit status and a sentence about why the run has ended.
    """

    def __init__(self, index: int, count: int, connection: socket.socket, say: Say):
        self.index, self.count = index, count
        self._connection, self._say = connection, say
        self._stop: Stoppable | None = None
        self._counts: Counter[str] = Counter()
        self._values: dict[str, Message] = {}
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._is_leaving = threading.Event()
        self._is_asked = False
        """Whether all know that the run was asked to stop."""

    def listen(self, lines: hub.Lines, messages: list[Message]) -> None:
        """Start the thread, with what has been read already."""
        threading.Thread(target=self._listen, args=(lines, messages), daemon=True).start()

    def share(self, make: Callable[[], Any], channel: str = "") -> Any:
        key = self._key(f"share {channel}")
        if not self.is_first:
            return self._wait(key)
        try:
            value = make()
        except BaseException as problem:
            self._send({"share": key, "problem": f"{problem}" or type(problem).__name__})
            raise
        self._send({"share": key, "value": value})
        return value

    def gather(self, value: Any) -> list[Any]:
        key = self._key("gather")
        self._send({"gather": key, "value": value})
        return self._wait(key)

    def watch(self, stop: Stoppable) -> None:
        self._stop = stop

    def end(self, status: int, sentence: str = "") -> None:
        self._is_leaving.set()
        self._send({"end": [status, sentence]})

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the end of the run, which another process reports, and which ends this one; unless it has reported it."""
        self._is_leaving.wait(seconds)

    def _key(self, kind: str) -> str:
        with self._changed:
            self._counts[kind] += 1
            return f"{kind} {self._counts[kind]}"

    def _wait(self, key: str) -> Any:
        """The value of a key. There is no time limit: the thread ends the process if another one is lost."""
        with self._changed:
            self._changed.wait_for(lambda: key in self._values)
            message = self._values.pop(key)
        if "problem" in message:
            raise OSError(message["problem"])
        return message["value"]

    def _send(self, message: Message) -> None:
        with self._sending, suppress(OSError):  # the thread finds out
            self._connection.sendall(hub.line(message))

    def _listen(self, lines: hub.Lines, messages: list[Message]) -> None:
        beat = 0.0
        while True:
            for message in messages:
                self._heed(message)
            messages = []
            if not self._is_asked and self._stop is not None and self._stop.number is not None:
                self._is_asked = True
                self._send({"stop": self._stop.number})
            if time.monotonic() - beat > BEAT:
                beat = time.monotonic()
                self._send({"beat": 1})
            if select.select([self._connection], [], [], BEAT / 4)[0]:
                try:
                    data = self._connection.recv(2**16)
                    messages = lines.add(data)
                except (OSError, ValueError):
                    data = b""
                if not data:
                    self._leave(LOST, "The program at the coordinator's port, beside process 0, has ended.")

    def _heed(self, message: Message) -> None:
        if "share" in message:
            with self._changed:
                self._values[message["share"]] = message
                self._changed.notify_all()
        elif "stop" in message:
            self._is_asked = True
            if self._stop is not None and self._stop.number is None:
                self._stop.number = message["stop"]
        elif "end" in message:
            self._leave(*message["end"])

    def _leave(self, status: int, sentence: str) -> None:
        """End the process, unless it is ending already: its main thread may wait for ever in a computation of all."""
        # What ends another process may well end this one too, which then finishes a save.
        if self._is_leaving.wait(_GRACE if self.is_first and status != LOST else 0):
            threading.Event().wait()
        try:
            if sentence:
                self._say(status, sentence)
        finally:
            os._exit(status)
