"""`train.py --dry-run`: every shipped configuration, without training and without a trace."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from lior_jax import config as configuration
from lior_jax import data, model
from lior_jax.errors import UserError
from lior_jax.training import dry_run, memory
from tests.cli.test_programs import call


def figures(report: str) -> dict[str, str]:
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in report.splitlines())


SHIPPED = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem == "billion"))
    for path in sorted(Path("configs").rglob("*.yaml"))
]


@pytest.mark.parametrize("path", SHIPPED)
def test_every_shipped_configuration_can_be_run(path, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "there", lambda: None)  # which is for machines larger than this
    config = configuration.load(path, ["data.path=null"])  # some require a text of one's own
    monkeypatch.chdir(tmp_path)
    told = figures(dry_run.report(config))
    corpus = data.load(config)
    config = data.with_vocabulary(config, corpus)
    shapes = jax.eval_shape(lambda key: model.init(key, config.model), jax.random.key(0))
    assert told["parameters"] == f"{model.count(shapes):,}"
    floats = int(told["parameters"].replace(",", ""))
    # Parameters and two moments of each, float32, and what the physics carries: a little more.
    assert floats * 12 / 2**20 <= float(told["a checkpoint"].split(" ")[0].replace(",", "")) <= floats * 13 / 2**20 + 1
    total, running = (float(size.replace(",", "")) for size in re.findall(r"([\d,.]+) MiB", told["memory of a step"]))
    assert total > running > floats * 4 / 2**20  # the gradient at least
    assert list(tmp_path.iterdir()) == []


def test_tokens_per_epoch_are_those_that_an_epoch_reads_each_once(tiny, tmp_path):
    config = tiny("run", "training.batch_size=1")
    corpus, context = data.load(config), config.model.context
    told = figures(dry_run.report(config))
    per_epoch = int(told["tokens per epoch"].split(" ")[0].replace(",", ""))
    places = np.arange(len(corpus.train))
    read = np.concatenate([data.batch_at(places, 0, step, 1, context)[0][0] for step in range(per_epoch // context)])
    assert len(set(read)) == len(read) == per_epoch
    assert len(places) - 2 * context < per_epoch <= len(places)
    assert not (tmp_path / "run").exists()


def test_what_training_would_refuse_is_refused(tiny):
    with pytest.raises(UserError, match=r"model\.vocab_size is 99"):
        dry_run.report(tiny("run", "model.vocab_size=99"))
    with pytest.raises(UserError, match=r"sample\.prompt: The character"):
        dry_run.report(tiny("run", "sample.prompt=X"))


def test_the_program_tells_it_and_makes_no_folder(tmp_path):
    (tmp_path / "corpus.txt").write_text("to be or not to be, that is the question. " * 60)
    options = ["--set", f"data.path={tmp_path}/corpus.txt", "--set", f"run.directory={tmp_path}/run"]
    small = [
        "--set",
        "model.width=16",
        "--set",
        "model.blocks=1",
        "--set",
        "model.field.evolution=off",
        "--set",
        "sample.prompt=to",
    ]
    done = call("train", "--config", "configs/quickstart.yaml", "--dry-run", *options, *small)
    assert done.returncode == 0, done.stderr
    assert {"parameters", "tokens per epoch", "memory of a step"} <= set(figures(done.stdout))
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]
