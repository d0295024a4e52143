"""One process writes a run's folder, and the lock of a dead one has no effect."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from lior_jax.errors import UserError
from lior_jax.storage import lock

ROOT = Path(__file__).parents[2]

HOLDS = """
import sys, time
from pathlib import Path
from lior_jax.storage import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock."""
    command = [sys.executable, "-c", HOLDS, tmp_path]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_another_process_is_named_and_its_death_frees_the_lock(tmp_path, holder):
    with pytest.raises(UserError) as raised, lock.held(tmp_path):
        pass
    assert str(raised.value) == (
        f"{tmp_path} is being written by process {holder.pid} on {socket.gethostname()}; wait for it, or choose another "
        "run.directory."
    )
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock.held(tmp_path):
        assert (tmp_path / lock.HOLDER).read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
    with lock.held(tmp_path):
        pass


def test_a_holder_that_has_not_said_its_name_yet_is_another_process(tmp_path):
    with lock.held(tmp_path):
        (tmp_path / lock.HOLDER).unlink()
        with pytest.raises(UserError, match="is being written by another process; wait"), lock.held(tmp_path):
            pass


def test_a_disk_without_locks_is_told_and_no_other_kind_of_lock_is_taken(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(UserError, match=r"cannot be locked \(Function not implemented\); put run.directory on a local disk"):
        lock.held(tmp_path).__enter__()
    assert issubclass(filelock.Timeout, OSError)  # which is why it is caught first


def test_who_waits_is_told_for_whom_and_gets_its_turn(tmp_path, holder):
    told = []

    def waiting(name):
        told.append(name)
        holder.kill()

    with lock.turn(tmp_path, waiting):
        assert (tmp_path / lock.HOLDER).read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
    assert set(told) == {f"process {holder.pid} on {socket.gethostname()}"}


def test_who_waits_may_give_up(tmp_path, holder):
    with pytest.raises(KeyboardInterrupt), lock.turn(tmp_path, lambda name: (_ for _ in ()).throw(KeyboardInterrupt)):
        pass
    assert holder.poll() is None
