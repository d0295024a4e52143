"""Where processes meet: who is missing, who does not fit, who is lost, and what they tell each other. No JAX is needed here."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from lior_jax.errors import UserError
from lior_jax.parallel import hub, meeting, processes
from lior_jax.parallel.hub import BEAT, HELLO, LOST, MISTAKE, Hub, Lines
from lior_jax.parallel.meeting import Place
from lior_jax.parallel.processes import Team


@pytest.fixture
def hub_of():
    """`hub_of(count, timeout)`: the port of a hub that serves in a thread. It ends when all have left."""
    threads = []

    def open_(count: int, timeout: float = 30.0) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=Hub(listener, count, timeout, lambda: 4321).run, daemon=True)
        thread.start()
        threads.append((thread, listener))
        return listener.getsockname()[1]

    yield open_
    for thread, listener in threads:
        thread.join(10)
        assert not thread.is_alive()
        listener.close()


class Caller:
    """A process as the hub sees it."""

    def __init__(self, port: int, index: int, count: int, about: dict | None = None):
        self.connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.lines, self.messages = Lines(), []
        self.say({"hello": HELLO, "index": index, "count": count, "who": f"pid {index}", "about": about or {}})

    def say(self, message: dict) -> None:
        self.connection.sendall(hub.line(message))

    def hear(self) -> dict | None:
        """The next message that is no sign of life; None when the connection is closed."""
        while True:
            while self.messages:
                message = self.messages.pop(0)
                if "beat" not in message:
                    return message
            data = self.connection.recv(2**16)
            if not data:
                return None
            self.messages = self.lines.add(data)

    def leave(self) -> None:
        self.connection.close()


def all_of(port: int, count: int) -> list[Caller]:
    callers = [Caller(port, index, count) for index in range(count)]
    assert [caller.hear() for caller in callers] == [{"begin": 4321}] * count
    return callers


def leave(callers) -> None:
    for caller in callers:
        caller.leave()


def test_values_are_passed_on_and_collected_in_the_order_of_the_processes(hub_of):
    callers = all_of(hub_of(3), 3)
    callers[0].say({"share": "a", "value": [1, None]})
    assert [caller.hear() for caller in callers[1:]] == [{"share": "a", "value": [1, None]}] * 2
    for index in (2, 0, 1):
        callers[index].say({"gather": "b", "value": index * 10})
    assert [caller.hear() for caller in callers] == [{"share": "b", "value": [0, 10, 20]}] * 3
    callers[2].say({"stop": 15})
    assert [caller.hear() for caller in callers[:2]] == [{"stop": 15}] * 2
    callers[1].say({"end": [3, "enough"]})
    callers[0].say({"end": [4, "too late"]})
    assert [callers[index].hear() for index in (0, 2)] == [{"end": [3, "enough"]}] * 2
    leave(callers)


def test_a_broken_connection_is_a_process_that_died(hub_of):
    callers = all_of(hub_of(3), 3)
    callers[1].leave()
    assert [callers[index].hear() for index in (0, 2)] == [{"end": [LOST, "Process 1 (pid 1) has died."]}] * 2
    leave(callers)


def test_a_process_that_is_gone_after_its_farewell_has_not_died(hub_of):
    callers = all_of(hub_of(2), 2)
    callers[0].say({"end": [0, ""]})
    callers[0].leave()
    assert callers[1].hear() == {"end": [0, ""]}
    leave(callers)


def test_a_silent_process_is_lost_and_one_that_beats_is_not(hub_of):
    callers = all_of(hub_of(2, timeout=3 * 2.5 * BEAT), 2)
    began = time.monotonic()
    callers[0].connection.settimeout(0.2)
    heard = None
    while heard is None:
        callers[0].say({"beat": 1})
        try:
            heard = callers[0].hear()
        except TimeoutError:
            assert time.monotonic() < began + 30
    assert heard == {"end": [LOST, "Process 1 (pid 1) has not answered for 2.5 s."]}
    leave(callers)


def test_who_has_not_come_is_named(hub_of):
    caller = Caller(hub_of(4, timeout=1), 1, 4)
    assert caller.hear() == {"end": [MISTAKE, "Processes 0, 2, 3 of 4 did not come within 1 s."]}
    caller.leave()


@pytest.mark.parametrize(
    ("index", "count", "about", "said"),
    [
        (1, 3, {}, "Process 1 (pid 1) was started with --processes 3, and process 0 with 2."),
        (0, 2, {}, "Two processes were started as --process 0 (pid 0, and pid 0); number them from 0."),
        (1, 2, {"x": 2}, "Processes 0 and 1 were started differently (x: 1 and 2); start all of them alike."),
        (1, 2, {"x": 1, "y": 0}, "Processes 0 and 1 were started differently (y: None and 0); start all of them alike."),
    ],
)
def test_processes_that_do_not_fit_are_told(hub_of, index, count, about, said):
    port = hub_of(2)
    first = Caller(port, 0, 2, {"x": 1})
    time.sleep(0.05)
    other = Caller(port, index, count, about or {"x": 1})
    assert first.hear() == other.hear() == {"end": [MISTAKE, said]}
    leave([first, other])


def test_many_differences_are_counted():
    found = hub.differences({str(at): at for at in range(9)}, {str(at): at + 1 for at in range(9)})
    assert found == "0: 0 and 1; 1: 1 and 2; 2: 2 and 3; 3: 3 and 4; and 5 more"


def test_strangers_and_latecomers_do_not_disturb(hub_of):
    port = hub_of(1)
    strangers = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(3)]
    strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
    strangers[1].sendall(hub.line({"hello": HELLO, "index": "one"}))
    strangers[2].sendall(b"[" * 100_000 + b"\n")
    assert [stranger.recv(1) for stranger in strangers] == [b""] * 3
    [caller] = all_of(port, 1)
    late = Caller(port, 0, 1)
    assert late.hear() == {"full": 1}
    assert late.hear() is None
    leave([caller, late, *(Stranger(stranger) for stranger in strangers)])


class Stranger:
    def __init__(self, connection):
        self.leave = connection.close


def test_messages_are_read_however_they_are_cut():
    lines, text = Lines(), hub.line({"a": 1}) + hub.line({"b": "ü\n"})
    assert [message for at in range(len(text)) for message in lines.add(text[at : at + 1])] == [{"a": 1}, {"b": "ü\n"}]
    for wrong in (b"3\n", b"{\n", b"\xff\n"):
        with pytest.raises(ValueError):  # noqa: PT011 - of any text
            Lines().add(wrong)


class Request:
    number = None


def team_of(port: int, count: int) -> list[Team]:
    """Processes, all in this one."""

    def come(index: int) -> Team:
        hello = {"hello": HELLO, "index": index, "count": count, "who": "here", "about": {}}
        connection, lines, _ = meeting._meet("127.0.0.1", port, hello, 10)
        team = Team(index, count, connection, print)
        team.listen(lines, [])
        return team

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(come, range(count)))


def at_once(calls) -> list:
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda call: call(), calls))


def say_goodbye(team: list[Team]) -> None:
    for process in team:  # before any of them hears of the end, with which a process leaves
        process._is_leaving.set()
    for process in team:
        process.end(0)
        process._connection.shutdown(socket.SHUT_RDWR)


def test_what_the_first_one_makes_is_shared(hub_of):
    team = team_of(hub_of(3), 3)

    def makes(index: int, value):
        def make():
            assert index == 0, "only the first one makes it"
            return value

        return make

    for value in (1, [None, 0.1], {"a": "ü"}):
        assert at_once([partial(p.share, makes(p.index, value)) for p in team]) == [value] * 3
    # Channels are independent: what is shared in one does not wait for the other.
    shared = team[0].share(lambda: "early", "save"), team[0].share(lambda: "late")
    assert shared == ("early", "late")
    assert [p.share(lambda: 1 / 0) for p in team[1:]] == ["late"] * 2
    assert [p.share(lambda: 1 / 0, "save") for p in team[1:]] == ["early"] * 2
    assert at_once([partial(p.gather, p.index**2) for p in team]) == [[0, 1, 4]] * 3
    say_goodbye(team)


def test_what_the_first_one_cannot_make_fails_everywhere(hub_of):
    team = team_of(hub_of(2), 2)

    def fail():
        raise UserError("there is no room")

    with pytest.raises(UserError, match="no room"):
        team[0].share(fail)
    with pytest.raises(OSError, match="there is no room"):
        team[1].share(fail)
    say_goodbye(team)


def test_a_team_passes_on_requests_to_stop(hub_of):
    team, requests = team_of(hub_of(3), 3), [Request() for _ in range(3)]
    for process, request in zip(team, requests, strict=True):
        process.watch(request)
    requests[1].number = 15
    end = time.monotonic() + 20
    while [request.number for request in requests] != [15] * 3 and time.monotonic() < end:
        time.sleep(0.02)
    assert [request.number for request in requests] == [15] * 3
    say_goodbye(team)


def test_one_process_shares_with_itself():
    assert processes.ALONE.share(lambda: 3) == 3
    assert processes.ALONE.gather("x") == ["x"]
    assert processes.ALONE.is_first


def free_port() -> int:
    with socket.create_server(("", 0)) as free:
        return free.getsockname()[1]


def joined(coordinator: str, index: int = 1, timeout: float = 0.5) -> None:
    meeting.join(Place(coordinator, 2, index), {}, print, timeout)


def test_a_port_that_nobody_answers():
    port = free_port()
    with pytest.raises(
        UserError, match=rf"^Nobody answers at 127.0.0.1:{port} within 0.5 s \(Connection refused\); start proc"
    ):
        joined(f"127.0.0.1:{port}")


def test_a_port_that_is_taken(monkeypatch):
    monkeypatch.setattr(meeting, "_FREED", 0.0)
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^Process 0 cannot listen at port {port} \(Address already in use.*\); give ano"):
            joined(f"127.0.0.1:{port}", 0)


def test_another_program_at_the_port():
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            with pytest.raises(OSError):  # noqa: PT011, PT012 - until the server is closed
                while True:
                    connection, _ = other.accept()
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(UserError, match=r"within 0\.5 s \(what answers there is another program\)"):
            joined(f"127.0.0.1:{other.getsockname()[1]}")
        other.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.mark.parametrize("address", ["", "host", "host:", ":80", "host:http", "host:0", "host:65536", "host:-1", "host:²"])
def test_an_address_without_a_port(address):
    with pytest.raises(UserError, match="is not HOST:PORT, such as"):
        joined(address)


SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[07-09],other",
    "SLURM_NTASKS": "6",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
MPI = {
    "OMPI_MCA_orte_hnp_uri": "8192.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "3",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, None),
        (SLURM, Place("node07:61441", 6, 5, [1])),
        (SLURM | {"JAX_LOCAL_DEVICE_IDS": "0"}, Place("node07:61441", 6, 5, None)),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "6"}, None),
        (MPI, Place("10.96.0.1:61442", 3, 2, [0])),
        (MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_what_schedulers_say(monkeypatch, variables, place):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert meeting.detected() == place


def test_a_scheduler_that_does_not_say_where(monkeypatch):
    for name, value in MPI.items():
        if name != "OMPI_MCA_orte_hnp_uri":
            monkeypatch.setenv(name, value)
    with pytest.raises(
        UserError, match=r"There are several processes, and JAX cannot find out where they meet \(its variables"
    ):
        meeting.detected()


def test_what_processes_are_compared_by():
    code = meeting.code()
    assert code["lior_jax/parallel/hub.py"] != code["lior_jax/parallel/processes.py"]
    assert {"jax", "numpy", "python"} <= code.keys()
    assert json.loads(json.dumps(code)) == code
