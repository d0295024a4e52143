"""How the processes of a run meet: where, by options or by what a scheduler says, and what is compared before they start."""

import hashlib
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, NoReturn

import jax

from lior_jax.errors import UserError
from lior_jax.parallel import hub
from lior_jax.parallel.hub import BEAT, Message
from lior_jax.parallel.processes import Say, Team

TIMEOUT = 60.0
"""Seconds within which all processes must have come; one may be silent for a third of it."""
_RETRY = 0.2
"""Seconds between attempts to reach the hub."""
_FREED = 10.0
"""Seconds that process 0 waits for its port, which the hub of an earlier run may still be leaving."""
_PACKAGE = Path(__file__).parents[1]


class Place(NamedTuple):
    """Where processes meet, and which of them this one is."""

    coordinator: str
    """`HOST:PORT` of process 0."""
    count: int
    index: int
    local_devices: list[int] | None = None
    """Devices of the machine that this process uses; None for all."""


def join(place: Place, about: Message, say: Say, timeout: float = TIMEOUT) -> Team:
    """Meet the other processes and start `jax.distributed`. To be called before JAX's backend starts.

    Args:
        about: what must be equal on all processes, besides code and versions.
        say: called with exit status and sentence when the run ends because of another process; this one then exits at once.
        timeout: seconds within which all must have come.

    Raises:
        UserError: the port is taken or nobody answers there, a process did not come, or they were started differently.
    """
    host, port = _host_and_port(place.coordinator)
    if place.index == 0:
        _start_hub(host, port, place.count, timeout)
    hello = {"hello": hub.HELLO, "index": place.index, "count": place.count, "who": _who(), "about": about | code()}
    connection, lines, messages = _meet(host, port, hello, timeout)
    begin, rest = messages[0]["begin"], messages[1:]
    if "JAX_CPU_COLLECTIVES_IMPLEMENTATION" not in os.environ:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM
    team = Team(place.index, place.count, connection, say)
    team.listen(lines, rest)
    jax.distributed.initialize(
        f"[{host}]:{begin}" if ":" in host else f"{host}:{begin}",
        place.count,
        place.index,
        local_device_ids=place.local_devices,
        cluster_detection_method="deactivate",
        coordinator_bind_address="127.0.0.1:0" if place.index == 0 else None,  # unused: the service runs in the hub
        initialization_timeout=int(timeout) + 1,
    )
    return team


def detected(environment: os._Environ | dict[str, str] = os.environ) -> Place | None:
    """The place of this process among several started by SLURM, Open MPI or Kubernetes, as JAX finds it; None if there is only
    one, or its environment does not say that there are more.

    Raises:
        UserError: there are several, and they cannot find out where to meet.
    """
    slurm = _number(environment, "SLURM_STEP_NUM_TASKS", _number(environment, "SLURM_NTASKS")), "SLURM_PROCID"
    mpi = _number(environment, "OMPI_COMM_WORLD_SIZE"), "OMPI_COMM_WORLD_RANK"
    has_several = any(count > 1 and name in environment for count, name in (slurm, mpi))
    if not has_several and not {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys():
        return None
    from jax._src.clusters import ClusterEnv  # jax.distributed would not tell where process 0 is

    try:
        coordinator, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, int(TIMEOUT)
        )
    except Exception as problem:  # among others those of the Kubernetes client
        _refuse_detection(f"{type(problem).__name__}: {problem}")
    if coordinator is None or count is None or index is None:
        if has_several:
            _refuse_detection("its variables are incomplete")
        return None
    if count == 1:
        return None
    # Otherwise JAX reads them from this variable.
    is_told = devices is None or "JAX_LOCAL_DEVICE_IDS" in environment
    return Place(coordinator, count, index, None if is_told else list(devices))


def code() -> Message:
    """Sums of the package's source files, and versions, which must be equal on all processes."""
    sums = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        sums[f"{_PACKAGE.name}/{path.relative_to(_PACKAGE).as_posix()}"] = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy", "optax", "orbax-checkpoint")}
    return sums | versions | {"python": platform.python_version()}


def _refuse_detection(reason: str) -> NoReturn:
    said = (reason.splitlines() or [""])[0].rstrip(". ")
    raise UserError(
        f"There are several processes, and JAX cannot find out where they meet ({said}); say it by --coordinator, --processes "
        "and --process, or start one alone by --processes 1."
    )


def _number(environment: os._Environ | dict[str, str], name: str, default: int = 1) -> int:
    text = environment.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else default


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise UserError(f"The coordinator {address!r} is not HOST:PORT, such as node1:1234 or 127.0.0.1:1234.")
    return host.strip("[]"), int(port)


def _who() -> str:
    return f"{os.getpid()} on {socket.gethostname()}"


def _start_hub(host: str, port: int, count: int, timeout: float) -> None:
    if not hasattr(os, "fork"):
        raise UserError("Several processes are not supported on this system; start one.")
    end = time.monotonic() + _FREED
    while True:
        try:
            both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            listener = socket.create_server(("", port), family=family, backlog=min(count + 8, 4096), dualstack_ipv6=both)
            break
        except OSError as problem:
            if time.monotonic() > end:
                reason = problem.strerror or str(problem)
                raise UserError(f"Process 0 cannot listen at port {port} ({reason}); give another port.") from None
            time.sleep(_RETRY)
    with listener:
        # A session of its own: signals of the terminal are for the processes.
        subprocess.Popen(
            [sys.executable, "-P", hub.__file__, str(listener.fileno()), str(count), str(timeout)],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def _meet(host: str, port: int, hello: Message, timeout: float) -> tuple[socket.socket, hub.Lines, list[Message]]:
    """A connection to the hub at which all processes have met, and what it has said, from `begin` on."""
    end = time.monotonic() + timeout
    while True:
        reason = "it is in use by another run"
        try:
            with ExitStack() as stack:
                connection = socket.create_connection((host, port), timeout=max(_RETRY, end - time.monotonic()))
                stack.callback(connection.close)
                found = _greeted(connection, hello, timeout)
                if found is not None:
                    stack.pop_all()
                    return connection, *found
        except OSError as problem:
            reason = problem.strerror or str(problem)
        if time.monotonic() > end:
            raise UserError(
                f"Nobody answers at {host}:{port} within {timeout:g} s ({reason}); start process 0 there, with the same port, "
                "and see that no firewall is between."
            )
        time.sleep(_RETRY)


def _greeted(connection: socket.socket, hello: Message, timeout: float) -> tuple[hub.Lines, list[Message]] | None:
    """What the hub says once all have come; None if it belongs to another run. Raises `OSError` if it says nothing."""
    connection.settimeout(timeout / 3 + BEAT)
    connection.sendall(hub.line(hello))
    lines = hub.Lines()
    heard = time.monotonic()
    while True:
        try:
            data = connection.recv(2**16)
            messages = lines.add(data)
        except ValueError:
            raise OSError("what answers there is another program") from None
        if not data:
            raise OSError("it closes the connection")
        for at, message in enumerate(messages):
            if "end" in message:
                raise UserError(message["end"][1])
            if "full" in message:
                return None
            if "begin" in message:
                return lines, messages[at:]
        if time.monotonic() - heard > BEAT:
            heard = time.monotonic()
            connection.sendall(hub.line({"beat": 1}))
