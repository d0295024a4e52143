"""The estimate of the echo against automatic differentiation of the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lior_jax import learning
from lior_jax.physics.geometry import max_rotor_layers
from tests import oracles
from tests.oracles import (
    Agreement,
    agreement,
    assert_trees_close,
    random_batch,
    small_config,
    to64,
    trained_looking,
    whole_agreement,
)

PLAIN = small_config()
CARRY = small_config(carry_momentum=True, leapfrog_steps=2, step_size=0.6)
BOTH = pytest.mark.parametrize("config", [PLAIN, CARRY], ids=["plain", "carry"])

# Two float32 gradients of the same loss differ by their rounding, about 1e-7 of the whole gradient. A leaf whose gradient is
# smaller than this share of the whole must be as small in the estimate, but has no direction to compare.
NOISE = 1e-5


def assert_is_the_gradient(estimate, gradient, cosine=0.9999, relative_error=5e-3):
    def good(x: Agreement) -> bool:
        if x.share < NOISE:
            return x.relative_error * (x.share or 1.0) < NOISE
        return x.cosine >= cosine and x.relative_error <= relative_error

    wrong = {name: x for name, x in agreement(estimate, gradient).items() if not good(x)}
    assert not wrong, wrong


def estimate_and_oracle(params, batch, config):
    estimate, info = oracles.estimate(params, batch, config=config)
    loss, gradient = oracles.autodiff(params, *batch, config=config.model)
    return estimate, info, gradient, loss


# --- the estimate is the gradient ------------------------------------------------------------------------------------


@st.composite
def configs(draw):
    heads, n = draw(st.integers(1, 3)), draw(st.integers(2, 6))
    steps = draw(st.integers(1, 3))
    return small_config(
        heads=heads,
        width=heads * draw(st.integers(3, 6)),
        chart_dim=n,
        metric_rank=draw(st.integers(0, 2)),
        rotor_layers=draw(st.integers(0, min(max_rotor_layers(n), 3))),
        taps=draw(st.integers(1, 9)),
        potential_units=draw(st.integers(1, 20)),
        leapfrog_steps=steps,
        step_size=draw(st.sampled_from([0.3, 0.7, 1.0])) if steps < 3 else 0.5,
        blocks=draw(st.integers(1, 3)),
        carry_momentum=draw(st.booleans()),
    )


@settings(max_examples=6)
@given(config=configs(), length=st.integers(2, 8), seed=st.integers(0, 999))
@example(config=small_config(blocks=3, metric_rank=0, rotor_layers=0, leapfrog_steps=3, step_size=0.5), length=7, seed=0)
@example(config=small_config(blocks=3, carry_momentum=True, heads=3, taps=9, leapfrog_steps=2), length=5, seed=1)
def test_estimate_is_the_gradient(config, length, seed):
    """Every leaf, in float32, for random shapes and parameters without symmetry."""
    params, batch = trained_looking(config.model, seed), random_batch(config, 2, length, seed)
    estimate, _, gradient, _ = estimate_and_oracle(params, batch, config)
    assert jax.tree.map(jnp.shape, estimate) == jax.tree.map(jnp.shape, params)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(estimate))
    assert_is_the_gradient(estimate, gradient)


@BOTH
def test_estimate_is_the_gradient_at_init(config):
    """Where some gradients vanish by symmetry or nearly so."""
    estimate, _, gradient, _ = estimate_and_oracle(oracles.initial(config.model), random_batch(config), config)
    assert_is_the_gradient(estimate, gradient)


@BOTH
def test_estimate_is_the_gradient_after_training(config):
    """50 steps on a short cycle of tokens. The loss must fall, and the parameters that come out are no longer random."""
    cycle = jnp.asarray(np.tile(np.arange(5, dtype=np.int32), 6))
    windows = jnp.stack([cycle[start : start + 8] for start in range(3)])
    batch = windows[:, :-1], windows[:, 1:]
    config = config.model_copy(
        update={"optimizer": config.optimizer.model_copy(update={"warmup_steps": 5, "learning_rate": 1e-2})}
    )
    params = oracles.initial(config.model)
    optimizer = learning.make_optimizer(config)
    update, state = jax.jit(optimizer.update), optimizer.init(params)
    losses = []
    for _ in range(50):
        gradient, info = oracles.estimate(params, batch, config=config)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(info.loss))
    assert losses[-1] < 0.5 * losses[0]
    estimate, _, gradient, _ = estimate_and_oracle(params, random_batch(config, length=7), config)
    assert_is_the_gradient(estimate, gradient)


@pytest.mark.parametrize(("mode", "low", "high"), [("one_sided", 1.7, 2.4), ("centred", 3.4, 4.7)])
def test_order_of_the_nudge(mode, low, high, float64):
    """Half the nudge: half the error one-sided, a quarter centred. In float64, where rounding hides nothing; with carried
    momentum, where the rebuilt states err too."""
    small = {"blocks": 2, "rotor_layers": 1, "width": 6, "taps": 2, "carry_momentum": True}
    base = small_config(**small)
    params, batch = to64(trained_looking(base.model)), random_batch(base, 2, 5)
    _, gradient = oracles.autodiff(params, *batch, config=base.model)
    errors = []
    for size in (0.01, 0.005):
        estimate, _ = oracles.estimate(params, batch, config=small_config({"nudge": mode, "nudge_size": size}, **small))
        errors.append(whole_agreement(estimate, gradient).relative_error)
    assert low < errors[0] / errors[1] < high, errors
    assert errors[0] < (0.1 if mode == "one_sided" else 0.01)


@BOTH
def test_one_sided_estimate_is_close(config):
    """Its bias is O(ε), with ε₀ = 1e-3."""
    one_sided = config.model_copy(update={"learning": config.learning.model_copy(update={"nudge": "one_sided"})})
    estimate, _, gradient, _ = estimate_and_oracle(trained_looking(config.model), random_batch(config), one_sided)
    assert_is_the_gradient(estimate, gradient, cosine=0.999, relative_error=3e-2)


# --- precision and memory --------------------------------------------------------------------------------------------


@BOTH
def test_chunks_change_nothing(config):
    params, batch = trained_looking(config.model), random_batch(config)
    whole, info = oracles.estimate(params, batch, config=config)
    chunked = config.model_copy(update={"learning": config.learning.model_copy(update={"chunk": 1})})
    pieces, pieces_info = oracles.estimate(params, batch, config=chunked)
    # The rounding of the nudged runs, amplified by 1 / ε.
    assert_trees_close(pieces, whole, 1e-4)
    assert_trees_close(pieces_info._replace(reversibility=info.reversibility), info, 1e-5)
    np.testing.assert_allclose(pieces_info.reversibility, info.reversibility, atol=2e-5)


def test_bfloat16_products():
    """The gradient of the float32 loss, at the default nudge. The products see mean and slope, so 8 bits are enough."""
    params, batch = trained_looking(PLAIN.model), random_batch(PLAIN)
    _, gradient = oracles.autodiff(params, *batch, config=PLAIN.model)
    estimate, _ = oracles.estimate(params, batch, config=small_config(precision="bfloat16"))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(estimate))
    assert whole_agreement(estimate, gradient).cosine >= 0.9995


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only a CPU has no TF32")
def test_tf32_is_float32_on_a_cpu():
    params, batch = trained_looking(PLAIN.model), random_batch(PLAIN)
    full, _ = oracles.estimate(params, batch, config=PLAIN)
    fast, _ = oracles.estimate(params, batch, config=small_config(precision="tf32"))
    assert_trees_close(fast, full, 1e-4)


# --- diagnostics -----------------------------------------------------------------------------------------------------


@BOTH
def test_info(config):
    params, batch = trained_looking(config.model), random_batch(config)
    estimate, info, _, loss = estimate_and_oracle(params, batch, config)
    np.testing.assert_allclose(info.loss, loss, rtol=1e-5)
    norm = np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(estimate)))
    np.testing.assert_allclose(info.gradient_norm, norm, rtol=1e-5)
    assert 0 <= info.reversibility <= 1e-4
    assert info.nudge.shape == info.action.shape == (config.model.blocks,)
    _, states = oracles.dense_network(params, batch[0], config.model)
    np.testing.assert_allclose(info.action, oracles.dense_action(params, states, config.model), rtol=1e-4)


@BOTH
def test_nudge_is_relative_to_the_state(config):
    """At the top the pull is the loss's alone, so ε follows in closed form; below it scales with ε₀."""
    params, batch = trained_looking(config.model), random_batch(config)
    _, info = oracles.estimate(params, batch, config=config)
    default = config.learning.nudge_size
    larger = config.learning.model_copy(update={"nudge_size": 2 * default})
    _, twice = oracles.estimate(params, batch, config=config.model_copy(update={"learning": larger}))
    assert (info.nudge > 0).all()
    np.testing.assert_allclose(twice.nudge, 2 * info.nudge, rtol=1e-2)

    logits, states = oracles.dense_network(params, batch[0], config.model)
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    pull = probability - np.eye(config.model.vocab_size)[np.asarray(batch[1])]
    pull = pull @ np.asarray(params.readout, np.float64) / batch[1].size
    s, s_hat = states[-1], oracles.rms_hat(states[-1])
    c_s = (pull - s_hat * np.mean(pull * s_hat, -1, keepdims=True)) / np.sqrt(np.mean(s * s, -1, keepdims=True) + 1e-6)
    epsilon = default * np.linalg.norm(s, axis=-1) / np.linalg.norm(c_s, axis=-1)
    np.testing.assert_allclose(info.nudge[-1], epsilon.mean(), rtol=1e-3)


def test_reversibility_measures_the_rebuilt_state():
    """A flow with larger forces loses more digits on the way back; a wrong way back would lose all of them."""
    params, batch = trained_looking(CARRY.model), random_batch(CARRY)
    _, info = oracles.estimate(params, batch, config=CARRY)
    _, one_sided = oracles.estimate(
        params, batch, config=CARRY.model_copy(update={"learning": CARRY.learning.model_copy(update={"nudge": "one_sided"})})
    )
    assert 0 < info.reversibility < 1e-4
    assert 0 < one_sided.reversibility < 1e-4


# --- positions without a pull ----------------------------------------------------------------------------------------


@BOTH
def test_no_pull_at_all(config):
    """A readout of zero has a gradient itself, and gives none to anything else."""
    params, batch = trained_looking(config.model), random_batch(config)
    params = params._replace(readout=jnp.zeros_like(params.readout))
    estimate, info, gradient, _ = estimate_and_oracle(params, batch, config)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((estimate, info)))
    assert_trees_close(estimate, gradient, 1e-4)
    # Two runs that are not pushed apart differ by rounding at most, and that is divided by a large ε.
    assert max(np.abs(x).max() for x in jax.tree.leaves((estimate.blocks, estimate.embedding))) < 1e-9


@BOTH
def test_some_positions_without_a_pull(config):
    """A readout so large that the softmax is one-hot to the last bit: where it is right, λ is exactly zero."""
    params, (tokens, targets) = trained_looking(config.model), random_batch(config)
    params = params._replace(readout=100 * params.readout)
    best = jnp.argmax(oracles.logits(params, tokens, config=config.model), -1)
    targets = targets.at[:, ::2].set(best[:, ::2])
    estimate, info, gradient, _ = estimate_and_oracle(params, (tokens, targets), config)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((estimate, info)))
    assert_is_the_gradient(estimate, gradient)
