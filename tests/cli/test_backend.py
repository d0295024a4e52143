"""Starting JAX: an unavailable platform in the environment is reported in one sentence, and the numbers do not depend on it."""

import pytest

from tests.cli.test_programs import call
from tests.runs import TINY

SENTENCES = {
    "JAX_PLATFORMS=cuda": "JAX_PLATFORMS=cuda may request an unavailable platform",
    "JAX_PLATFORMS=nonsense": "JAX_PLATFORMS=nonsense may request an unavailable platform",
    "JAX_ENABLE_X64=perhaps": "JAX cannot start (",
    "XLA_FLAGS=--bogus=1": "XLA does not accept XLA_FLAGS='--bogus=1' (Unknown flag in XLA_FLAGS: --bogus=1)",
    "XLA_FLAGS=--xla_backend_optimization_level=high": "XLA does not accept XLA_FLAGS=",
}


@pytest.mark.parametrize("program", ["train", "infer"])
@pytest.mark.parametrize("setting", SENTENCES)
def test_what_is_not_there_gets_a_sentence(program, setting, finished_run, tmp_path):
    name, _, value = setting.partition("=")
    arguments = {
        "train": ["--config", "configs/quickstart.yaml", "--set", f"run.directory={tmp_path}/run"],
        "infer": ["--checkpoint", finished_run, "--prompt", "1"],
    }
    done = call(program, *arguments[program], **{name: value})
    assert done.returncode == 2
    assert done.stderr.startswith(f"{program}.py: ")
    assert SENTENCES[setting] in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_double_precision_in_the_environment_changes_no_run_and_no_text(finished_run, tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "corpus.txt").write_text("to be or not to be, that is 1 question. " * 60)
    told = []
    for wide in "01":
        options = ["--set", f"data.path={tmp_path}/corpus.txt", "--set", f"run.directory={tmp_path}/run{wide}"]
        trained = call("train", "--config", tmp_path / "tiny.yaml", *options, JAX_ENABLE_X64=wide)
        assert trained.returncode == 0, trained.stderr
        how = ["--prompt", "1 is", "--max-tokens", 40, "--seed", 7]
        drawn = call("infer", "--checkpoint", finished_run, *how, JAX_ENABLE_X64=wide)
        assert drawn.returncode == 0, drawn.stderr
        told.append((drawn.stdout, (tmp_path / f"run{wide}" / "metrics.jsonl").read_text().count("validation")))
    assert told[0] == told[1]
