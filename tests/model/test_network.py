import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax import model
from lior_jax.errors import UserError
from lior_jax.model import network
from tests import dense, oracles
from tests.oracles import (
    EVERYTHING,
    PARTS,
    check_adjoint,
    normal,
    random_batch,
    random_params,
    relaxing,
    small_config,
    to64,
    trained_looking,
)

CONFIG = small_config()
CARRY = small_config(flow__carry_momentum=True, flow__steps=2, flow__step_size=0.6)
RANKLESS = small_config(
    geometry__rank=0, geometry__rotor_layers=0, heads=3, blocks=3, convolution__taps=9, flow__steps=3, flow__step_size=0.5
)
ALL = {name: small_config(**changes) for name, changes in EVERYTHING.items()}
CONFIGS = {"plain": CONFIG, "carry": CARRY, "rankless": RANKLESS} | ALL
RELAXED = {
    name: small_config({"rule": "equilibrium"}, relaxation__steps=5, relaxation__momentum=0.4, **relaxing(changes))
    for name, changes in {
        "relaxed": {},
        "relaxed_hopfield": PARTS["hopfield"],
        "relaxed_curvature": EVERYTHING["rotor_curvature_carry"],
    }.items()
}
CONFIGS |= RELAXED
ALONE = {name: small_config(**changes) for name, changes in PARTS.items()}

run = jax.jit(network.run, static_argnames="config")


# --- the forward pass ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CONFIGS, *ALONE])
def test_logits_are_the_dense_forward_pass(name, float64):
    """Against plain numpy, with every part alone and with all of them; and what is observed on the way."""
    config = (CONFIGS | ALONE)[name]
    tokens, _ = random_batch(config)
    params = to64(random_params(config.model, scale=0.5))
    expected = dense.network(params, tokens, config.model)
    np.testing.assert_allclose(oracles.logits(params, tokens, config=config.model), expected.logits, atol=1e-9)

    s, observed = run(params, tokens, config=config.model)
    np.testing.assert_allclose(s, expected.states[-1], atol=1e-9)
    np.testing.assert_allclose(observed.action, expected.actions, rtol=1e-9)
    assert (observed.moment is None) == (config.model.geometry.frame != "derived")


@pytest.mark.parametrize("name", ["carry", "relaxed", *ALL])
def test_actions_add_up_the_heads(name):
    config = CONFIGS[name]
    tokens, _ = random_batch(config)
    params = random_params(config.model, scale=0.5)
    expected = dense.network(params, tokens, config.model).actions.sum(-1)
    actions = jax.jit(model.actions, static_argnames="config")(params, tokens, config=config.model)
    np.testing.assert_allclose(actions, expected, rtol=1e-4)


def test_float32_is_accurate():
    tokens, _ = random_batch(CONFIG)
    params = trained_looking(CONFIG.model)
    expected = dense.network(params, tokens, CONFIG.model).logits
    np.testing.assert_allclose(oracles.logits(params, tokens, config=CONFIG.model), expected, atol=2e-4)


@pytest.mark.parametrize("name", ["plain", "carry", "relaxed", *ALL])
def test_no_logit_sees_the_future(name):
    """To the last bit: changing one token changes nothing before it, and everything from it on."""
    config = CONFIGS[name]
    tokens, _ = random_batch(config)
    params = trained_looking(config.model)
    before = np.asarray(oracles.logits(params, tokens, config=config.model))
    for t in (1, 4, 6):
        changed = tokens.at[:, t].set((tokens[:, t] + 1) % config.model.vocab_size)
        after = np.asarray(oracles.logits(params, changed, config=config.model))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (after[:, t:] != before[:, t:]).any(-1).all()


@pytest.mark.parametrize("name", ["plain", *ALL])
def test_sequences_do_not_meet(name):
    config = CONFIGS[name]
    tokens, _ = random_batch(config)
    params = trained_looking(config.model)
    before = np.asarray(oracles.logits(params, tokens, config=config.model))
    others = tokens.at[1:].set((tokens[1:] + 3) % config.model.vocab_size)
    after = np.asarray(oracles.logits(params, others, config=config.model))
    np.testing.assert_array_equal(after[0], before[0])
    assert (after[1:] != before[1:]).any(-1).all()


@pytest.mark.parametrize(("name", "length"), [("plain", 1), ("rotor_curvature_carry", 1), ("rotor_curvature_carry", 4)])
def test_a_shorter_window_is_a_prefix(name, length):
    """Kernels are made for a window's length, and do not depend on it."""
    config = CONFIGS[name]
    tokens, _ = random_batch(config)
    params = trained_looking(config.model)
    whole = oracles.logits(params, tokens, config=config.model)
    prefix = oracles.logits(params, tokens[:, :length], config=config.model)
    np.testing.assert_allclose(prefix, whole[:, :length], atol=2e-5)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_coarse_products_stay_close(precision):
    tokens, _ = random_batch(CONFIG)
    params = trained_looking(CONFIG.model)
    expected = dense.network(params, tokens, CONFIG.model).logits
    coarse = oracles.logits(params, tokens, config=CONFIG.model.model_copy(update={"precision": precision}))
    assert coarse.dtype == jnp.float32
    assert np.linalg.norm(coarse - expected) < 0.03 * np.linalg.norm(expected)


# --- the loss --------------------------------------------------------------------------------------------------------


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    tokens, targets = random_batch(CONFIG)
    params = trained_looking(CONFIG.model)
    params = params._replace(readout=jnp.zeros_like(params.readout))
    value, _ = oracles.autodiff(params, tokens, targets, CONFIG)
    np.testing.assert_allclose(value, np.log(CONFIG.model.vocab_size), rtol=1e-6)


def test_loss_is_the_mean_surprise(float64):
    tokens, targets = random_batch(CONFIG)
    params = to64(trained_looking(CONFIG.model))
    logits = dense.network(params, tokens, CONFIG.model).logits
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


def test_readout_loss_and_adjoint():
    rng = np.random.default_rng(0)
    weights, s = normal(rng, 11, 6), normal(rng, 2, 5, 6)
    targets = jnp.asarray(rng.integers(0, 11, (2, 5)))

    def loss(weights, s):
        return jnp.mean(network.cross_entropy(network.readout(weights, s, "float32"), targets))

    def adjoint(weights, s, cotangent):
        _, c_weights, c_s = network.readout_loss_and_adjoint(weights, s, targets, "float32")
        return cotangent * c_weights, cotangent * c_s

    check_adjoint(loss, adjoint, (weights, s), tol=1e-10)
    value, _, _ = network.readout_loss_and_adjoint(weights, s, targets, "float32")
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


def number_of_parameters(c):
    """Leaf by leaf from the configuration."""
    g, long, products = c.geometry, c.convolution.long, c.retrieval.products
    v, d, h, n, r, units = c.vocab_size, c.width, c.heads, g.chart_dim, g.rank, c.flow.units
    m, kernel = n + r, 3 + 3 + 1 + 1 + 1
    layers = 0 if g.frame != "rotor" else g.block - 1 if g.metric == "block_rot" else g.rotor_layers
    head = n + 1 + layers * (n // 2) + n * r + r  # metric
    head += 1 + kernel * c.retrieval.lag_prior + kernel * long + (kernel + 1) * (c.field.evolution != "off")
    head += (d + 3 + (min(4, m - 1 + m % 2) + 1) * (m // 2)) * (c.field.evolution == "master")
    head += (m + d // h + 2) * c.field.project
    head += ("tensor" in products) + (1 + m * m) * ("wedge" in products) + ("spinor" in products)
    head += {"unit": 0, "constitutive": 1, "curvature": g.curvature_terms * (n * n + m + 1)}[g.resilience]
    charts = 2 * h * n * d + 2 * d * d
    potential = {"gated": 2 * units * d + units + 1, "hopfield": units * d + 2}[c.flow.potential] + d
    return 2 * v * d + c.blocks * (c.convolution.taps * d + charts + h * head + potential + d * long)


@pytest.mark.parametrize("name", [*CONFIGS, *ALONE])
def test_number_of_parameters(name):
    """What is carried is none: it is not learned."""
    config = (CONFIGS | ALONE)[name].model
    params = jax.eval_shape(lambda: oracles.initial(config))
    assert model.count(params) == number_of_parameters(config)
    carried = sum(leaf.size for leaf in jax.tree.leaves(params.carried))
    frames, actions = (
        2 * config.geometry.chart_dim**2 * (config.geometry.frame == "derived"),
        3 * config.retrieval.adaptive_order,
    )
    assert carried == config.blocks * config.heads * (frames + actions)
    assert jax.tree.structure(random_params(config)) == jax.tree.structure(params)


@pytest.mark.parametrize("name", ["plain", *ALL])
def test_initial_values(name):
    """Finite, the same for the same key, different for another; the first loss is near ln V."""
    config = CONFIGS[name]
    params, again, other = (oracles.initial(config.model, seed) for seed in (0, 0, 1))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    # A weak type would be a strong one after the first step, and the second would need another program.
    assert all(x.dtype == jnp.float32 and not x.weak_type for x in jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert (np.asarray(params.embedding) != np.asarray(other.embedding)).all()
    assert (np.asarray(params.blocks.query[0]) != np.asarray(params.blocks.query[1])).all()
    tokens, targets = random_batch(config)
    logits = oracles.logits(params, tokens, config=config.model)
    loss = jnp.mean(network.cross_entropy(logits, targets))
    np.testing.assert_allclose(loss, np.log(config.model.vocab_size), atol=0.1)


def test_what_is_carried_starts_neutral():
    """The coordinate axes, nothing accumulated, and the order of the configuration."""
    config = small_config(**PARTS["derived"] | PARTS["adaptive_order"]).model
    frame, state = oracles.initial(config).carried
    identity = np.broadcast_to(
        np.eye(config.geometry.chart_dim), (config.blocks, config.heads, config.geometry.chart_dim, config.geometry.chart_dim)
    )
    for leaf in frame:
        np.testing.assert_array_equal(leaf, identity)
    np.testing.assert_array_equal(state.integral, np.zeros((config.blocks, config.heads)))
    np.testing.assert_array_equal(state.elapsed, np.zeros((config.blocks, config.heads)))
    np.testing.assert_allclose(state.order, np.full((config.blocks, config.heads), 0.7), rtol=1e-6)


def test_initial_kernels_are_as_documented():
    """Memories of the heads from two positions to the whole context; charts of the metric's axes unlike each other."""
    config = small_config(**EVERYTHING["rotor_curvature_carry"]).model
    blocks = oracles.to_numpy(oracles.initial(config)).blocks
    for kernel in (blocks.scores["lag_prior"], blocks.long_convolution.kernel, blocks.field.kernel):
        rates = oracles.softplus(kernel.rate)
        np.testing.assert_allclose(rates[0, [0, -1], 1], [0.5, 1 / config.context], rtol=1e-3)
        np.testing.assert_allclose(rates[..., 2], rates[..., 1], rtol=1e-5)
    np.testing.assert_allclose(dense.logistic(blocks.scores["lag_prior"].order), 0.1, rtol=1e-5)
    stiffness = oracles.softplus(blocks.metric.stiffness[0, 0])
    np.testing.assert_allclose(stiffness, np.geomspace(0.5, 2.0, config.geometry.chart_dim), rtol=1e-3)
    np.testing.assert_allclose(oracles.softplus(blocks.inverse_temperature), 1.0, rtol=1e-5)


@pytest.mark.parametrize("name", ["field", "master", "project", "tensor", "spinor", "constitutive"])
def test_parts_that_start_silent(name):
    """Gates and exponents of zero: at the start, the logits are those of the same parameters without the part."""
    config = ALONE[name]
    tokens, _ = random_batch(config)
    params = oracles.initial(config.model)
    prior = {"lag_prior": params.blocks.scores["lag_prior"]}
    blocks = params.blocks._replace(field=None, scores=prior, resilience=None)
    without = oracles.logits(params._replace(blocks=blocks), tokens, config=CONFIG.model)
    np.testing.assert_allclose(oracles.logits(params, tokens, config=config.model), without, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"geometry__base_metric": oracles.base_metric(5)}], ids=["identity", "base_metric"])
def test_curvature_starts_as_that_of_a_constant_space(changes, float64):
    """Resilience 1 at every point, but for ε, whatever the terms' noise."""
    config = small_config(**PARTS["curvature"], **changes).model
    law = dense.at(oracles.to_numpy(oracles.initial(config)).blocks.resilience, 0)
    points = np.random.default_rng(0).standard_normal((2, 5, config.heads, config.geometry.whitened_dim))
    np.testing.assert_allclose(dense.resilience(law, points, None, config), 1.0, atol=1e-3)
    assert np.ptp(law.forms, axis=1).max() > 0.1  # the terms are not all alike, or they would stay so


MATRICES = {f"blocks.{name}" for name in ("query", "key", "value", "output")} | {"embedding", "readout"}
UNITS = {"gated": ("features", "gates"), "hopfield": ("patterns",)}


@pytest.mark.parametrize("name", ["plain", "relaxed_hopfield", *ALL])
def test_decay_mask_is_the_matrices(name):
    """Neither metrics, kernels, gates and forms, nor what is carried."""
    params = jax.eval_shape(lambda: oracles.initial(CONFIGS[name].model))
    mask = model.decay_mask(params)
    units = {f"blocks.hamiltonian.potential.{leaf}" for leaf in UNITS[CONFIGS[name].model.flow.potential]}
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    assert {leaf for leaf, decayed in oracles.named_leaves(mask).items() if decayed} == MATRICES | units
