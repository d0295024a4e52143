"""Bad numbers: the step is not applied, what met it is kept, and the run ends after too many, its checkpoints whole."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax import data, learning, training
from lior_jax.errors import UserError
from lior_jax.learning import accumulation, soundness
from lior_jax.registry import RULES
from lior_jax.storage import checkpoint, snapshot
from lior_jax.training import bad_steps, loop, metrics, origin
from lior_jax.training.step import initial_state
from tests.runs import Listener
from tests.training.test_loop import saved_leaves

PLANTS = {
    "loss is no number": lambda gradient, info: (gradient, info._replace(loss=info.loss * np.nan)),
    "gradient is infinite": lambda gradient, info: (
        gradient._replace(readout=gradient.readout.at[0, 0].set(np.inf)),
        info._replace(gradient_norm=info.gradient_norm + np.inf),
    ),
    "residual is above its limit": lambda gradient, info: (gradient, info._replace(reversibility=jnp.float32(0.02))),
    "residual is no number": lambda gradient, info: (gradient, info._replace(reversibility=jnp.float32(np.nan))),
}


@pytest.fixture
def tiny(tiny):
    """Without samples, whose decoding takes longer to compile than the step."""
    return lambda name, *options: tiny(name, "sample.tokens=0", *options)


@pytest.fixture
def plant(monkeypatch):
    """`plant(config, steps, how)`: make the estimates of those batches (from 0) bad."""

    def plant(config, steps, how):
        corpus = data.load(config)
        planted = [batch_of(config, corpus, step)[0] for step in steps]
        estimate = learning.estimate

        def poisoned(params, batch, model, learning, key=None):
            good = estimate(params, batch, model, learning, key)
            is_planted = jnp.any(jnp.stack([jnp.all(batch[0] == tokens) for tokens in planted]))
            return jax.tree.map(partial(jnp.where, is_planted), how(*good), good)

        monkeypatch.setattr(accumulation, "estimate", poisoned)

    return plant


def batch_of(config, corpus, step):
    return data.batch_at(corpus.train, config.run.seed, step, config.training.batch_size, config.model.context)


def states(run, step):
    config = data.with_vocabulary(training.resume_config(run), data.load(training.resume_config(run)))
    like = checkpoint.abstract(lambda key: initial_state(key, config), jax.random.key(0))
    folder = run / bad_steps.FOLDER / str(step) / "state"
    snapshot.verify(folder)
    return [snapshot.read_tree(folder, name, tree) for name, tree in (("params", like.params), ("optimizer", like.optimizer))]


def assert_same(actual, expected):
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("how", PLANTS)
def test_a_bad_step_is_passed_over_as_if_its_batch_had_not_been_there(tiny, tmp_path, plant, how):
    """Bit for bit: the state that the next step meets is the one that the bad step met."""
    config = tiny("run", "training.steps=6", "training.save_every=6", "training.eval_every=6", "training.patience=2")
    plant(config, [2], PLANTS[how])  # for both, so that they are one compiled program: another may round otherwise
    corpus = data.load(config)
    config = data.with_vocabulary(config, corpus)
    state = jax.jit(initial_state, static_argnums=1)(jax.random.key(0), config)
    for step in (0, 1):
        state, _ = loop.train_step(state, batch_of(config, corpus, step), config)
    before = snapshot.to_host(state)
    for step in (3, 4, 5):
        state, _ = loop.train_step(state, batch_of(config, corpus, step), config)

    listener = Listener()
    training.train(config, listener)
    assert_same(saved_leaves(tmp_path / "run")[1], jax.tree.leaves((state.params, state.optimizer)))
    assert_same(states(tmp_path / "run", 3), jax.tree.leaves((before.params, before.optimizer)))
    assert "Step 3 was not applied: the " in listener.said
    lines = metrics.read(tmp_path / "run")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 4, 5, 6]
    (bad,) = [line for line in lines if line["kind"] == "bad_step"]
    assert bad["step"] == 3
    assert how.split(" is")[0] in bad["reasons"]


def test_batch_and_description_are_kept(tiny, tmp_path, plant):
    config = tiny("run", "training.steps=4", "training.eval_every=4")
    plant(config, [1], PLANTS["loss is no number"])
    training.train(config)
    folder = tmp_path / "run" / "bad_steps" / "2"
    corpus = data.load(config)
    tokens, targets = batch_of(config, corpus, 1)
    with np.load(folder / "batch.npz", allow_pickle=False) as batch:
        assert_same((batch["tokens"], batch["targets"]), (tokens, targets))
    description = json.loads((folder / "description.json").read_text())
    assert description["reasons"] == "the loss is nan"
    assert description["text"] == [corpus.tokenizer.decode(row) for row in tokens]
    assert description["state"] == "bad_steps/2/state"


def test_the_learning_rate_that_is_told_is_the_one_that_was_used(tiny, tmp_path, plant):
    """The schedule counts what was applied, so after a bad step it is one step behind; nothing else touches it."""
    config = tiny("run", "training.steps=6", "optimizer.warmup_steps=5", "training.eval_every=6")
    plant(config, [1], PLANTS["loss is no number"])
    training.train(config)
    rates = {line["step"]: line["learning_rate"] for line in metrics.read(tmp_path / "run") if line["kind"] == "train"}
    for step, applied in {1: 0, 3: 1, 4: 2, 5: 3, 6: 4}.items():
        assert np.isclose(rates[step], applied / 5 * config.optimizer.learning_rate)


def test_too_many_in_a_row_end_the_run_and_fewer_do_not(tiny, tmp_path, plant):
    config = tiny("run", "training.patience=3", "training.save_every=2", "training.eval_every=12")
    plant(config, [2, 3, 5, 7, 8, 9], PLANTS["loss is no number"])
    advice = r"The last good checkpoint is kept: go on with --resume .*run --force and .*=0\.0005, or .* --find-rate suggests\."
    with pytest.raises(UserError, match="3 steps in a row, up to step 10, were bad.*" + advice):
        training.train(config)
    reached, leaves = saved_leaves(tmp_path / "run")
    assert reached == 8
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    kept = sorted(int(path.name) for path in (tmp_path / "run" / "bad_steps").iterdir())
    assert kept == [3, 4, 6, 8, 9, 10]
    with_state = [step for step in kept if (tmp_path / "run" / "bad_steps" / str(step) / "state").is_dir()]
    assert with_state == [3, 6, 8]


def test_advice_names_no_checkpoint_where_there_is_none_and_can_be_followed(tiny, plant, tmp_path):
    config = tiny("run", "training.patience=2")
    plant(config, [0, 1], PLANTS["loss is no number"])
    with pytest.raises(UserError, match=r"No checkpoint was saved.*start again .*=0\.0005, or .* --find-rate suggests\.$"):
        training.train(config)
    tamed = tiny("run", "optimizer.learning_rate=0.0005", "training.steps=3")
    assert training.train(tamed).step == 3  # in the same folder, and passing over what is planted


def test_a_poisoned_parameter_never_trains(tiny):
    config = tiny("unused")
    corpus = data.load(config)
    config = data.with_vocabulary(config, corpus)
    state = jax.jit(initial_state, static_argnums=1)(jax.random.key(0), config)
    state = state.replace(params=state.params._replace(embedding=state.params.embedding.at[0, 0].set(jnp.nan)))
    before = snapshot.to_host(state)
    state, report = loop.train_step(state, batch_of(config, corpus, 0), config)
    assert not report.sound
    assert_same(state, before)


def test_the_limit_of_the_residual_is_the_configured_one(tiny, tmp_path):
    config = tiny("run", "learning.residual_limit=1e-9", "training.patience=2")
    with pytest.raises(UserError, match="2 steps in a row"):
        training.train(config)
    assert "above its limit, 1e-09" in json.loads((tmp_path / "run/bad_steps/1/description.json").read_text())["reasons"]
    assert soundness.residual_limit(config.learning) == 1e-9
    assert soundness.residual_limit(tiny("run").learning) == RULES["echo"].residual_limit


def test_relaxations_that_do_not_settle_end_the_run_with_the_reason(tiny, tmp_path):
    """One step of relaxation is not enough, and the contrast of what has not settled is no gradient."""
    config = tiny("run", "learning.rule=equilibrium", "model.relaxation.steps=1", "training.patience=2")
    with pytest.raises(UserError, match="2 steps in a row"):
        training.train(config)
    reasons = json.loads((tmp_path / "run/bad_steps/1/description.json").read_text())["reasons"]
    assert "the residual is" in reasons
    assert "above its limit, 0.001" in reasons
    assert soundness.residual_limit(config.learning) == RULES["equilibrium"].residual_limit == 1e-3


def test_a_bad_step_that_cannot_be_written_down_does_not_end_the_run(tiny, tmp_path, plant, monkeypatch):
    config = tiny("run", "training.steps=4", "training.eval_every=4", "training.patience=4")
    plant(config, [1], PLANTS["loss is no number"])
    start = origin.state

    def start_with_a_file_in_the_way(*arguments):
        (tmp_path / "run" / bad_steps.FOLDER).write_text("mine")
        return start(*arguments)

    monkeypatch.setattr(origin, "state", start_with_a_file_in_the_way)
    listener = Listener()
    assert training.train(config, listener).step == 4
    assert "batch and state could not be written" in listener.said
