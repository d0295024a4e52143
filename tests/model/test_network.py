import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax import model
from lior_jax.errors import UserError
from lior_jax.model import network
from tests import oracles
from tests.oracles import check_adjoint, normal, random_batch, small_config, to64, trained_looking

CONFIG = small_config()
CARRY = small_config(carry_momentum=True, leapfrog_steps=2, step_size=0.6)
RANKLESS = small_config(metric_rank=0, rotor_layers=0, heads=3, blocks=3, taps=9, leapfrog_steps=3, step_size=0.5)


# --- the forward pass ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, CARRY, RANKLESS])
def test_logits_are_the_dense_forward_pass(config, float64):
    """Against plain numpy: dense metrics, displacements one by one, every half-kick."""
    tokens, _ = random_batch(config)
    params = to64(trained_looking(config.model))
    expected, _ = oracles.dense_network(params, tokens, config.model)
    np.testing.assert_allclose(oracles.logits(params, tokens, config=config.model), expected, atol=1e-9)


def test_float32_is_accurate():
    tokens, _ = random_batch(CONFIG)
    params = trained_looking(CONFIG.model)
    expected, _ = oracles.dense_network(params, tokens, CONFIG.model)
    np.testing.assert_allclose(oracles.logits(params, tokens, config=CONFIG.model), expected, atol=2e-4)


@pytest.mark.parametrize("config", [CONFIG, CARRY])
def test_no_logit_sees_the_future(config):
    """To the last bit: changing one token changes nothing before it, and everything from it on."""
    tokens, _ = random_batch(config)
    params = trained_looking(config.model)
    before = np.asarray(oracles.logits(params, tokens, config=config.model))
    for t in (1, 4, 6):
        changed = tokens.at[:, t].set((tokens[:, t] + 1) % config.model.vocab_size)
        after = np.asarray(oracles.logits(params, changed, config=config.model))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (after[:, t:] != before[:, t:]).any(-1).all()


def test_sequences_do_not_meet():
    tokens, _ = random_batch(CONFIG)
    params = trained_looking(CONFIG.model)
    before = np.asarray(oracles.logits(params, tokens, config=CONFIG.model))
    others = tokens.at[1:].set((tokens[1:] + 3) % CONFIG.model.vocab_size)
    after = np.asarray(oracles.logits(params, others, config=CONFIG.model))
    np.testing.assert_array_equal(after[0], before[0])
    assert (after[1:] != before[1:]).any(-1).all()


@pytest.mark.parametrize("length", [1, 4])
def test_a_shorter_window_is_a_prefix(length):
    tokens, _ = random_batch(CONFIG)
    params = trained_looking(CONFIG.model)
    whole = oracles.logits(params, tokens, config=CONFIG.model)
    prefix = oracles.logits(params, tokens[:, :length], config=CONFIG.model)
    np.testing.assert_allclose(prefix, whole[:, :length], atol=1e-5)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_coarse_products_stay_close(precision):
    tokens, _ = random_batch(CONFIG)
    params = trained_looking(CONFIG.model)
    expected, _ = oracles.dense_network(params, tokens, CONFIG.model)
    coarse = oracles.logits(params, tokens, config=CONFIG.model.model_copy(update={"precision": precision}))
    assert coarse.dtype == jnp.float32
    assert np.linalg.norm(coarse - expected) < 0.03 * np.linalg.norm(expected)


# --- the loss --------------------------------------------------------------------------------------------------------


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    tokens, targets = random_batch(CONFIG)
    params = trained_looking(CONFIG.model)
    params = params._replace(readout=jnp.zeros_like(params.readout))
    value, _ = oracles.autodiff(params, tokens, targets, config=CONFIG.model)
    np.testing.assert_allclose(value, np.log(CONFIG.model.vocab_size), rtol=1e-6)


def test_loss_is_the_mean_surprise(float64):
    tokens, targets = random_batch(CONFIG)
    params = to64(trained_looking(CONFIG.model))
    logits, _ = oracles.dense_network(params, tokens, CONFIG.model)
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    surprise = -np.log(np.take_along_axis(probability, np.asarray(targets)[..., None], -1)[..., 0])
    losses = jax.jit(model.token_losses, static_argnums=3)(params, tokens, targets, CONFIG.model)
    np.testing.assert_allclose(losses, surprise, atol=1e-9)
    value = jax.jit(model.loss, static_argnums=3)(params, tokens, targets, CONFIG.model)
    np.testing.assert_allclose(value, surprise.mean(), atol=1e-9)


def test_huge_logits_do_not_overflow():
    logits = jnp.array([[[1e4, 0.0, -1e4]]])
    np.testing.assert_allclose(network.cross_entropy(logits, jnp.array([[2]])), 2e4)
    np.testing.assert_allclose(network.cross_entropy(logits, jnp.array([[0]])), 0.0)


# --- adjoints of the ends --------------------------------------------------------------------------------------------


def test_readout_loss_adjoint():
    rng = np.random.default_rng(0)
    weights, s = normal(rng, 11, 6), normal(rng, 2, 5, 6)
    targets = jnp.asarray(rng.integers(0, 11, (2, 5)))

    def loss(weights, s):
        return jnp.mean(network.cross_entropy(network.readout(weights, s, "float32"), targets))

    def adjoint(weights, s, cotangent):
        _, c_weights, c_s = network.readout_loss_adjoint(weights, s, targets, "float32")
        return cotangent * c_weights, cotangent * c_s

    check_adjoint(loss, adjoint, (weights, s), tol=1e-10)
    value, _, _ = network.readout_loss_adjoint(weights, s, targets, "float32")
    np.testing.assert_allclose(value, loss(weights, s), rtol=1e-6)


def test_embed_adjoint():
    """With tokens that occur often, and tokens that do not occur."""
    embedding = normal(np.random.default_rng(1), 7, 3)
    tokens = jnp.array([[1, 1, 4, 1], [6, 4, 0, 0]])

    def adjoint(embedding, cotangent):
        return (network.embed_adjoint(embedding, tokens, cotangent),)

    check_adjoint(lambda embedding: network.embed(embedding, tokens), adjoint, (embedding,), tol=1e-12)


# --- parameters ------------------------------------------------------------------------------------------------------


def test_init_needs_a_vocabulary():
    with pytest.raises(UserError, match=re.escape("model.vocab_size is not set")):
        model.init(jax.random.key(0), small_config(vocab_size=None).model)


@pytest.mark.parametrize("config", [CONFIG, RANKLESS])
def test_number_of_parameters(config):
    c = config.model
    v, d, h, n, r, units = c.vocab_size, c.width, c.heads, c.chart_dim, c.metric_rank, c.potential_units
    metric = n + 1 + c.rotor_layers * (n // 2) + n * r + r
    charts = 2 * h * n * d + 2 * d * d
    potential = 2 * units * d + units + 1 + d
    expected = 2 * v * d + c.blocks * (c.taps * d + charts + h * metric + 3 * h + potential)
    assert model.count(jax.eval_shape(lambda: oracles.initial(c))) == expected


def test_initial_values():
    """Finite, the same for the same key, different for another; the first loss is near ln V."""
    params, again, other = (oracles.initial(CONFIG.model, seed) for seed in (0, 0, 1))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert (np.asarray(params.embedding) != np.asarray(other.embedding)).all()
    assert (np.asarray(params.blocks.query[0]) != np.asarray(params.blocks.query[1])).all()
    value, _ = oracles.autodiff(params, *random_batch(CONFIG), config=CONFIG.model)
    np.testing.assert_allclose(value, np.log(CONFIG.model.vocab_size), atol=0.1)


def test_initial_couplings_are_positive_as_documented():
    params = oracles.initial(CONFIG.model)
    rates = np.log1p(np.exp(params.blocks.couplings.lag_rate[0]))
    np.testing.assert_allclose(rates[[0, -1]], [0.5, 1 / CONFIG.model.context], rtol=1e-3)
    stiffness = np.log1p(np.exp(params.blocks.metric.stiffness[0, 0]))
    np.testing.assert_allclose(stiffness, np.geomspace(0.5, 2.0, CONFIG.model.chart_dim), rtol=1e-3)


def test_decay_mask_is_the_matrices():
    params = jax.eval_shape(lambda: oracles.initial(CONFIG.model))
    mask = model.decay_mask(params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    decayed = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, leaf in jax.tree_util.tree_leaves_with_path(mask)
        if leaf
    }
    charts = {f"blocks.{name}" for name in ("query", "key", "value", "output", "hamiltonian.units")}
    assert decayed == charts | {"embedding", "readout"}
