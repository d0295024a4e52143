"""`train.py --dry-run --devices N`: what goes together, and that it needs neither the devices nor the text."""

import pytest

from lior_jax.cli import train
from tests.cli.test_programs import call
from tests.runs import TINY


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--devices", "8"], "--devices goes with --dry-run and --config"),
        (["--dry-run", "--devices", "0"], "--devices is 0, but must be 1 or more"),
        (["--dry-run", "--devices", "5000"], "--devices is 5000, but must be 4,096 or fewer"),
        (["--dry-run", "--peak", "1e12"], "--peak and --bandwidth go with --devices"),
        (["--dry-run", "--devices", "8", "--peak", "-1"], "--peak is -1, but must be a number above 0"),
        (["--dry-run", "--devices", "8", "--bandwidth", "inf"], "--bandwidth is inf, but must be a number above 0"),
    ],
)
def test_what_goes_with_devices(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        train.parse(["--config", "quickstart", *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_step_is_planned_for_devices_that_are_not_there(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    sizes = ["--set", "data.path=required", "--set", "data.tokenizer=byte", "--set", "parallel.model=2"]
    wanted = ["--dry-run", "--devices", 6, "--peak", 1e9, "--bandwidth", 1e6, *sizes]
    done = call("train", "--config", tmp_path / "tiny.yaml", *wanted)
    assert done.returncode == 0, done.stderr
    assert "4 of 6 devices: batch split over 2 x heads over 2; the other 2 would need" in done.stdout
    assert "at 0.001 TFLOP/s" in done.stdout
    assert "all-reduce" in done.stdout
    refused = call("train", "--config", tmp_path / "tiny.yaml", *wanted, "--set", "parallel.data=4")
    assert refused.returncode == 2
    assert "ask for 8 devices, and there are 6" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
