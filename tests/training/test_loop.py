"""Whole runs: resuming bit for bit, learning, refusing, and what is left behind."""

import json
import math
import shutil

import jax
import numpy as np
import optax
import pytest
import yaml

from lior_jax import config as configuration
from lior_jax import data, learning, model, training
from lior_jax.errors import UserError
from lior_jax.inference import Engine, scoring
from lior_jax.storage import checkpoint
from lior_jax.training import loop, metrics
from lior_jax.training.step import initial_state
from tests.runs import Listener


def saved_leaves(run):
    config = configuration.validate(yaml.safe_load((run / "config.yaml").read_text()), "saved")
    like = checkpoint.abstract(lambda key: initial_state(key, config), jax.random.key(0))
    with checkpoint.open_run(run) as checkpoints:
        step = checkpoints.latest
        state = checkpoints.params(step, like.params), checkpoints.optimizer(step, like.optimizer)
    return step, [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def figures(run):
    """The metrics of a run without its speed."""
    lines = metrics.read(run)
    for line in lines:
        line.pop("tokens_per_second", None)
    return lines


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["model.flow.steps=2"],
        [
            "model.flow.carry_momentum=true",
            "model.geometry.frame=derived",
            "model.retrieval.adaptive_order=true",
            "model.convolution.long=true",
        ],
    ],
    ids=["plain", "carried"],
)
def test_stopping_and_resuming_is_the_same_run_bit_for_bit(tiny, options):
    """What the physics carries from step to step included."""
    straight, stopped = tiny("straight", *options), tiny("stopped", *options)
    training.train(straight)
    training.train(stopped, stop_after=6)
    summary = training.train(stopped, resume=True)
    run, expected = summary.directory, saved_leaves(summary.directory.with_name("straight"))
    step, leaves = saved_leaves(run)
    assert step == expected[0] == 12
    for resumed, once in zip(leaves, expected[1], strict=True):
        np.testing.assert_array_equal(resumed, once)
    assert figures(run) == figures(run.with_name("straight"))


def test_second_step_does_not_compile_again(tiny):
    config = tiny("unused")
    corpus = data.load(config)
    config = data.with_vocabulary(config, corpus)
    state = jax.jit(initial_state, static_argnums=1)(jax.random.key(0), config)
    compiled = loop.train_step._cache_size()
    for step in range(3):
        state, _ = loop.train_step(state, data.batch_at(corpus.train, 0, step, 4, 16), config)
    assert loop.train_step._cache_size() == compiled + 1


def test_state_is_donated(tiny):
    config = tiny("unused")
    corpus = data.load(config)
    config = data.with_vocabulary(config, corpus)
    state = jax.jit(initial_state, static_argnums=1)(jax.random.key(0), config)
    loop.train_step(state, data.batch_at(corpus.train, 0, 0, 4, 16), config)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_step_is_estimate_then_optimizer(tiny, name):
    config = tiny("unused", "model.geometry.frame=derived", "model.retrieval.adaptive_order=true", f"optimizer.name={name}")
    corpus = data.load(config)
    config = data.with_vocabulary(config, corpus)
    state = initial_state(jax.random.key(0), config)
    batch = data.batch_at(corpus.train, 0, 0, 4, 16)
    gradient, info = jax.jit(learning.estimate, static_argnums=(2, 3))(state.params, batch, config.model, config.learning)
    updates, _ = learning.make_optimizer(config.optimizer, config.training.steps, config.learning).update(
        gradient, state.opt_state, state.params
    )
    expected = optax.apply_updates(state.params, updates)._replace(carried=info.carried)
    stepped, _ = loop.train_step(state, batch, config)
    for actual, leaf in zip(jax.tree.leaves(stepped.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(actual, leaf, rtol=1e-5, atol=1e-7)


def test_a_step_moves_the_average_and_a_bad_one_does_not(tiny):
    """The first applied step leaves a share 2/11 of the initial weights."""
    config = tiny("unused", "optimizer.average=0.99")  # of which a first step takes less
    corpus = data.load(config)
    config = data.with_vocabulary(config, corpus)
    before = initial_state(jax.random.key(0), config)
    kept = jax.tree.map(np.array, before.params)
    batch = data.batch_at(corpus.train, 0, 0, 4, 16)
    state, _ = loop.train_step(before, batch, config)
    learned = (tree._replace(carried=None) for tree in (state.weights, kept, state.params))
    for average, first, new in zip(*map(jax.tree.leaves, learned), strict=True):
        np.testing.assert_allclose(average, 2 / 11 * first + 9 / 11 * new, rtol=1e-5, atol=1e-6)
    average = jax.tree.map(np.array, state.average)
    state, _ = loop.train_step(state, batch, config, False)
    for leaf, expected in zip(jax.tree.leaves(state.average), jax.tree.leaves(average), strict=True):
        np.testing.assert_array_equal(leaf, expected)


@pytest.mark.slow
def test_a_short_run_beats_unigrams_and_bigrams(tmp_path):
    """On the embedded corpus; the counts are smoothed by one, in the bigram's favour fitted on all training text."""
    config = configuration.parse(
        """
        model: {context: 48, width: 64, blocks: 2, flow: {units: 128}, convolution: {taps: 6}}
        optimizer: {learning_rate: 6e-3, warmup_steps: 20}
        sample: {tokens: 0}
        training: {steps: 250, batch_size: 16, eval_every: 250, eval_windows: 200, save_every: 250}
        """,
        "bigram test",
        [f"run.directory={tmp_path / 'run'}"],
    )
    corpus = data.load(config)
    size = corpus.tokenizer.vocab_size
    windows = scoring.cover(corpus.validation, 48, count=200)
    before, after = windows.tokens[windows.counted], windows.targets[windows.counted]

    singles = np.bincount(corpus.train, minlength=size) + 1.0
    unigram = -np.log(singles / singles.sum())[after].mean()
    pairs = np.ones((size, size)) * 0.1
    np.add.at(pairs, (corpus.train[:-1], corpus.train[1:]), 1)
    bigram = -np.log(pairs / pairs.sum(1, keepdims=True))[before, after].mean()

    training.train(config)
    reached = [line for line in metrics.read(tmp_path / "run") if line["kind"] == "validation"][-1]["nats_per_token"]
    assert reached < bigram < unigram


@pytest.mark.slow
def test_equilibrium_beats_bigrams_and_its_checkpoint_relaxes(tiny, tmp_path):
    """On a tiny corpus, with every step settled; and what is loaded from the folder scores what training measured."""
    config = tiny(
        "run",
        *("learning.rule=equilibrium", "optimizer.learning_rate=1e-2", "training.steps=80", "training.batch_size=8"),
        *("training.eval_every=80", "training.eval_windows=null", "training.save_every=80"),
    )
    corpus = data.load(config)
    summary = training.train(config)
    pairs = np.full((corpus.tokenizer.vocab_size,) * 2, 0.1)
    np.add.at(pairs, (corpus.train[:-1], corpus.train[1:]), 1)
    surprise = -np.log(pairs / pairs.sum(1, keepdims=True))
    assert summary.nats_per_character < surprise[corpus.validation[:-1], corpus.validation[1:]].mean()
    steps = [line for line in metrics.read(tmp_path / "run") if line["kind"] == "train"]
    assert max(line["reversibility"] for line in steps) < 1e-3
    assert all(len(line["residual"]) == config.model.blocks for line in steps)

    engine = Engine.from_checkpoint(tmp_path / "run")
    assert engine.config.dynamics == "dissipative"
    text = corpus.tokenizer.decode(corpus.validation)
    assert math.isclose(engine.score(text, stride=16).nats_per_token, summary.nats_per_character, rel_tol=1e-5)
    assert len(engine.generate("1 is", max_tokens=5)) == 5


def test_run_folder_holds_all_that_the_summary_promises(finished_run):
    summary = json.loads((finished_run / "summary.json").read_text())
    assert summary["step"] == 12
    lines = metrics.read(finished_run)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 13))
    validations = {line["step"]: line["nats_per_character"] for line in lines if line["kind"] == "validation"}
    assert sorted(validations) == [4, 8, 12]
    assert summary["best_step"] == min(validations, key=validations.get)
    assert math.isclose(summary["bits_per_character"], summary["nats_per_character"] / math.log(2))
    samples = [line["text"] for line in lines if line["kind"] == "sample"]
    assert all(text.startswith("1") and len(text) == 6 for text in samples)
    assert any((finished_run / "tensorboard").iterdir())
    assert configuration.load(finished_run / "config.yaml").model.vocab_size


def test_latest_and_best_checkpoints_are_kept_and_no_others(finished_run):
    validations = {line["step"]: line["nats_per_token"] for line in metrics.read(finished_run) if line["kind"] == "validation"}
    with checkpoint.open_run(finished_run) as checkpoints:
        assert set(checkpoints.steps) == {9, 12} | {min(validations, key=validations.get)}
        assert checkpoints.best == min(validations, key=validations.get)


def test_summary_is_the_best_checkpoint_over_the_whole_validation_part(finished_run):
    summary = json.loads((finished_run / "summary.json").read_text())
    config = training.resume_config(finished_run)
    corpus = data.load(config)
    engine = Engine.from_checkpoint(finished_run)
    token_losses = jax.jit(model.token_losses, static_argnums=3)
    losses = [
        token_losses(engine.params, window[None, :-1], window[None, 1:], config.model)
        for start in range(0, len(corpus.validation) - 1, 16)
        if len(window := corpus.validation[start : start + 17]) > 1
    ]
    assert math.isclose(summary["nats_per_character"], np.mean(np.concatenate(losses, axis=1)), rel_tol=1e-5)


def test_summary_has_both_protocols_of_the_best_and_the_last_step(finished_run):
    summary = json.loads((finished_run / "summary.json").read_text())
    corpus = data.load(training.resume_config(finished_run))
    text = corpus.tokenizer.decode(corpus.validation)
    for name, step in (("nats_per_character", summary["best_step"]), ("last_nats_per_character", 12)):
        engine = Engine.from_checkpoint(finished_run, step)
        assert math.isclose(summary[name], engine.score(text, stride=16).nats_per_token, rel_tol=1e-5)
        assert math.isclose(summary[f"{name}_with_history"], engine.score(text, stride=8).nats_per_token, rel_tol=1e-5)
    assert summary["evaluations"] == 3


def test_a_finished_or_foreign_folder_is_not_overwritten(finished_run, tiny, tmp_path):
    config = training.resume_config(finished_run)
    before = (finished_run / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="already holds a run"):
        training.train(config)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("mine")
    with pytest.raises(UserError, match=r"letters contains a\.txt, not written by a run"):
        training.train(tiny("letters"))
    assert (finished_run / "metrics.jsonl").read_bytes() == before
    assert (tmp_path / "letters" / "a.txt").read_text() == "mine"


def test_resuming_under_another_configuration_names_the_keys(finished_run):
    config = training.resume_config(finished_run)
    changed = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"clip_norm": 0.5})})
    with pytest.raises(UserError, match=r"optimizer\.clip_norm: 1\.0 → 0\.5"):
        training.train(changed, resume=True)


def test_resuming_on_another_corpus_is_refused(tiny, tmp_path):
    config = tiny("run", "training.steps=4")
    training.train(config, stop_after=3)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(corpus.read_text().replace("is 3", "is 4"))
    with pytest.raises(UserError, match="is not the corpus that"):
        training.train(config, resume=True)


def test_resuming_nothing_is_told(tiny):
    with pytest.raises(UserError, match="There is no run at"):
        training.train(tiny("nothing"), resume=True)


@pytest.mark.parametrize("option", ["sample.prompt=X", "data.tokenizer=byte"])
def test_a_sample_prompt_that_cannot_be_encoded_is_told_before_training(tiny, tmp_path, option):
    prompt = [] if option.startswith("sample") else ['sample.prompt="\\ud800"']
    with pytest.raises(UserError, match=r"sample\.prompt"):
        training.train(tiny("run", option, *prompt))
    assert not (tmp_path / "run").exists()


def test_a_run_stopped_before_its_first_checkpoint_is_resumed_from_the_start(tiny, tmp_path):
    config = tiny("run", "training.steps=4")
    training.train(config)
    expected = saved_leaves(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / checkpoint.FOLDER)
    training.train(training.resume_config(tmp_path / "run"), resume=True)
    step, leaves = saved_leaves(tmp_path / "run")
    assert step == expected[0]
    for again, once in zip(leaves, expected[1], strict=True):
        np.testing.assert_array_equal(again, once)


def test_resuming_passes_over_a_damaged_checkpoint_and_replaces_it(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    newest = max(int(path.name) for path in (run / checkpoint.FOLDER).iterdir())
    for file in (run / checkpoint.FOLDER / str(newest) / "params").rglob("*"):
        if file.is_file():
            file.unlink()
    listener = Listener()
    training.train(training.resume_config(run), listener, resume=True)
    told = listener.said
    assert f"The checkpoint of step {newest} is damaged (params/" in told
    assert "using that of step 9 instead." in told
    expected = saved_leaves(finished_run)
    step, leaves = saved_leaves(run)
    assert step == expected[0] == newest
    for resumed, once in zip(leaves, expected[1], strict=True):
        np.testing.assert_array_equal(resumed, once)


def test_summary_of_a_stopped_run_tells_the_step_reached(tiny):
    assert training.train(tiny("run"), stop_after=3).step == 3


@pytest.mark.slow
def test_bytes_and_pairs_are_trained_and_scored_per_character(tiny, tmp_path):
    """The figures of one model agree whatever a token is: nats per token, over characters per token."""
    for kind in ("byte", "bpe:300"):
        run = tmp_path / kind.replace(":", "")
        summary = training.train(tiny(run.name, f"data.tokenizer={kind}", "training.steps=4", "training.eval_windows=null"))
        line = [line for line in metrics.read(run) if line["kind"] == "validation"][-1]
        corpus = data.load(training.resume_config(run))
        text = corpus.tokenizer.decode(corpus.validation)
        per_token = len(text) / len(corpus.validation)
        assert math.isclose(line["nats_per_character"], line["nats_per_token"] / per_token)
        score = Engine.from_checkpoint(run).score(text, stride=16)
        assert math.isclose(score.nats_per_token, line["nats_per_token"], rel_tol=1e-4)
        assert math.isclose(score.nats_per_character, summary.nats_per_character, rel_tol=1e-4)


def test_a_vocabulary_that_does_not_fit_is_told(tiny):
    with pytest.raises(UserError, match=r"model\.vocab_size is 99"):
        training.train(tiny("run", "model.vocab_size=99"))
