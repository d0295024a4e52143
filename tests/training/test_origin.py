"""New training from the weights of a trained model: what is kept of it, what begins anew, and where that is written down."""

import shutil
import sys

import jax
import numpy as np
import pytest

from lior_jax import config as configuration
from lior_jax import data, model, training
from lior_jax.analysis import sessions
from lior_jax.cli import train as program
from lior_jax.errors import UserError
from lior_jax.inference import Engine
from lior_jax.model import retrieval
from lior_jax.storage import checkpoint
from lior_jax.training import environment, metrics, origin, run_folder
from lior_jax.training.step import initial_state
from tests.runs import Listener


def equal(tree, other):
    for one, two in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.fixture
def elsewhere(tiny, tmp_path, finished_run):
    """`elsewhere(source, *overrides)`: a new run on another text of the same characters, from a source's weights."""
    text = tmp_path / "other.txt"
    text.write_text("7 is 1 and 2, 4 is 3 and 0, " * 60)
    options = [f"data.path={text}", "training.steps=3", "sample.tokens=0"]
    return lambda source, *more: tiny("new", *options, f"run.init_from={source}", *more)


def test_weights_and_tokenizer_are_those_of_the_best_checkpoint_and_the_optimiser_is_fresh(elsewhere, finished_run, tmp_path):
    beginning = origin.begin(elsewhere(finished_run))
    engine = Engine.from_checkpoint(finished_run)
    state, fresh = origin.state(beginning), initial_state(jax.random.key(0), beginning.config)
    equal(state.params, engine.params)
    equal(state.opt_state, fresh.opt_state)
    assert int(state.step) == 0
    assert beginning.corpus.tokenizer.alphabet == engine.tokenizer.alphabet
    assert beginning.config.model == engine.config
    with checkpoint.open_run(finished_run) as checkpoints:
        assert beginning.origin.step == checkpoints.best
        last = checkpoints.latest
    # A checkpoint of its own, and an export, bit for bit.
    equal(origin.state(origin.begin(elsewhere(f"{finished_run}/checkpoints/{last}"))).params, engine.params)
    engine.export(tmp_path / "weights")
    exported = origin.begin(elsewhere(tmp_path / "weights"))
    equal(origin.state(exported).params, engine.params)
    assert exported.origin.step is None


@pytest.mark.slow
def test_a_run_says_where_its_first_weights_are_from_and_goes_on_without_them(elsewhere, finished_run, tmp_path):
    source = shutil.copytree(finished_run, tmp_path / "source")
    config, listener = elsewhere(source, "data.tokenizer=byte"), Listener()
    training.train(config, listener, stop_after=2)
    run, engine = tmp_path / "new", Engine.from_checkpoint(source)
    corpus = data.load(config, checkpoint.Metadata({}, engine.tokenizer.to_json(), ""), another=True)
    tokens, targets = data.batch_at(corpus.train, 0, 0, 4, 16)
    first = metrics.read(run)[0]
    assert first["loss"] == pytest.approx(float(model.loss(engine.params, tokens, targets, engine.config)), rel=1e-5)
    assert first["learning_rate"] == 0  # the schedule begins with its warm-up
    said = f"{source}, step {origin.read(source).step}"
    assert f"Starting from the weights and the tokenizer of {said}, with a new optimiser state." in listener.said
    recorded = training.resume_config(run)
    assert (recorded.run.init_from, recorded.data.tokenizer) == (str(source), "char")
    shutil.rmtree(source)
    training.train(recorded, resume=True)
    assert [one.get("init_from") for one in environment.read(run)] == [{"path": str(source), "step": origin_step(said)}, None]
    assert {one["retrieval"] for one in environment.read(run)} == {retrieval.choice(recorded.model).sentence}
    assert sessions.first_weights(run) == said
    assert sessions.first_weights(finished_run) is None


def origin_step(said):
    return int(said.rpartition(" ")[2])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.width=32"], r"run\.init_from: .* has another model \(model\.width is 16 there and 32 here\); give the model"),
        (["model.width=32", "model.heads=4"], r"model\.width is 16 there and 32 here; model\.heads is 2 there and 4 here"),
        (["learning.rule=equilibrium"], "learning.rule: equilibrium needs dissipative dynamics, unlike the model"),
        (["model.vocab_size=3"], r"model\.vocab_size is \d+ there and 3 here"),
        (["run.init_from=nowhere"], "There is no run at nowhere"),
    ],
)
def test_another_model_is_refused_by_its_keys(elsewhere, finished_run, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        training.train(elsewhere(finished_run, *overrides))
    assert not (tmp_path / "new").exists()


def test_a_text_of_other_characters_is_refused(elsewhere, finished_run, tmp_path):
    (tmp_path / "other.txt").write_text("7 is 1 and ß, " * 90)
    with pytest.raises(UserError, match=r"The character 'ß' is not among the \d+ that this model was trained on"):
        training.train(elsewhere(finished_run))
    assert not (tmp_path / "new").exists()


def test_without_a_configuration_the_run_s_own_serves_in_another_folder(finished_run, tmp_path, monkeypatch, capsys):
    config = origin.config_of(f"{finished_run}/checkpoints/12", ["run.directory=x", "training.steps=7"])
    recorded = configuration.load(finished_run / run_folder.RECORD)
    assert configuration.differences(recorded, config) == [
        f"run.directory: {str(finished_run)!r} → 'x'",
        "training.steps: 12 → 7",
    ]
    with pytest.raises(UserError, match="already holds a run"):
        training.train(configuration.replace(recorded, "run", init_from=str(finished_run)))
    (tmp_path / "export").mkdir()
    with pytest.raises(UserError, match="has no configuration of a run; give one with --config FILE"):
        origin.config_of(str(tmp_path / "export"))
    monkeypatch.setattr(sys, "argv", ["train.py", "--init-from", str(finished_run), "--dry-run"])
    program.main()
    assert "tokens per epoch" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["train.py", "--init-from", str(finished_run), "--resume", str(finished_run)])
    with pytest.raises(SystemExit):
        program.main()
    assert "--init-from starts a new run, and --resume continues one" in capsys.readouterr().err
