"""The command `lior`: its words do what train.py and infer.py do, and everything printed follows how it was called."""

import re
import shutil
import sys
from importlib import metadata

import pytest

from lior_jax import options, training
from lior_jax.analysis import compare
from lior_jax.cli import infer, lior, train
from lior_jax.training import summaries


@pytest.fixture
def called(monkeypatch, capsys):
    """What a program prints and its exit status."""

    def call(main, *words):
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


@pytest.mark.parametrize("name", ["lior", "/usr/local/bin/lior", "Scripts/lior.exe", "lior_jax/cli/lior.py"])
def test_usage_and_errors_name_the_command(called, name):
    for word in ("train", "infer", "report", "compare", "options"):
        status, said, _ = called(lior.main, name, word, "--help")
        assert status == 0
        assert said.startswith(f"usage: lior {word} ")
    status, _, said = called(lior.main, name, "infer", "--checkpoint", "nowhere", "--prompt", "a")
    assert (status, said[:45]) == (2, "lior infer: There is no run at nowhere; give "[:45])
    assert called(lior.main, name, "train")[2].splitlines()[-1].startswith("lior train: error: give --config")


@pytest.mark.parametrize(("main", "program"), [(train.main, "train.py"), (infer.main, "infer.py")])
def test_usage_names_the_program(called, main, program):
    status, said, _ = called(main, f"/somewhere/{program}", "--help")
    assert (status, said.split()[1]) == (0, program)


def test_what_is_no_command_is_said_with_those_there_are(called):
    status, _, said = called(lior.main, "lior", "trian")
    assert status == 2
    assert said.splitlines()[-1].startswith("lior: error: argument COMMAND: invalid choice: 'trian' (")
    assert all(word in said for word in ("train", "infer", "report", "compare", "options"))
    status, _, said = called(lior.main, "lior")
    assert (status, said.splitlines()[-1]) == (2, "lior: error: the following arguments are required: COMMAND")


def test_the_version_is_the_packages(called):
    assert called(lior.main, "lior", "--version")[:2] == (0, f"lior_jax {metadata.version('lior-jax')}\n")


def test_options_of_a_section(called):
    assert called(lior.main, "lior", "options", "model.flow") == (0, options.text("model.flow") + "\n", "")
    assert called(lior.main, "lior", "options")[1] == options.text() + "\n"
    assert called(train.main, "train.py", "--options", "model.flow")[1] == options.text("model.flow") + "\n"


def test_report_and_compare(called, finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    table, picture = compare.compare([run])
    printed = (0, f"{table}\n\n{picture}: the curves over steps, tokens and seconds\n")
    assert called(lior.main, "lior", "compare", run)[:2] == printed
    status, said, error = called(lior.main, "lior", "report", tmp_path / "none")
    assert (status, said) == (2, "")
    assert error.startswith(f"lior report: There is no run at {tmp_path / 'none'}; ")


@pytest.mark.parametrize(
    ("name", "start"), [("lior", "lior infer"), ("train.py", "python infer.py"), ("notebook", "python infer.py")]
)
def test_advice_at_the_end_can_be_copied(finished_run, monkeypatch, capsys, name, start):
    monkeypatch.setattr(sys, "argv", [name])
    train.conclude(summaries.of_finished(training.resume_config(finished_run)), resumed=False)
    assert re.search(rf"^Talk to it:  {start} --checkpoint {re.escape(str(finished_run))} ", capsys.readouterr().out, re.M)
