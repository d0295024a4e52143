"""train.py and infer.py as a user starts them: one sentence for every mistake, no traceback, and a whole round."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from lior_jax.inference import Engine
from tests.runs import TINY

# A folder where no run is: each of these mistakes is found before one would be made there.
NEW_RUN = ["--set", "run.directory=runs/never"]


def call(program: str, *arguments: object, typed: str | bytes = "", **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, f"{program}.py", *map(str, arguments)]
    typed = typed if isinstance(typed, bytes) else typed.encode()
    environ = os.environ | environment
    done = subprocess.run(command, input=typed, capture_output=True, timeout=300, check=False, env=environ)
    done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
    return done


@pytest.mark.slow
def test_training_then_inference(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "corpus.txt").write_text("to be or not to be, that is 1 question. " * 60)
    options = "--set", f"data.path={tmp_path}/corpus.txt", "--set", f"run.directory={tmp_path}/run"
    trained = call("train", "--config", tmp_path / "tiny.yaml", *options)
    assert trained.returncode == 0, trained.stderr
    assert "nats/char" in trained.stdout
    assert "Traceback" not in trained.stderr
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")

    again = call("train", "--config", tmp_path / "tiny.yaml", *options)
    assert again.returncode == 2
    assert "already holds a run" in again.stderr

    decode = "--prompt", "to be", "--max-tokens", 20, "--samples", 2, "--seed", 5
    one = call("infer", "--checkpoint", tmp_path / "run", *decode)
    two = call("infer", "--config", tmp_path / "tiny.yaml", "--set", f"run.directory={tmp_path}/run", *decode)
    assert one.returncode == two.returncode == 0, one.stderr
    assert one.stdout == two.stdout
    assert one.stdout.count("to be") >= 2
    assert one.stderr == ""

    reported = call("train", "--report", tmp_path / "run")
    assert reported.stdout.strip() == str(tmp_path / "run" / "report.html")
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.fixture
def model(finished_run, tmp_path):
    """A run's folder that may be changed."""
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.mark.slow
def test_every_way_of_using_a_model(model, tmp_path):
    how = "--max-tokens", 12, "--seed", 3
    typed = call("infer", "--checkpoint", model, *how, typed="1 is\n")
    given = call("infer", "--checkpoint", model, *how, "--prompt", "1 is", "--speed", "--explain", tmp_path / "map.png")
    assert given.stdout.startswith(typed.stdout.rstrip("\n"))
    assert "tokens/s after the first" in given.stderr
    assert "retrieved from" in given.stdout
    unasked = call("infer", "--checkpoint", model, "--prompt", "1 is", "--explain", tmp_path / "map.png")
    table = unasked.stdout.partition("    token")[2].splitlines()
    assert len(table) == 1 + 40 + 2  # heading and closing lines beside 40 tokens
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")

    exported = call("infer", "--checkpoint", model, "--export", tmp_path / "weights")
    assert exported.returncode == 0, exported.stderr
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "1 is"}\n{"prompt": "5"}\n')
    completed = call("infer", "--checkpoint", tmp_path / "weights", "--prompts", lines, *how)
    items = [json.loads(line) for line in completed.stdout.splitlines()]
    assert [item["prompt"] for item in items] == ["1 is", "5"]
    assert "1 is" + items[0]["completion"] == typed.stdout.rstrip("\n")

    text = tmp_path / "text.txt"
    text.write_text("5 is 0 and 2, 9 is 1 and 1, " * 30)
    disjoint = call("infer", "--checkpoint", model, "--score", text, "--stride", 16)
    expected = Engine.from_checkpoint(model).score(text.read_text(), 16)
    assert disjoint.stdout.startswith(f"{expected.nats_per_character:.4f} nats/char")
    assert "at least 1 of the tokens before it" in disjoint.stdout
    remembered = call("infer", "--checkpoint", model, "--remember", text, "--score", text)
    assert remembered.returncode == 0, remembered.stderr
    assert "840 characters" in remembered.stderr
    assert (model / "memory.safetensors").exists()
    scored = call("infer", "--checkpoint", model, "--memory", "--score", text)
    assert scored.stdout == remembered.stdout
    assert "nats/char" in scored.stdout
    assert "perplexity" in scored.stdout
    assert "Without the memory" in scored.stdout


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("train", ["--config", "configs/none.yaml"], "There is no configuration configs/none.yaml"),
        ("train", ["--config", "configs/quickstart.yaml", "--set", "model.widht=3"], "did you mean width?"),
        (
            "train",
            ["--config", "configs/quickstart.yaml", "--set", "data.path=nowhere.txt", *NEW_RUN],
            "there is no file at 'nowhere.txt'",
        ),
        ("train", ["--config", "configs/quickstart.yaml", "--set", "run.directory=/proc/x"], "cannot be written to"),
        ("train", ["--resume", "runs/never"], "There is no run at runs/never"),
        ("train", [], "give --config FILE, --resume RUN, --init-from RUN, --report RUN"),
        ("infer", ["--checkpoint", "runs/never", "--prompt", "a"], "There is no run at runs/never"),
        ("train", ["--report", "runs/never"], "There is no run at runs/never"),
        ("train", ["--report", "runs/never", "--set", "run.seed=1"], "--report goes with no other option"),
        ("infer", ["--config", "configs/none.yaml", "--prompt", "a"], "There is no configuration"),
        ("infer", ["--checkpoint", "x", "--prompt", "a", "--samples", "0"], "--samples is 0"),
        ("infer", ["--checkpoint", "x", "--prompt", "a", "--chat"], "not allowed with argument"),
        ("infer", ["--checkpoint", "x", "--chat", "--explain"], "in a chat, say /explain"),
        ("infer", ["--checkpoint", "x", "--prompt", "a", "--capacity", "5"], "--capacity goes with --remember"),
    ],
)
def test_mistakes_get_one_sentence_and_status_2(program, arguments, message):
    done = call(program, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("program", "arguments", "status"),
    [
        ("train", ["--help"], 0),
        ("infer", ["--help"], 0),
        ("train", ["--config", "configs/quickstart.yaml", "--set", "model.widht=3"], 2),
        ("train", ["--config", "configs/quickstart.yaml", "--set", "model.chart_dim=3"], 2),
        ("infer", ["--config", "configs/quickstart.yaml", "--set", "model.widht=3", "--prompt", "a"], 2),
        ("lior", ["--help"], 0),
        ("lior", ["--version"], 0),
        ("lior", ["train", "--help"], 0),
        ("lior", ["infer", "--help"], 0),
        ("lior", ["compare", "--help"], 0),
        ("lior", ["options", "model.flow"], 0),
        ("lior", ["train", "--config", "quickstart", "--set", "model.widht=3"], 2),
        ("lior", ["options", "model.flwo"], 2),
    ],
)
def test_help_and_mistakes_do_not_wait_for_jax(program, arguments, status):
    code = f"""
import sys
from lior_jax.cli.{program} import main
sys.argv = ["{program}.py", *{arguments!r}]
status = 0
try:
    main()
except SystemExit as end:
    status = end.code
assert status == {status}, status
slow = {{"jax", "flax", "optax", "orbax", "matplotlib", "tensorboardX"}} & set(sys.modules)
assert not slow, slow
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "The prompt is empty"),
        (["--prompt", "@"], "'@' is not among"),
        (["--prompt", "1", "--memory"], "There is no file"),
        (["--score", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["--remember", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--prompt", "-x"], "is not among"),
        (["--prompt", "1", "--explain", "README.md"], "README.md exists already, and is not a picture"),
        (["--prompt", "1", "--stop", ""], "stop must be a list of strings that are not empty"),
    ],
)
def test_mistakes_in_using_a_model_get_one_sentence(finished_run, arguments, message):
    done = call("infer", "--checkpoint", finished_run, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("how", [[], ["--chat"]])
def test_standard_input_that_is_no_text_gets_a_sentence(finished_run, how):
    done = call("infer", "--checkpoint", finished_run, *how, typed="naïve\n".encode("latin-1"), PYTHONIOENCODING="utf-8:strict")
    assert "Traceback" not in done.stderr
    if how:
        assert "is not among the" in done.stdout
    else:
        assert done.stderr == "infer.py: Standard input is not UTF-8 (byte 2); convert it.\n"
        assert done.returncode == 2
