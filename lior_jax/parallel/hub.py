"""The meeting point of a run's processes: a small program of its own beside process 0, which outlives any of them.

Every process holds one connection to it, over which lines of JSON go both ways. The hub waits until all have arrived, compares
what they were started with, starts JAX's coordination service, and then passes on values (`share`), collects them (`gather`),
spreads requests to stop, and reports to all how the run ended: by a process that says so, or because a connection broke or fell
silent. It has no part in the computation, and imports nothing of JAX but the service.

JAX would run its service within process 0, and its clients abort with a stack trace as soon as it is gone or does not answer.

Usage: python hub.py DESCRIPTOR COUNT TIMEOUT, with the descriptor of a listening socket.
"""

import json
import selectors
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

HELLO = "lior_jax"
"""First word of a process; whoever connects and says something else is ignored."""
BEAT = 1.0
"""Seconds between signs of life, in both directions."""
MISTAKE, LOST = 2, 75
"""Exit statuses: of processes that do not fit together, and of a run that lost one of them (EX_TEMPFAIL: try again)."""
_LONGEST = 2**24
"""Bytes of a line."""
_NAMED = 4
_SEND = 5.0
"""Seconds after which a connection that takes no more bytes is given up."""

Message = dict[str, Any]


class Lines:
    """Reading lines of JSON from a socket as they arrive."""

    def __init__(self):
        self._rest = b""

    def add(self, data: bytes) -> list[Message]:
        """The messages completed by more bytes. Raises `ValueError` for anything else."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST:
            raise ValueError("an endless line")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("no message")
        return messages


def line(message: Message) -> bytes:
    """A message as bytes."""
    return json.dumps(message).encode() + b"\n"


class Member:
    """A connection, and the process at its other end once it has said which one it is."""

    def __init__(self, connection: socket.socket):
        self.connection, self.lines = connection, Lines()
        self.index: int | None = None
        self.who, self.about = "", {}
        self.heard = time.monotonic()
        self.is_leaving = False

    @property
    def name(self) -> str:
        return f"Process {self.index} ({self.who})"

    def send(self, message: Message) -> None:
        with suppress(OSError):  # it is found dead when it is read from, or silent
            self.connection.sendall(line(message))


class Hub:
    """The meeting point.

    Args:
        listener: a listening socket.
        count: number of processes.
        timeout: seconds within which all must have come; a third of it is how long one may be silent.
        serve: called once all have come; returns the port of JAX's service.
    """

    def __init__(self, listener: socket.socket, count: int, timeout: float, serve: Callable[[], int]):
        self.count, self.timeout, self._serve = count, timeout, serve
        self._silence = timeout / 3
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._listener = listener
        self._strangers: set[Member] = set()
        self.members: dict[int, Member] = {}
        self._gathered: dict[str, dict[int, Any]] = {}
        self._has_begun, self._has_ended = False, False
        self._began = time.monotonic()

    def run(self) -> None:
        """Serve until the run has ended and all connections are closed."""
        beat = 0.0
        while not self._is_over():
            for key, _ in self._selector.select(BEAT / 4):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(key.data)
            now = time.monotonic()
            if now - beat > BEAT:
                beat = now
                self._tell({"beat": 1})
                self._look_around(now)

    def _is_over(self) -> bool:
        has_waited = time.monotonic() - self._began > self.timeout
        return not self.members and (self._has_begun or self._has_ended or has_waited)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it has changed its mind
            return
        connection.settimeout(_SEND)
        member = Member(connection)
        self._strangers.add(member)
        self._selector.register(connection, selectors.EVENT_READ, member)

    def _read(self, member: Member) -> None:
        try:
            data = member.connection.recv(2**16)
            messages = member.lines.add(data) if data else None
        except (OSError, ValueError, RecursionError):
            messages = None
        if messages is None:
            self._close(member)
            return
        member.heard = time.monotonic()
        for message in messages:
            if member.index is None:
                self._greet(member, message)
            else:
                self._heed(member, message)

    def _close(self, member: Member) -> None:
        self._selector.unregister(member.connection)
        member.connection.close()
        self._strangers.discard(member)
        if member.index is None:
            return
        del self.members[member.index]
        if not member.is_leaving:
            self._end(LOST, f"{member.name} has died.")

    def _greet(self, member: Member, message: Message) -> None:
        """Take in a process, unless it does not fit the others."""
        try:
            if message["hello"] != HELLO:
                raise ValueError
            index, count = int(message["index"]), int(message["count"])
            member.who, member.about = str(message["who"]), dict(message["about"])
        except (KeyError, TypeError, ValueError):
            self._close(member)
            return
        if self._has_begun or self._has_ended:
            member.send({"full": 1})
            self._close(member)
            return
        taken = self.members.get(index)
        problem = ""
        if count != self.count:
            problem = f"Process {index} ({member.who}) was started with --processes {count}, and process 0 with {self.count}."
        elif taken is not None:
            problem = f"Two processes were started as --process {index} ({taken.who}, and {member.who}); number them from 0."
        if problem:
            member.send({"end": [MISTAKE, problem]})
            self._close(member)
            self._end(MISTAKE, problem)
            return
        member.index = index
        self._strangers.discard(member)
        self.members[index] = member
        if len(self.members) == self.count:
            self._begin()

    def _begin(self) -> None:
        """All have come: compare them, and let them start."""
        first = self.members[0]
        for index, member in sorted(self.members.items()):
            if found := differences(first.about, member.about):
                self._end(MISTAKE, f"Processes 0 and {index} were started differently ({found}); start all of them alike.")
                return
        self._has_begun = True
        self._tell({"begin": self._serve()})

    def _heed(self, member: Member, message: Message) -> None:
        assert member.index is not None
        if "share" in message or "stop" in message:
            self._tell(message, but=member)
        elif "gather" in message:
            values = self._gathered.setdefault(message["gather"], {})
            values[member.index] = message["value"]
            if len(values) == self.count:
                del self._gathered[message["gather"]]
                self._tell({"share": message["gather"], "value": [values[index] for index in range(self.count)]})
        elif "end" in message:
            member.is_leaving = True
            self._end(*message["end"])

    def _look_around(self, now: float) -> None:
        """Find who has not come, or has fallen silent."""
        if not self._has_begun and not self._has_ended and now - self._began > self.timeout:
            missing = [str(index) for index in range(self.count) if index not in self.members]
            named = ", ".join(missing[:_NAMED]) + (f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else "")
            plural = "es" if len(missing) > 1 else ""
            self._end(MISTAKE, f"Process{plural} {named} of {self.count} did not come within {self.timeout:g} s.")
        for member in list(self.members.values()):
            if now - member.heard > self._silence:
                self._end(LOST, f"{member.name} has not answered for {self._silence:g} s.")
                if now - member.heard > 2 * self._silence:
                    member.is_leaving = True
                    self._close(member)
        for member in list(self._strangers):
            if now - member.heard > self._silence:
                self._close(member)

    def _end(self, status: int, sentence: str) -> None:
        """Report the end of the run to all; the first report counts."""
        if not self._has_ended:
            self._has_ended = True
            for member in self.members.values():
                if not member.is_leaving:
                    member.send({"end": [status, sentence]})
                member.is_leaving = True

    def _tell(self, message: Message, but: Member | None = None) -> None:
        for member in self.members.values():
            if member is not but:
                member.send(message)


def differences(one: Message, other: Message) -> str:
    """What differs between two descriptions, by name, in a phrase; empty if nothing does."""
    names = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
    listed = [f"{name}: {one.get(name)!r} and {other.get(name)!r}" for name in names[:_NAMED]]
    return "; ".join(listed) + (f"; and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def main() -> None:
    descriptor, count, timeout = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    services = []

    def serve() -> int:
        from jaxlib import _jax

        with socket.create_server(("", 0)) as free:
            port = free.getsockname()[1]
        # Its own detection of lost processes is slower than the hub's, so that it is never the first to act.
        services.append(_jax.get_distributed_runtime_service(f"[::]:{port}", count, heartbeat_timeout=600))
        return port

    Hub(socket.socket(fileno=descriptor), count, timeout, serve).run()


if __name__ == "__main__":
    import os
    import signal

    # They are meant for the processes, which end the hub by leaving it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    main()
    os._exit(0)
