"""A terminal that is gone, full, or too narrow an alphabet: training goes on, and it is said once where it can be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lior_jax.cli import output
from lior_jax.cli.progress import Bar, Sentences
from lior_jax.cli.sentences import sentence
from lior_jax.training import events
from tests.runs import TINY
from tests.training.test_loop import saved_leaves

ROOT = Path(__file__).parents[2]
FULL = Path("/dev/full")


@pytest.fixture
def command(tmp_path):
    """A training program, and its run."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "corpus.txt").write_text("to be or not to be, that is 1 question. " * 60)
    settings = [f"data.path={tmp_path}/corpus.txt", f"run.directory={tmp_path}/run", "data.tokenizer=byte"]
    settings += ["training.steps=4", "training.save_every=2", "training.eval_every=2", "model.field.evolution=off"]
    words = [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, str(ROOT / "train.py"), "--config", str(tmp_path / "tiny.yaml"), *words]


def assert_done(status, said, run):
    assert status == 0, said
    assert saved_leaves(run)[0] == 4
    assert (run / "loss.png").exists()
    assert "Traceback" not in said
    assert "Exception ignored" not in said


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
def test_an_unwritten_rest_does_not_spoil_the_exit_status():
    """What is left in a buffer is written when the interpreter ends, and status 120 is what it ends with if it cannot be."""
    code = "from lior_jax.cli import output\nwith output.prepared():\n    print('rest')"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with FULL.open("w") as full:
        given = {"stdout": full, "stderr": subprocess.PIPE, "cwd": ROOT, "env": buffered}
        done = subprocess.run([sys.executable, "-c", code], **given, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.slow
def test_a_full_standard_output_does_not_end_the_run(command, tmp_path):
    with FULL.open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    assert_done(done.returncode, done.stderr, tmp_path / "run")
    assert done.stderr.count("Standard output failed ([Errno 28] No space left on device); training continues.") == 1


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
def test_a_full_standard_error_does_not_end_the_run(command, tmp_path):
    with FULL.open("w") as full:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, timeout=300, check=False)
    assert_done(done.returncode, done.stdout, tmp_path / "run")
    assert done.stdout.count("The progress bar failed") == 1
    assert "step      4   training" in done.stdout


@pytest.mark.slow
def test_a_reader_that_leaves_does_not_end_the_run(command, tmp_path):
    """As `python train.py … | head -1` has it."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        first = process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
        status = process.wait(300)
    assert "parameters, learning by Hamiltonian echo" in first
    assert_done(status, said, tmp_path / "run")
    assert said.count("Standard output failed ([Errno 32] Broken pipe); training continues.") == 1


def test_closed_streams_do_not_end_the_run(command, tmp_path):
    """The program begins with neither standard output nor standard error."""
    closing = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]
    done = subprocess.run(closing, timeout=300, check=False)
    assert_done(done.returncode, "", tmp_path / "run")


@pytest.mark.slow
def test_what_a_terminal_cannot_encode_is_escaped(command, tmp_path):
    """A byte model that has learned nothing yet writes U+FFFD."""
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, timeout=300, check=False, env=environment)
    assert_done(done.returncode, done.stderr.decode("ascii"), tmp_path / "run")
    assert b"\\ufffd" in done.stdout
    assert done.stdout.isascii()


class Broken:
    """A stream that takes nothing."""

    encoding = "utf-8"

    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        raise OSError(28, "No space left on device")

    def isatty(self):
        return True


def test_a_broken_bar_costs_no_sentence(capsys, tiny):
    bar = Bar(Broken())
    report = events.several(bar, Sentences(bar))
    report(events.Started(Path("runs/x"), tiny("x"), 5))
    for event in (events.Compiling(), events.Step(1, 2.5), events.SaveFailed("It failed."), events.Finished(None)):
        report(event)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "Compiling ...",
        "The progress bar failed ([Errno 28] No space left on device); training continues.",
        "It failed. Training continues.",
    ]


def test_the_bar_shows_loss_speed_and_validation(capsys, tiny):
    bar = Bar(sys.stderr)
    bar(events.Started(Path("runs/x"), tiny("x"), 5))
    bar(events.Compiling())
    bar(events.Step(7, 2.5, 1234.5))
    bar(events.Validated(7, 2.5, 2.25, 2.25, 3.2))
    bar.close()
    last = capsys.readouterr().err.rstrip().rsplit("\r", 1)[-1]
    assert all(shown in last for shown in ("7/12", "loss=2.500", "tok/s=1,234", "val=2.250"))


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (events.Compiling(), "Compiling ..."),
        (events.Resumed(3, ("One is damaged.",)), "One is damaged.\nResuming from step 3."),
        (events.Step(1, 2.0), None),
        (events.Saved(1), None),
        (events.Validated(4, None, float("nan"), float("nan"), float("nan")), "the validation loss is nan"),
        (events.Sampled(4, "a\nb"), "    a\n    b"),
        (events.RefusedStep(4, ("the loss is nan",), Path("x/4")), "not applied: the loss is nan; batch and state are in x/4."),
        (events.RefusedStep(4, ("a", "b"), Path("x"), "full"), "a, b; batch and state could not be written (full)."),
    ],
)
def test_events_in_words(event, said):
    assert sentence(event) is None if said is None else said in sentence(event)


def test_the_sentence_that_begins_a_run_names_its_rule(tiny):
    for rule, title in (("echo", "Hamiltonian echo"), ("equilibrium", "equilibrium propagation")):
        event = events.Started(Path("runs/x"), tiny("x", f"learning.rule={rule}"), 1234)
        assert sentence(event) == f"x: 1,234 parameters, learning by {title}, 12 steps of 4 x 16 tokens."


def test_complaints_without_a_standard_error_go_nowhere(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    output.complain("Nobody hears it.")
    assert capsys.readouterr().out == ""
