"""The learning-rate range test: what it suggests, that its rates are those that it says, and that nothing is left of it."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax import config as configuration
from lior_jax import data, learning, model
from lior_jax.cli import train as program
from lior_jax.errors import UserError
from lior_jax.training import origin, rate
from tests.runs import TINY


def test_the_suggestion_is_where_the_loss_falls_fastest():
    """A logistic fall in the logarithm of the rate is steepest in its middle, here 3e-3."""
    rates = np.geomspace(1e-6, 1, 400)
    loss = 3 - 2 / (1 + np.exp(-3 * (np.log(rates) - np.log(3e-3)))) + np.where(rates > 0.3, 5, 0)
    assert rate.suggest(rates, loss) == pytest.approx(3e-3, rel=0.04)
    recovering = np.where(rates > 0.6, loss - 3, loss)
    assert rate.suggest(rates, recovering) == pytest.approx(3e-3, rel=0.04)
    for hopeless in (rates, -rates[:5]):
        with pytest.raises(UserError, match="falls at no learning rate"):
            rate.suggest(rates[: len(hopeless)], hopeless)


def test_smoothing_has_no_lag_and_keeps_a_line():
    line = np.arange(50.0)
    np.testing.assert_allclose(rate.smooth(line, 3.0)[15:35], line[15:35], rtol=1e-4)
    np.testing.assert_allclose(rate.smooth(np.ones(7), 2.0), 1)


def test_every_update_is_the_optimiser_s_at_the_rate_that_is_said(tiny):
    """Whatever schedule the configuration has; two steps, of which the second one is `factor` times as large."""
    beginning = origin.begin(tiny("run", "optimizer.warmup_steps=5", "optimizer.weight_decay=0.3"))
    state, factor = rate._state(beginning, 4.0), 4.0
    gradient = jax.tree.map(jnp.ones_like, state.params)
    kept = state.opt_state
    for step in range(2):
        size = rate.LOWEST * factor**step
        level = configuration.replace(
            beginning.config, "optimizer", learning_rate=size, warmup_steps=0, final_fraction=1.0
        ).optimizer
        expected = learning.make_optimizer(level, 12, beginning.config.learning)
        updates, after = state.tx.update(gradient, kept, state.params)
        reference, _ = expected.update(gradient, kept[0], state.params)
        for got, wanted in zip(jax.tree.leaves(updates), jax.tree.leaves(reference), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-4)
        kept = after


@pytest.mark.parametrize("rule", ["echo", pytest.param("equilibrium", marks=pytest.mark.slow)])
def test_nothing_is_left_of_a_test_but_what_it_found(tiny, tmp_path, rule):
    config = tiny("run", f"learning.rule={rule}")
    before = sorted(tmp_path.rglob("*"))
    found = rate.find(config, 40)
    assert sorted(tmp_path.rglob("*")) == before
    beginning = origin.begin(config)
    batch = data.batch_at(beginning.corpus.train, 0, 0, 4, 16)
    loss = model.loss(origin.state(beginning).params, *batch, beginning.config.model)
    assert found.losses[0] == pytest.approx(float(loss), rel=1e-5)
    assert found.rates[:2].tolist() == pytest.approx([1e-6, 1e-6 * 1e6 ** (1 / 39)])
    assert len(found.rates) == len(found.losses) == len(found.smoothed)
    assert found.diverged == (len(found.rates) < 40)
    assert 1e-4 < found.suggestion < 0.5
    assert found.smoothed.min() < found.losses[0] - 0.1


def test_the_command_that_uses_it_is_printed(tiny, tmp_path, monkeypatch, capsys):
    config = tiny("run")
    (tmp_path / "tiny.yaml").write_text(TINY)
    sets = [f"data.path={config.data.path}", f"run.directory={tmp_path}/run"]
    words = ["train.py", "--config", f"{tmp_path}/tiny.yaml", *(word for one in sets for word in ("--set", one))]
    for _ in range(2):  # its own picture is drawn again
        monkeypatch.setattr(sys, "argv", [*words, "--find-rate", "40"])
        program.main()
        said = capsys.readouterr().out
        assert said.startswith("Suggested learning rate: ")
        assert f"Use it:  python {' '.join(words)} --set optimizer.learning_rate=" in said
    assert (tmp_path / "run-rate.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run-rate.png").write_bytes(b"mine")
    with pytest.raises(SystemExit):
        program.main()
    assert "is not a picture drawn by this program" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*words, "--find-rate", "--stop-after", "3"])
    with pytest.raises(SystemExit):
        program.main()
    assert "--find-rate goes with --config, --init-from and --set alone" in capsys.readouterr().err
