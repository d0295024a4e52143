"""Equilibrium propagation against the implicit function theorem, and its modes against what they should do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax import model
from lior_jax.config import replace
from lior_jax.learning import nudge
from lior_jax.model import block, operators
from lior_jax.physics import relaxation
from lior_jax.training import loop
from lior_jax.training.step import state_of
from tests import dense, implicit, oracles
from tests.oracles import (
    EVERYTHING,
    PARTS,
    agreement,
    assert_trees_close,
    named_leaves,
    random_batch,
    relaxing,
    small_config,
    to64,
    trained_looking,
    whole_agreement,
)


def config_of(changes=None, **learning):
    """Relaxed to about 1e-5 in both phases."""
    return small_config({"rule": "equilibrium"} | learning, **{"relaxation__steps": 24} | relaxing(changes or {}))


PLAIN = config_of()
TINY = {"blocks": 2, "geometry__rotor_layers": 1, "width": 6, "convolution__taps": 2, "relaxation__steps": 80}
METRIC = "blocks.metric."

states = jax.jit(implicit.states, static_argnums=2)


def is_zero(tree):
    return not any(np.asarray(x).any() for x in jax.tree.leaves(tree))


def oracle(params, batch, config, cost=implicit.cross_entropy):
    with jax.enable_x64(True):
        return implicit.gradient(to64(params), *batch, config, cost)


# --- the estimate is the gradient ------------------------------------------------------------------------------------


EACH = {name: name for name in ("plain", "action", "hopfield", *EVERYTHING)}


@pytest.mark.parametrize("name", oracles.cases(EACH, "action", "hopfield", "rotor_curvature_carry"))
def test_estimate_is_the_implicit_gradient(name):
    """Every leaf in float32, of all parts at once too; leaves that are a millionth of the whole excepted."""
    weight = {} if name == "plain" else {"action_weight": 0.3}
    config = config_of((PARTS | EVERYTHING).get(name), **weight)
    params, batch = trained_looking(config.model), random_batch(config)
    estimate, info = oracles.estimate(params, batch, config=config)
    cost, gradient = oracle(params, batch, config)
    assert info.reversibility < 1e-4
    np.testing.assert_allclose(info.loss + config.learning.action_weight * info.action.sum(), cost, rtol=1e-4)
    wrong = {k: x for k, x in agreement(estimate, gradient).items() if x.share > 1e-6 and x.cosine < 0.999}
    assert not wrong, wrong
    assert whole_agreement(estimate, gradient).relative_error < 1e-3


@pytest.mark.slow
def test_agreement_follows_the_residual(float64):
    """More steps, a better gradient; at a residual of 1e-4 every leaf's cosine is above 0.99."""
    params, batch = to64(trained_looking(PLAIN.model)), random_batch(PLAIN)
    _, gradient = implicit.gradient(params, *batch, PLAIN)
    errors, residuals = [], []
    for steps in (3, 12, 48):
        config = replace(PLAIN, "model.relaxation", steps=steps)
        estimate, info = oracles.estimate(params, batch, config=config)
        errors.append(whole_agreement(estimate, gradient).relative_error)
        residuals.append(float(info.reversibility))
        if residuals[-1] < 1e-4:
            assert min(x.cosine for x in agreement(estimate, gradient).values()) >= 0.99
    assert all(np.diff(errors) < 0), errors
    assert all(np.diff(residuals) < 0), residuals
    assert errors[0] > 0.02
    assert errors[-1] < 1e-5
    assert min(residuals) < 1e-7


@pytest.mark.parametrize(("mode", "low", "high"), [("one_sided", 1.7, 2.4), ("random_sign", 1.7, 2.4), ("centred", 3.4, 4.7)])
@pytest.mark.slow
def test_order_of_the_nudge(mode, low, high, float64):
    """Half the nudge: half the error one-sided, to whichever side; a quarter centred. In float64, fully relaxed."""
    base = config_of(TINY)
    params, batch = to64(trained_looking(base.model)), random_batch(base, 2, 5)
    _, gradient = implicit.gradient(params, *batch, base)
    errors = []
    for size in (0.02, 0.01):
        estimate, _ = oracles.estimate(params, batch, config=config_of(TINY, nudge=mode, nudge_size=size))
        errors.append(whole_agreement(estimate, gradient).relative_error)
    assert low < errors[0] / errors[1] < high, errors
    assert errors[0] < (0.1 if mode == "centred" else 0.3)


@pytest.mark.slow
def test_random_sign_errs_to_both_sides(float64):
    """Where its sign is negative it errs against what one-sided nudging errs by; the sum of both errs by far less."""
    base, size = config_of(TINY), {"nudge_size": 0.01}
    params = to64(trained_looking(base.model))
    seed = next(s for s in range(20) if nudge.sides_of("random_sign", random_batch(base, 1, 5, s)[0])[0].item() < 0)
    batch = random_batch(base, 1, 5, seed)
    _, gradient = implicit.gradient(params, *batch, base)
    errors = []
    for mode in ("random_sign", "one_sided"):
        estimate, _ = oracles.estimate(params, batch, config=config_of(TINY, nudge=mode, **size))
        errors.append(jax.tree.map(jnp.subtract, estimate, gradient))
    both = jax.tree.map(jnp.add, *errors)
    norms = [np.sqrt(sum(np.sum(x * x) for x in named_leaves(tree).values())) for tree in (*errors, both)]
    assert norms[2] < 0.1 * min(norms[:2])


@pytest.mark.slow
def test_chunks_change_nothing():
    """The pull that follows the state included, whose loss is a mean over all sequences."""
    config = config_of(EVERYTHING["derived_blocks_constitutive"], pull="force", action_weight=0.1, nudge="random_sign")
    params, batch = trained_looking(config.model), random_batch(config)
    whole, info = oracles.estimate(params, batch, config=config)
    pieces, pieces_info = oracles.estimate(params, batch, config=replace(config, "learning", chunk=1))
    assert_trees_close(pieces, whole, 2e-3)
    same = {"reversibility": info.reversibility, "residual": info.residual}
    assert_trees_close(pieces_info._replace(**same), info, 1e-4)


def test_bfloat16_products():
    params, batch = trained_looking(PLAIN.model), random_batch(PLAIN)
    _, gradient = oracle(params, batch, PLAIN)
    estimate, _ = oracles.estimate(params, batch, config=replace(PLAIN, "model", precision="bfloat16"))
    assert whole_agreement(estimate, gradient).cosine >= 0.999


# --- diagnostics -----------------------------------------------------------------------------------------------------


def test_info():
    config = config_of(EVERYTHING["derived_blocks_constitutive"])
    params, batch = trained_looking(config.model), random_batch(config)
    estimate, info = oracles.estimate(params, batch, config=config)
    np.testing.assert_allclose(info.loss, jax.jit(model.loss, static_argnums=3)(params, *batch, config.model), rtol=1e-5)
    norm = np.sqrt(sum(np.sum(x * x) for x in named_leaves(estimate).values()))
    np.testing.assert_allclose(info.gradient_norm, norm, rtol=1e-5)
    assert info.residual.shape == info.nudge.shape == (config.model.blocks,)
    assert info.reversibility == info.residual.max()
    expected = dense.network(params, batch[0], config.model)
    np.testing.assert_allclose(info.action, expected.actions.sum(-1), rtol=1e-4)
    state, old = info.carried.action, params.carried.action
    np.testing.assert_allclose(state.integral, old.integral + expected.actions, rtol=1e-5)
    np.testing.assert_allclose(state.elapsed, old.elapsed + 1, rtol=1e-6)
    assert (np.asarray(info.carried.frame.covariance) != np.asarray(params.carried.frame.covariance)).any()
    assert is_zero(estimate.carried)


@pytest.mark.parametrize("steps", [{"relaxation__steps": 2}, {"nudged_steps": 2}], ids=["free", "nudged"])
def test_a_phase_that_has_not_settled_is_told(steps):
    """Whichever of the two: its residual is the figure that stops a run."""
    of_learning = "nudged_steps" in steps
    config = config_of(nudged_steps=2) if of_learning else config_of(steps, nudged_steps=24)
    params, batch = trained_looking(config.model), random_batch(config)
    _, info = oracles.estimate(params, batch, config=config)
    assert info.reversibility > 1e-2
    _, settled = oracles.estimate(params, batch, config=PLAIN)
    assert settled.reversibility < 1e-4


def test_positions_without_a_pull_stay_finite():
    params, batch = trained_looking(PLAIN.model), random_batch(PLAIN)
    params = params._replace(readout=jnp.zeros_like(params.readout))
    estimate, info = oracles.estimate(params, batch, config=PLAIN)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((estimate, info)))
    assert np.abs(estimate.readout).max() > 1e-3
    assert max(np.abs(x).max() for x in jax.tree.leaves((estimate.blocks, estimate.embedding))) < 1e-9


# --- modes of the nudge ----------------------------------------------------------------------------------------------


def test_off_changes_nothing():
    """A gradient that is zero to the last bit."""
    config = config_of(EVERYTHING["derived_blocks_constitutive"], pull="off")
    params, batch = trained_looking(config.model), random_batch(config)
    estimate, info = oracles.estimate(params, batch, config=config)
    assert is_zero(estimate)
    assert info.gradient_norm == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(info))


@pytest.mark.parametrize("update", ["all", "geometry"])
def test_off_changes_nothing_whatever_the_rounding(update, monkeypatch):
    """Compiled in full, two runs without a push may differ in their last bits, and Adam makes whole steps of anything. With
    `geometry` as well: the difference of two actions is rounding too."""
    relax_pair = relaxation.relax_pair

    def rounded(*arguments):
        pair, residuals = relax_pair(*arguments)
        return pair._replace(slope=jax.tree.map(lambda x: x + 1e-7, pair.slope)), residuals

    monkeypatch.setattr(relaxation, "relax_pair", rounded)
    config = config_of(PARTS["derived"], pull="off", update=update, nudge_size=2e-3)
    params, batch = trained_looking(config.model), random_batch(config)
    config = replace(config, "optimizer", warmup_steps=0, weight_decay=0.5)
    state = state_of(jax.tree.map(jnp.copy, params), config)
    for _ in range(3):
        state, report = loop.train_step(state, batch, config)
        assert report.sound
    assert state.step == 3
    jax.tree.map(np.testing.assert_array_equal, state.params, params)


@pytest.mark.slow
def test_force_at_every_step_is_the_gradient_too(float64):
    """It bends the energy by the loss itself, so half the nudge is a quarter of the error, and the error is its own."""
    base = config_of(TINY)
    params, batch = to64(trained_looking(base.model)), random_batch(base, 2, 5)
    _, gradient = implicit.gradient(params, *batch, base)
    estimates = {
        (pull, size): oracles.estimate(params, batch, config=config_of(TINY, pull=pull, nudge_size=size))[0]
        for pull in ("force", "cross_entropy")
        for size in (0.04, 0.02)
    }
    errors = [whole_agreement(estimates["force", size], gradient).relative_error for size in (0.04, 0.02)]
    assert 3.4 < errors[0] / errors[1] < 4.7, errors
    assert whole_agreement(estimates["force", 0.04], estimates["cross_entropy", 0.04]).relative_error > 1e-6


@pytest.mark.slow
def test_force_follows_the_state_in_the_last_block_alone(float64):
    """With one block: both ends are minima of the energy with the loss itself in it, at a nudge that is large."""
    config = config_of(TINY | {"blocks": 1}, pull="force", nudge_size=0.3, nudge="one_sided")
    params, (tokens, targets) = to64(trained_looking(config.model)), random_batch(config, 1, 1)
    estimate, info = oracles.estimate(params, (tokens, targets), config=config)
    [(s_in, free, own)] = states(params, tokens, config)
    push, epsilon = block.kick(own, s_in, config.model)[0], float(info.nudge[0])

    def nudged(s):
        return implicit.energy(own.hamiltonian, s, s_in[0, 0], push[0, 0]) + epsilon * implicit.cross_entropy(
            params, s[None, None], targets
        )

    newton = jax.jit(lambda s: s - jnp.linalg.solve(jax.hessian(nudged)(s), jax.grad(nudged)(s)))
    s = free[0, 0]
    for _ in range(20):
        s = newton(s)
    slopes = (jax.grad(implicit.energy)(own.hamiltonian, x, s_in[0, 0], push[0, 0]) for x in (free[0, 0], s))
    at_free, at_nudged = (slope.potential.bias for slope in slopes)
    difference = at_nudged - at_free
    np.testing.assert_allclose(estimate.blocks.hamiltonian.potential.bias[0], difference / epsilon, rtol=1e-5, atol=1e-9)


def to_target(params, s, targets):
    """Half the mean square distance of the normalised state to its target's normalised embedding, a constant."""

    def hat(x):
        return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)

    return jnp.mean((hat(s) - hat(jax.lax.stop_gradient(params.embedding)[targets])) ** 2) / 2


@pytest.mark.slow
def test_target_embedding_pulls_to_the_targets_point():
    """What lies below the readout learns to come near the target's embedding; the readout learns the loss of what it sees."""
    config = config_of(PARTS["derived"], pull="target_embedding")
    params, batch = trained_looking(config.model), random_batch(config)
    estimate, info = oracles.estimate(params, batch, config=config)
    _, gradient = oracle(params, batch, config, to_target)
    _, of_loss = oracle(params, batch, config)
    assert_trees_close(estimate.readout, of_loss.readout, 1e-4)
    assert_trees_close(estimate._replace(readout=None), gradient._replace(readout=None), 5e-3)
    np.testing.assert_allclose(info.loss, jax.jit(model.loss, static_argnums=3)(params, *batch, config.model), rtol=1e-5)


@pytest.mark.parametrize("name", ["plain", "derived"])
@pytest.mark.slow
def test_geometry_alone_moves_by_the_difference_of_the_action(name):
    """`[ΔLIoR(s₊) − ΔLIoR(s₋)] / 2ε` by autodiff of the actions of literal nudged minima, the metric's leaves being free."""
    config = config_of(PARTS.get(name, {}) | {"blocks": 1}, update="geometry")
    params, batch = trained_looking(config.model), random_batch(config, 2, 4)
    estimate, _ = oracles.estimate(params, batch, config=config)
    moved = {leaf for leaf, x in named_leaves(estimate).items() if x.any()}
    angles = {METRIC + "angles"} if config.model.geometry.frame == "rotor" else set()
    assert moved == {METRIC + leaf for leaf in ("stiffness", "scale", "low_rank", "low_rank_stiffness")} | angles

    with jax.enable_x64(True):
        expected = _geometry_oracle(to64(params), batch, config)
    assert_trees_close(estimate.blocks.metric, expected, 5e-3)


def _geometry_oracle(params, batch, config):
    [(s_in, free, own)] = states(params, batch[0], config)
    c_s = jax.grad(lambda s: implicit.cross_entropy(params, s, batch[1]))(free)
    push, _ = block.kick(own, s_in, config.model)
    bend = jax.vmap(jax.vmap(jax.hessian(implicit.energy, argnums=1), (None, 0, 0, 0)), (None, 0, 0, 0))
    response = -jnp.linalg.solve(bend(own.hamiltonian, free, s_in, push), c_s[..., None])[..., 0]

    def action(metric, s):
        moving = params._replace(blocks=params.blocks._replace(metric=metric))
        made = jax.tree.map(lambda x: x[0], operators.prepare(moving, s.shape[1], config.model))
        return jnp.sum(block.action(made, s_in, s, config.model))

    def difference(metric):
        return (action(metric, free + 1e-5 * response) - action(metric, free - 1e-5 * response)) / 2e-5

    return jax.grad(difference)(params.blocks.metric)


def test_geometry_alone_is_all_that_a_step_moves():
    config = config_of(update="geometry")
    params, batch = trained_looking(config.model), random_batch(config)
    config = replace(config, "optimizer", warmup_steps=0, weight_decay=0.5)
    state, _ = loop.train_step(state_of(jax.tree.map(jnp.copy, params), config), batch, config)
    for leaf, before in named_leaves(params).items():
        changed = (named_leaves(state.params)[leaf] != before).any()
        assert changed == leaf.startswith(METRIC), leaf
