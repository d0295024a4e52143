"""Options of several processes: what goes together, and mistakes that are found before anything is trained, in a sentence."""

import os
import subprocess
import sys

import pytest

from lior_jax.cli import train
from tests.parallel import together
from tests.parallel.together import begin, start, statuses

HERE = ["--coordinator", "127.0.0.1:1234"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (HERE, "--coordinator, --processes and --process go together; add --processes and --process"),
        ([*HERE, "--processes", "2"], "--coordinator, --processes and --process go together; add --process"),
        (["--process", "0"], "go together; add --coordinator and --processes"),
        (["--processes", "2"], "go together; add --coordinator and --process"),
        ([*HERE, "--processes", "2", "--process", "2"], "--process is 2, but 2 processes are numbered from 0 to 1"),
        ([*HERE, "--processes", "2", "--process", "-1"], "--process is -1, but 2 processes are numbered from 0 to 1"),
        ([*HERE, "--processes", "0", "--process", "0"], "--processes is 0, but must be from 1 to 65,536"),
        (["--timeout", "1"], "--timeout is 1, but must be from 3 to 86,400 seconds"),
        (["--timeout", "nan"], "--timeout is nan, but must be from 3 to 86,400 seconds"),
        ([*HERE, "--processes", "2", "--process", "0", "--dry-run"], "--process and --timeout are for training only"),
        (["--processes", "1", "--prepare"], "--process and --timeout are for training only"),
    ],
)
def test_what_goes_together(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        train.parse(["--config", "quickstart", *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_one_process_may_say_that_it_is_alone():
    assert train.parse(["--config", "quickstart", "--processes", "1"]).coordinator is None


def test_processes_that_were_started_differently_do_not_train(tmp_path):
    """The setting is named, by both."""
    together.files(tmp_path)
    port = together.free_port()
    processes = []
    for index in range(2):
        options = ["--set", f"training.batch_size={4 + index}", "--set", f"learning.dropout=0.{index}"]
        processes += begin(tmp_path, f"run{index}", 2, *options, only=index, port=port, folder_name="run")
    assert statuses(processes, 60) == [2, 2], [process.said for process in processes]
    said = "learning.dropout: '0.0' and '0.1'; training.batch_size: '4' and '5'"
    for process in processes:
        assert process.said == f"train.py: Processes 0 and 1 were started differently ({said}); start all of them alike.\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_that_read_different_texts_do_not_train(tmp_path):
    together.files(tmp_path)
    (tmp_path / "other.txt").write_text((tmp_path / "corpus.txt").read_text()[:-1] + "!")
    port = together.free_port()
    processes = begin(tmp_path, "run0", 2, only=0, port=port, folder_name="run")
    other = ["--set", f"data.path={tmp_path}/other.txt"]
    processes += begin(tmp_path, "run1", 2, *other, only=1, port=port, folder_name="run")
    assert statuses(processes, 60) == [2, 2], [process.said for process in processes]
    for process in processes:
        assert "Processes 0 and 1 have read another text; give all of them the same." in process.said
        assert "Traceback" not in process.said


@pytest.mark.slow
def test_mistakes_that_the_first_process_finds_end_all(tmp_path):
    """A folder in use is known to the first one only; it says so, and no one waits for it."""
    together.files(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    processes = begin(tmp_path, "run", 2)
    assert statuses(processes, 60) == [2, 2], [process.said for process in processes]
    for process in processes:
        assert "contains mine.txt, not written by a run" in process.said
        assert "Traceback" not in process.said
    processes = start(tmp_path, "run", 2, "--resume", tmp_path / "nowhere")
    assert statuses(processes, 60) == [2, 2], [process.said for process in processes]
    processes = begin(tmp_path, "odd", 2, "--set", "training.batch_size=3")
    assert statuses(processes, 60) == [2, 2], [process.said for process in processes]
    assert "3 sequences at a time" in processes[0].said


@pytest.mark.slow
def test_a_scheduler_with_one_process_changes_nothing(tmp_path):
    """No port is opened, and nobody is waited for."""
    together.files(tmp_path)
    variables = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "nowhere", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    words = ["--config", "tiny.yaml", "--set", "data.path=corpus.txt", "--set", "run.directory=run", "--stop-after", "1"]
    root = os.getcwd()
    done = subprocess.run(
        [sys.executable, os.path.join(root, "train.py"), *words],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=tmp_path,
        env=os.environ | variables | {"SLURM_LOCALID": "0", "PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr
