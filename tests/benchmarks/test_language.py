"""The benchmark of language models: its baselines, and the results that its script prints."""

import json
import math
from collections import Counter

import chex
import jax
import jax.numpy as jnp
import kneser_ney
import language
import language_report
import numpy as np
import optax
import pytest
import transformer

from lior_jax import data, model
from lior_jax.training.step import initial_state

TEXT = np.random.default_rng(0).choice(3, 60, p=[0.6, 0.3, 0.1])


def _by_dictionaries(tokens, order, vocab_size):
    """`p(token, history)` of the definition, n-gram by n-gram."""
    counts = [Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))]
    for _ in range(order - 1):
        counts.append(Counter(gram[1:] for gram in counts[-1]))  # each different longer n-gram counts once
    counts = counts[::-1]

    def p(token, history):
        value = 1 / vocab_size
        for length, grams in enumerate(counts[: len(history) + 1]):
            context = tuple(history[len(history) - length :])
            after = {gram: count for gram, count in grams.items() if gram[:-1] == context}
            if not after:
                break
            once, twice = (sum(count == times for count in grams.values()) for times in (1, 2))
            discount = once / (once + 2 * twice) if once else 0.5
            total = sum(after.values())
            value = (max(grams[*context, token] - discount, 0) + discount * len(after) * value) / total
        return value

    return p


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_kneser_ney_is_what_dictionaries_count(order):
    train, held_out = TEXT[:45], TEXT[40:]
    p = _by_dictionaries(train, order, 3)
    expected = [-math.log(p(held_out[i], held_out[max(0, i - order + 1) : i])) for i in range(1, len(held_out))]
    np.testing.assert_allclose(kneser_ney.nats(kneser_ney.fit(train, order, 3), held_out, 3), expected, rtol=1e-12)


@pytest.mark.parametrize("history", [[0, 0, 0], [1, 2, 1], [2, 2, 2], [4, 4, 4], [0, 4, 1]])
def test_kneser_ney_is_a_distribution(history):
    """After any history, seen or unseen; token 4 never occurs in the text, and still may come."""
    orders = kneser_ney.fit(TEXT, 4, 5)
    p = np.exp([-kneser_ney.nats(orders, np.array([*history, token]), 5)[-1] for token in range(5)])
    assert p.min() > 0
    assert p.sum() == pytest.approx(1, abs=1e-12)


def test_kneser_ney_refuses_what_an_integer_cannot_name():
    with pytest.raises(ValueError, match="too many for 64 bits"):
        kneser_ney.fit(TEXT, 6, 10_000)


def test_the_transformer_cannot_see_ahead_and_sees_all_before():
    net = transformer.of_size(6_000, 11, 2)
    tokens = jax.random.randint(jax.random.key(0), (1, 12), 0, 11)
    params = net.init(jax.random.key(1), tokens)
    changed = net.apply(params, tokens.at[0, 5].add(1) % 11) - net.apply(params, tokens)
    moved = np.abs(changed[0]).max(-1)
    assert moved[:5].max() == 0
    assert moved[5:].min() > 1e-6


def test_rotary_products_depend_on_the_distance_alone():
    x, y = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    x, y = (transformer.rotate(jnp.broadcast_to(v, (1, 9, 1, 8)))[0, :, 0] for v in (x, y))
    products = np.asarray(x @ y.T)
    for distance in (-3, 0, 2):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-5)
    assert abs(products[0, 3] - products[3, 0]) > 1e-2  # and on its sign


@pytest.mark.parametrize(("parameters", "layers"), [(30_000, 2), (365_783, 3), (365_783, 4), (900_000, 6)])
def test_transformers_are_of_the_size_asked_for(parameters, layers):
    net = transformer.of_size(parameters, 65, layers)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == pytest.approx(parameters, rel=0.01)
    assert net.hidden >= 4 * net.width


@pytest.mark.slow
def test_the_script_compares_everyone(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(data.read_text(None)[0][:20_000], encoding="utf-8")
    tiny = ["model.context=16", "model.width=16", "model.blocks=2", "model.heads=2", "model.geometry.chart_dim=4"]
    tiny += ["model.geometry.rank=1", "model.geometry.rotor_layers=2", "model.convolution.taps=3", "model.flow.units=16"]
    tiny += ["training.steps=16", "training.batch_size=8", "optimizer.warmup_steps=2", "optimizer.learning_rate=1e-2"]
    options = [word for setting in (f"data.path={text}", *tiny) for word in ("--set", setting)]
    language.main([*options, "--layers", "1", "--rate", "1e-2", "--out", str(tmp_path / "result")])
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "result.json").read_text())
    rows = {name: row["seeds"][0] for name, row in results["rows"].items()}
    assert set(rows) == {"echo", "back-propagation", "transformer", "kneser-ney"}

    uniform = math.log(len(set(text.read_text(encoding="utf-8"))))
    for name in ("echo", "back-propagation", "transformer"):
        assert len(rows[name]["nats"]) == len(results["steps"]) == 8
        assert rows[name]["nats"][-1] < min(rows[name]["nats"][0], uniform - 0.1)  # the first may be worse than to know nothing
        assert rows[name]["seconds"][-1] >= 8 * rows[name]["step_seconds"]  # half of the steps take the median or more
    np.testing.assert_allclose(rows["echo"]["nats"], rows["back-propagation"]["nats"], atol=2e-3)
    assert rows["kneser-ney"]["nats"][0] < uniform
    sizes = [results["rows"][name]["parameters"] for name in ("echo", "transformer")]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)
    assert f"| kneser-ney | {results['rows']['kneser-ney']['parameters']:,} |" in printed

    (tmp_path / "result.png").unlink()
    language.main(["--plot", str(tmp_path / "result.json")])
    assert capsys.readouterr().out.strip() in printed
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_both_forms_of_back_propagation_take_the_gradient(tiny):
    config = tiny("run", "optimizer.clip_norm=1e9", "optimizer.warmup_steps=0")
    corpus = data.load(config)
    config = data.with_vocabulary(config, corpus)
    batch = data.batch_at(corpus.train, 0, 0, 4, config.model.context)
    start = jax.jit(initial_state, static_argnums=1)
    params = start(jax.random.key(0), config).params

    @jax.jit
    def loss(learned):
        return model.loss(learned._replace(carried=params.carried), *batch, config.model)

    expected = jax.tree.map(lambda x: (1 - config.optimizer.beta1) * x, jax.grad(loss)(params._replace(carried=None)))
    for remat in (False, True):
        # The first moment, a multiple of the gradient: AdamW's step itself turns rounding near zero into whole steps.
        state = language.by_autodiff(start(jax.random.key(0), config), batch, config, remat)
        moment = optax.tree.get(state.opt_state, "mu")._replace(carried=None)
        chex.assert_trees_all_close(moment, expected, rtol=1e-3, atol=1e-6)


def test_time_to_a_loss_is_read_off_the_curve():
    seeds = [{"nats": [3.0, 2.0, 1.0], "seconds": [10.0, 20.0, 40.0]}, {"nats": [2.5, 2.0, 1.0], "seconds": [10.0, 20.0, 60.0]}]
    results = {"steps": [1, 2, 4], "tokens_a_step": 100, "rows": {"echo": {"seeds": seeds}}}
    assert language_report.time_to(results, "echo", 1.75) == ((25 + 30) / 2, 250)
    assert language_report.time_to(results, "echo", 2.75) is None  # the second is there before its first point
    assert language_report.time_to(results, "echo", 0.5) is None
