"""Dropout: the estimate against the exact gradient of the masked loss, what is drawn, and when."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax import config as configuration
from lior_jax import learning, training
from lior_jax.config import replace
from lior_jax.errors import UserError
from lior_jax.model import dropout
from lior_jax.physics import hamiltonian as h
from lior_jax.physics import integrators
from lior_jax.physics.flow import flow
from lior_jax.physics.numerics import RMS_EPSILON
from lior_jax.training import loop
from lior_jax.training.step import state_of
from tests import implicit, oracles
from tests.learning.test_echo import assert_is_the_gradient
from tests.oracles import (
    EVERYTHING,
    PARTS,
    POTENTIALS,
    agreement,
    named_leaves,
    normal,
    random_batch,
    random_hamiltonian,
    relaxing,
    small_config,
    to64,
    trained_looking,
    whole_agreement,
)
from tests.training.test_resume import assert_same_run

DROP = {"dropout": 0.3}
KEY = jax.random.key(7)
CONFIGS = {
    "plain": small_config(DROP),
    "three steps": small_config(DROP, flow__steps=3, flow__step_size=0.5),
    "hopfield": small_config(DROP, **PARTS["hopfield"]),
    "everything, momentum carried, in chunks": small_config(
        DROP | {"action_weight": 0.1, "chunk": 1}, **EVERYTHING["rotor_curvature_carry"]
    ),
}
PLAIN = CONFIGS["plain"]
RELAXED = {
    "everything": small_config(
        DROP | {"rule": "equilibrium", "action_weight": 0.3, "chunk": 1},
        **{"relaxation__steps": 32} | relaxing(EVERYTHING["derived_blocks_constitutive"]),
    ),
    "hopfield": small_config(DROP | {"rule": "equilibrium"}, relaxation__steps=32, **PARTS["hopfield"]),
}


def exact(params, batch, config, key=KEY):
    return oracles.autodiff(params, *batch, config, oracles.dropout_masks(key, batch[0], config))


# --- the estimate is the gradient ------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", oracles.cases(CONFIGS, "everything, momentum carried, in chunks", "three steps"))
def test_echo_is_the_gradient_of_the_masked_loss(config):
    """Every leaf, at the tolerance of the echo without masks; and the masked flow is retraced as well as the other."""
    params, batch = trained_looking(config.model), random_batch(config)
    estimate, info = oracles.estimate(params, batch, config=config, key=KEY)
    loss, gradient = exact(params, batch, config)
    assert_is_the_gradient(estimate, gradient)
    np.testing.assert_allclose(info.loss, loss, rtol=1e-5)
    assert 0 <= info.reversibility < 1e-4
    _, bare = oracles.autodiff(params, *batch, config)
    assert whole_agreement(estimate, bare).relative_error > 0.2


@pytest.mark.slow
def test_half_the_nudge_is_a_quarter_of_the_error(float64):
    """The error of the echo with masks is that of the nudge. In float64, with carried momentum: states are reconstructed."""
    small = {"geometry__rotor_layers": 1, "width": 6, "convolution__taps": 2, "flow__carry_momentum": True}
    base = small_config(DROP, **small)
    params, batch = to64(trained_looking(base.model)), random_batch(base, 2, 5)
    _, gradient = exact(params, batch, base)
    errors = []
    for size in (0.01, 0.005):
        estimate, _ = oracles.estimate(params, batch, config=small_config(DROP | {"nudge_size": size}, **small), key=KEY)
        errors.append(whole_agreement(estimate, gradient).relative_error)
    assert 3.4 < errors[0] / errors[1] < 4.7, errors
    assert errors[0] < 0.01


def test_bfloat16_products():
    params, batch = trained_looking(PLAIN.model), random_batch(PLAIN)
    _, gradient = exact(params, batch, PLAIN)
    estimate, _ = oracles.estimate(params, batch, config=small_config(DROP, precision="bfloat16"), key=KEY)
    assert whole_agreement(estimate, gradient).cosine >= 0.9995


def test_one_sided_echo_is_close():
    """Its bias is O(ε), with ε₀ = 1e-3."""
    config = CONFIGS["three steps"]
    params, batch = trained_looking(config.model), random_batch(config)
    _, gradient = exact(params, batch, config)
    estimate, _ = oracles.estimate(params, batch, config=replace(config, "learning", nudge="one_sided"), key=KEY)
    assert whole_agreement(estimate, gradient).relative_error < 2e-2


@pytest.mark.parametrize("config", oracles.cases(RELAXED, "everything"))
def test_equilibrium_is_the_implicit_gradient_of_the_masked_loss(config):
    """Every leaf, of all parts at once, one sequence at a time; leaves that are a millionth of the whole excepted."""
    params, batch = trained_looking(config.model), random_batch(config)
    estimate, info = oracles.estimate(params, batch, config=config, key=KEY)
    masks = oracles.dropout_masks(KEY, batch[0], config)
    with jax.enable_x64(True):
        cost, gradient = implicit.gradient(to64(params), *batch, config, masks=to64(masks))
    np.testing.assert_allclose(info.loss + config.learning.action_weight * info.action.sum(), cost, rtol=1e-4)
    assert info.reversibility < 1e-4
    wrong = {k: x for k, x in agreement(estimate, gradient).items() if x.share > 1e-6 and x.cosine < 0.999}
    assert not wrong, wrong
    assert whole_agreement(estimate, gradient).relative_error < 1e-3


def test_the_modes_that_hold_back_still_do():
    """With `pull: off` the gradient is zero to the last bit, with `update: geometry` that of all but the metrics."""
    config = small_config(DROP | {"rule": "equilibrium", "pull": "off"})
    params, batch = trained_looking(config.model), random_batch(config)
    estimate, info = oracles.estimate(params, batch, config=config, key=KEY)
    assert not any(x.any() for x in named_leaves(estimate).values())
    assert np.isfinite(info.loss)
    geometry = replace(config, "learning", pull="cross_entropy", update="geometry")
    estimate, _ = oracles.estimate(params, batch, config=geometry, key=KEY)
    moved = {leaf for leaf, x in named_leaves(estimate).items() if x.any()}
    assert moved
    assert all(leaf.startswith("blocks.metric.") for leaf in moved)


# --- the masked flow -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POTENTIALS)
def test_masked_flow_is_hamiltonian(name, float64):
    """Its force is minus the slope of the masked potential, and its Jacobian symplectic."""
    d, units, potential = 5, 7, POTENTIALS[name]
    ham, rng = random_hamiltonian(d, units, 0, name), np.random.default_rng(1)
    mask = jnp.asarray(1.5 * rng.integers(0, 2, units))
    point = normal(rng, 2 * d)
    system = h.system(potential, ham, mask=mask)
    slope = jax.grad(lambda s: potential.energy(ham.potential, s, RMS_EPSILON, mask))(point[:d])
    np.testing.assert_allclose(system.force(point[:d]), -slope, rtol=1e-9)
    assert np.abs(slope + h.system(potential, ham).force(point[:d])).max() > 1e-2

    def move(point):
        everywhere = h.system(potential, ham, mask=mask[None, None])
        times = integrators.schedule(integrators.VELOCITY_VERLET, 3, 0.4)
        s, p, _ = flow(everywhere, *point.reshape(2, 1, 1, d), times)
        return jnp.concatenate([s, p], -1)[0, 0]

    jacobian = jax.jacfwd(move)(point)
    form = np.block([[np.zeros((d, d)), np.eye(d)], [-np.eye(d), np.zeros((d, d))]])
    np.testing.assert_allclose(jacobian.T @ form @ jacobian, form, atol=1e-12)


# --- what is drawn ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.83])
def test_masks_keep_their_share_and_scale_it(rate):
    """Zeros are a binomial share of `rate`, everything else is `1 / (1 − rate)`, rounded to 2⁻¹⁶: the mean is 1."""
    shape = small_config(width=62, flow__units=31).model
    keys = dropout.keys(0.5, KEY, 1, 8)
    embedded = dropout.embedding_mask(keys.embedding, 64, rate, shape)
    masks = [np.asarray(x) for x in (*dropout.block_masks(keys.blocks[0], 64, rate, shape), embedded)]
    assert [x.shape for x in masks] == [(8, 64, 62), (8, 64, 31), (8, 64, 62)]
    for mask in masks:
        np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - rate)], rtol=1e-4)
        for axes in ((0, 1, 2), (0, 1), (0, 2), (1, 2)):
            zeros = np.mean(mask == 0, axes)
            count = mask.size / zeros.size
            assert np.abs(zeros - rate).max() < 5 * np.sqrt(rate * (1 - rate) / count)


def test_sequences_positions_blocks_and_keys_have_masks_of_their_own():
    """Uncorrelated with each other: two masks agree in as many elements as expected by chance."""
    shape, rate = small_config(width=64, flow__units=64).model, 0.5
    keys = dropout.keys(0.5, KEY, 2, 2)
    first, second = (dropout.block_masks(own, 64, rate, shape) for own in keys.blocks)
    other = dropout.block_masks(dropout.keys(0.5, jax.random.key(8), 2, 2).blocks[0], 64, rate, shape)
    embedded = dropout.embedding_mask(keys.embedding, 64, rate, shape)
    pairs = {
        "sequences": (first.units[0], first.units[1]),
        "positions": (first.units[:, 1:], first.units[:, :-1]),
        "channels": (first.units[..., 1:], first.units[..., :-1]),
        "kick and units": (first.kick, first.units),
        "blocks": (first.units, second.units),
        "embedding and block": (embedded, first.kick),
        "keys": (first.units, other.units),
    }
    for name, (x, y) in pairs.items():
        assert abs(np.mean(x == y) - 0.5) < 5 * np.sqrt(0.25 / x.size), name


@pytest.mark.parametrize("rate", [1e-9, 1 - 1e-9])
def test_extreme_rates_neither_vanish_nor_divide_by_zero(rate):
    shape = small_config(width=512, flow__units=512).model
    mask = dropout.block_masks(jax.random.split(KEY, 4), 256, rate, shape).units
    zeros = np.mean(np.asarray(mask) == 0)
    assert np.isfinite(mask).all()
    assert 0 < zeros < 1
    assert abs(zeros - rate) < 1e-4


# --- when it is drawn ------------------------------------------------------------------------------------------------


def test_without_dropout_nothing_is_drawn():
    """The program of a step is the same with a key and without, and there is no random number in it."""
    config = small_config()
    params, batch = trained_looking(config.model), random_batch(config)
    programs = [
        str(jax.make_jaxpr(lambda p, key=key: learning.estimate(p, batch, config.model, config.learning, key))(params))
        for key in (None, KEY)
    ]
    assert programs[0] == programs[1]
    state = state_of(params, config)
    assert "threefry" not in loop.train_step.lower(state, batch, config).as_text()
    assert "threefry" in loop.train_step.lower(state, batch, PLAIN).as_text()


def test_a_missing_key_is_told():
    params, batch = trained_looking(PLAIN.model), random_batch(PLAIN)
    with pytest.raises(
        UserError, match=r"learning\.dropout: 0\.3 draws its masks from a key; give .*key=.*set learning\.dropout: 0"
    ):
        learning.estimate(params, batch, PLAIN.model, PLAIN.learning)


@pytest.mark.parametrize("rate", ["1", "-0.1", "true"])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(UserError, match=r"learning\.dropout is .*, but"):
        configuration.parse("", "it", [f"learning.dropout={rate}"])


def test_each_applied_step_has_masks_of_its_own():
    """The first step's learning rate is zero, so two steps see the same parameters. One that is not applied does not count."""
    params, batch = trained_looking(PLAIN.model), random_batch(PLAIN)
    state = state_of(params, PLAIN)

    def step(state, config=PLAIN, proceed=True):
        after, report = loop.train_step(jax.tree.map(jnp.copy, state), batch, config, proceed)
        return after, float(report.info.loss)

    same, unapplied = step(state, proceed=False)
    after, first = step(same)
    _, second = step(after)
    jax.tree.map(np.testing.assert_array_equal, after.params, params)
    assert unapplied == first
    assert abs(first - second) > 1e-3
    _, other_seed = step(state, replace(PLAIN, "run", seed=1))
    assert abs(first - other_seed) > 1e-3


@pytest.mark.slow
def test_a_resumed_run_draws_the_same_masks(tiny, tmp_path):
    options = ("learning.dropout=0.2", "training.steps=6", "training.save_every=3", "sample.tokens=0")
    training.train(tiny("once", *options))
    training.train(tiny("twice", *options), stop_after=4)
    training.train(tiny("twice", *options), resume=True)
    assert_same_run(tmp_path / "once", tmp_path / "twice")
