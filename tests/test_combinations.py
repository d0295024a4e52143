"""Options together: every pair of values takes a training step and decodes a token, or is refused by a sentence."""

from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax import config as configuration
from lior_jax.errors import UserError
from lior_jax.inference.decoder import Decoder, next_logits, sequence_keys
from lior_jax.inference.sampling import Sampling
from lior_jax.settings import Config
from lior_jax.training import step
from tests import dense, oracles
from tests.oracles import PRODUCTS, base_metric, named_leaves

LENGTH = 6
SMALL: dict[str, Any] = {
    "model.vocab_size": 7,
    "model.context": LENGTH,
    "model.width": 8,
    "model.blocks": 2,
    "model.heads": 2,
    "model.geometry.chart_dim": 4,
    "model.geometry.rotor_layers": 1,
    "model.geometry.curvature_terms": 2,
    "model.convolution.taps": 2,
    "model.flow.units": 5,
    "model.flow.step_size": 0.6,
    "training.batch_size": 2,
    "optimizer.warmup_steps": 0,
}

# The first value of each goes with everything.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "precision": [{"model.precision": name} for name in ("float32", "tf32", "bfloat16")],
    "products": [{"model.retrieval.products": names} for names in ([], ["tensor"], ["wedge"], ["spinor"], list(PRODUCTS))],
    "resilience": [{"model.geometry.resilience": name} for name in ("unit", "constitutive", "curvature")],
    "frame": [{"model.geometry.frame": name} for name in ("derived", "rotor", "learned_lowrank")],
    "metric": [{"model.geometry.metric": name} for name in ("diag_rot", "block_rot")],
    "base": [{"model.geometry.base_metric": rows} for rows in (None, [list(row) for row in base_metric(4)])],
    "rule": [{"learning.rule": name} for name in ("echo", "equilibrium")],
    "potential": [{"model.flow.potential": name} for name in ("gated", "hopfield")],
    "integrator": [{"model.flow.integrator": name} for name in ("verlet", "yoshida4")],
    "steps": [{"model.flow.steps": steps} for steps in (1, 2)],
    "field": [{"model.field.evolution": name} for name in ("kernel", "off", "master")],
    "project": [{"model.field.project": value} for value in (False, True)],
    "long": [{"model.convolution.long": value} for value in (False, True)],
    "carry": [{"model.flow.carry_momentum": value} for value in (False, True)],
    "tile": [{"model.retrieval.tile": value} for value in (None, 3)],
    "prior": [
        {},
        {"model.retrieval.lag_prior": False},
        {"model.retrieval.adaptive_order": True, "model.retrieval.fractional_order": 0.7},
    ],
    "dropout": [{"learning.dropout": value} for value in (0.0, 0.1)],
    "action": [{"learning.action_weight": value} for value in (0.0, 0.1)],
    "optimizer": [{"optimizer.name": name} for name in ("adamw", "muon")],
    "chunk": [{"learning.chunk": value} for value in (None, 1)],
}
Row = dict[str, int]
"""Which value each option has."""
PLAIN: Row = dict.fromkeys(OPTIONS, 0)
Pair = frozenset[tuple[str, int]]


def pairs_of(row: Row) -> set[Pair]:
    return set(map(frozenset, combinations(row.items(), 2)))


def all_pairs() -> list[Pair]:
    return [
        frozenset({(a, i), (b, j)})
        for a, b in combinations(OPTIONS, 2)
        for i, _ in enumerate(OPTIONS[a])
        for j, _ in enumerate(OPTIONS[b])
    ]


def config_of(row: Row) -> Config:
    """The configuration with these values. Raises `UserError` if it is refused."""
    values: dict[str, Any] = {}
    chosen = {key: value for name, place in row.items() for key, value in OPTIONS[name][place].items()}
    for key, value in (SMALL | chosen).items():
        *sections, last = key.split(".")
        there = values
        for section in sections:
            there = there.setdefault(section, {})
        there[last] = value
    return configuration.validate(values, "The combination")


def refusal(row: Row) -> str | None:
    try:
        config_of(row)
    except UserError as problem:
        return str(problem)
    return None


def covering_array() -> list[Row]:
    """Accepted rows that have every pair of values that can be had, the most missing ones first (greedily)."""
    missing = [pair for pair in all_pairs() if refusal(PLAIN | dict(pair)) is None]
    rows = []
    while missing:
        row = dict(sorted(missing[0]))  # no order of a set: processes that share the tests must draw up the same ones
        for name in sorted((name for name in OPTIONS if name not in row), key=lambda name: -len(OPTIONS[name])):
            tried = [row | {name: place} for place, _ in enumerate(OPTIONS[name])]
            accepted = [one for one in tried if refusal(PLAIN | one) is None]
            row = max(accepted, key=lambda one: len(pairs_of(one) & set(missing)))
        rows.append(row)
        missing = [pair for pair in missing if pair not in pairs_of(row)]
    return rows


ROWS = covering_array()
QUICK = 2


def name_of(row: Row) -> str:
    return "-".join(f"{name}{place}" for name, place in row.items() if place) or "plain"


def test_every_pair_is_there_or_refused_by_a_sentence():
    there = set().union(*map(pairs_of, ROWS))
    refused = [pair for pair in all_pairs() if pair not in there]
    for pair in refused:
        message = refusal(PLAIN | dict(pair))
        assert message is not None, sorted(pair)
        keys = {key.rpartition(".")[2] for name, place in pair for key in OPTIONS[name][place]}
        assert any(key in message for key in keys), message
    # A relaxation has no momentum and no integrator; no axes turn in no blocks; and no field is projected.
    assert len(refused) == 5


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=name_of(row), marks=[pytest.mark.slow] * (place >= QUICK)) for place, row in enumerate(ROWS)]
)
def test_a_combination_learns_and_decodes(row):
    """Loss and logits are those of the network in plain float64 numpy; with dropout the loss is another, and finite."""
    config = config_of(row)
    coarse = config.model.precision == "bfloat16"
    params = oracles.random_params(config.model, scale=0.4)
    tokens, targets = oracles.random_batch(config, 2, LENGTH)
    before = oracles.to_numpy(params)
    expected = dense.network(params, tokens, config.model).logits
    nats = -np.take_along_axis(expected - np.logaddexp.reduce(expected, -1, keepdims=True), np.asarray(targets)[..., None], -1)

    decoder = Decoder(params, config.model)
    prefix = decoder.read(decoder.empty(2), list(np.asarray(tokens[:, :-1])))
    close = {"rtol": 0, "atol": (5e-2 if coarse else 1e-4) * np.abs(expected).max()}
    np.testing.assert_allclose(next_logits(params, None, prefix.history, config.model), expected[:, -2], **close)
    prefix, drawn = decoder.draw(prefix, sequence_keys(0, [0, 1]), Sampling(temperature=0.0).check(), 1)
    chosen = np.concatenate([tokens[:, :-1], drawn], 1)
    after = dense.network(params, jnp.asarray(chosen), config.model).logits
    assert np.all(np.take_along_axis(after[:, -2], drawn, 1)[:, 0] >= after[:, -2].max(-1) - close["atol"])
    np.testing.assert_allclose(next_logits(params, None, prefix.history, config.model), after[:, -1], **close)

    state, report = step.train_step(step.state_of(params, config), (tokens, targets), config)
    assert report.sound
    moved = named_leaves(jax.tree.map(lambda new, old: np.abs(np.asarray(new) - old).max(initial=0), state.params, before))
    assert all(np.isfinite(size) for size in moved.values())
    assert moved["embedding"] > 0
    assert moved["readout"] > 0
    if not config.learning.dropout:
        np.testing.assert_allclose(report.info.loss, nats.mean(), rtol=2e-2 if coarse else 1e-5)
