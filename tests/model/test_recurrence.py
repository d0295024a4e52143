"""The recurrence against the parallel network, every part alone and with all of them, up to the context and past it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lior_jax.model import Params, block, network, operators, recurrence
from lior_jax.physics import kernel
from lior_jax.physics.numerics import rms_normalize
from lior_jax.physics.scores import LagPrior
from lior_jax.physics.taps import taps
from lior_jax.settings import ModelConfig
from tests import oracles
from tests.oracles import EVERYTHING, PARTS, random_params, small_config, to64

CONTEXT = 6
CONFIGS = {
    "plain": small_config(context=CONTEXT),
    "carry": small_config(context=CONTEXT, flow__carry_momentum=True, flow__steps=2, flow__step_size=0.6),
    "rankless": small_config(
        context=CONTEXT,
        geometry__rank=0,
        geometry__rotor_layers=0,
        heads=3,
        convolution__taps=9,
        flow__steps=3,
        flow__step_size=0.5,
    ),
    "one_tap": small_config(context=CONTEXT, convolution__taps=1),
    "dissipative": small_config(context=CONTEXT, dynamics="dissipative"),
} | {name: small_config(context=CONTEXT, **changes) for name, changes in (PARTS | EVERYTHING).items()}

layers = jax.jit(recurrence.layers, static_argnames="config")
extend = jax.jit(recurrence.extend, static_argnames="config")
advance = jax.jit(recurrence.advance, static_argnames="config")


@partial(jax.jit, static_argnames="config")
def windowed(params: Params, tokens: jax.Array, config: ModelConfig) -> jax.Array:
    """The parallel network over a sequence longer than its context: kernels of the whole length, but a lag prior of zero
    from `context` on, so that retrieval looks no further back. States after the last block, `[B, T, d]`."""
    applied = operators.prepare(params, tokens.shape[1], config)
    near = jnp.arange(tokens.shape[1])[None, None] < config.context
    forgets = LagPrior(jnp.broadcast_to(jnp.where(near, 0, -1e9), (config.blocks, config.heads, tokens.shape[1])))
    scores = *applied.couplings.scores, forgets
    applied = applied._replace(couplings=applied.couplings._replace(scores=scores))
    s = network.embed(params.embedding, tokens)
    (s, _), _ = lax.scan(lambda x, layer: (block.apply(layer, *x, config)[0], None), (s, jnp.zeros_like(s)), applied)
    return s


def case(name: str, length: int):
    config = CONFIGS[name].model
    params = random_params(config, scale=0.5)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (3, length))
    return config, params, tokens


def step_by_step(params, tokens, config, history):
    applied, states = layers(params, config=config), []
    for token in tokens.T:
        history, _ = advance(params, applied, history, jnp.asarray(token), config=config)
        states.append(history.last)
    return history, np.stack(states, 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_single_steps_are_the_parallel_network(name, float64):
    """Past the context too, where only retrieval forgets."""
    config, params, tokens = case(name, 2 * CONTEXT + 3)
    params = to64(params)
    history, states = step_by_step(params, tokens, config, to64(recurrence.empty(params, 3, config)))
    np.testing.assert_allclose(states, windowed(params, tokens, config=config), atol=1e-9)
    np.testing.assert_array_equal(history.count, [15, 15, 15])


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_decide_the_type_and_not_the_mode(name, float64):
    """float32 parameters make nothing wider in JAX's x64 mode."""
    with jax.enable_x64(False):
        config, params, tokens = case(name, CONTEXT)
    applied = jax.eval_shape(partial(recurrence.layers, config=config), params)
    history = jax.eval_shape(partial(recurrence.empty, batch=3, config=config), params)
    after = jax.eval_shape(partial(recurrence.advance, config=config), params, applied, history, jnp.asarray(tokens[:, 0]))
    logits = jax.eval_shape(partial(network.logits, config=config), params, jnp.asarray(tokens))
    for leaf in jax.tree.leaves((applied, history, after, logits)):
        assert leaf.dtype not in (jnp.float64, jnp.complex128)


@pytest.mark.parametrize("name", oracles.cases({name: name for name in ["plain", *EVERYTHING]}, *EVERYTHING))
def test_the_history_tells_where_the_last_block_queried_from(name, float64):
    """However the positions were read: by the charts of the state before the last block, in the parallel network."""
    config, params, tokens = case(name, CONTEXT)
    params = to64(params)
    applied = layers(params, config=config)
    one_by_one, _ = step_by_step(params, tokens, config, recurrence.empty(params, 3, config))
    lengths = jnp.array([CONTEXT, CONTEXT, CONTEXT])
    at_once, _ = extend(params, applied, recurrence.empty(params, 3, config), tokens, lengths, config=config)
    prepared = operators.prepare(params, CONTEXT, config)
    s, p = network.embed(params.embedding, tokens), jnp.zeros((3, CONTEXT, config.width))
    for layer in range(config.blocks):
        one = jax.tree.map(lambda x, layer=layer: x[layer], prepared)
        before = s
        (s, p), _ = block.apply(one, s, p, config)
    direction, _ = rms_normalize(before)
    context = taps(one.taps, direction)
    if one.long_convolution is not None:
        channels = direction.reshape(3, CONTEXT, config.heads, -1)
        context = context + one.long_convolution.gain[None, None] * kernel.convolve(
            one.long_convolution.by_lag, channels
        ).reshape(s.shape)
    query = np.einsum("bd,hmd->bhm", context[:, -1], one.query)
    np.testing.assert_allclose(one_by_one.query, query, atol=1e-9)
    np.testing.assert_allclose(at_once.query, query, atol=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_chunks_of_different_lengths_are_the_parallel_network(name, float64):
    """Chunks in which each sequence has its own number of positions, none included; then single steps go on from there."""
    config, params, tokens = case(name, 2 * CONTEXT + 3)
    params = to64(params)
    expected = np.asarray(windowed(params, tokens, config=config))
    applied, history = layers(params, config=config), to64(recurrence.empty(params, 3, config))
    read = np.zeros(3, int)
    for lengths in ([4, 1, 0], [2, 4, 4], [0, 3, 4], [4, 4, 1]):
        chunk = np.zeros((3, 4), int)
        for row, (start, length) in enumerate(zip(read, lengths, strict=True)):
            chunk[row, :length] = tokens[row, start : start + length]
            chunk[row, length:] = 1  # padding that must leave no trace
        history, states = extend(params, applied, history, chunk, jnp.asarray(lengths), config=config)
        for row, (start, length) in enumerate(zip(read, lengths, strict=True)):
            np.testing.assert_allclose(states[row, :length], expected[row, start : start + length], atol=1e-9)
        read += lengths
        seen = [expected[row, place - 1] if place else np.zeros(config.width) for row, place in enumerate(read)]
        np.testing.assert_allclose(history.last, seen, atol=1e-9)
    np.testing.assert_array_equal(history.count, read)
    last = np.stack([tokens[row, read[row] : read[row] + 2] for row in range(3)])
    _, states = step_by_step(params, last, config, history)
    np.testing.assert_allclose(states, [expected[row, read[row] : read[row] + 2] for row in range(3)], atol=1e-9)


@pytest.mark.parametrize("name", EVERYTHING)
def test_chunks_between_single_steps_are_the_parallel_network(name, float64):
    """Single steps turn the ring; a chunk must find it in the order of time."""
    config, params, tokens = case(name, 2 * CONTEXT)
    params = to64(params)
    expected = np.asarray(windowed(params, tokens, config=config))
    history, _ = step_by_step(params, tokens[:, :8], config, to64(recurrence.empty(params, 3, config)))
    history, states = extend(params, layers(params, config=config), history, tokens[:, 8:], jnp.array([4, 2, 4]), config=config)
    np.testing.assert_allclose(states[0], expected[0, 8:], atol=1e-9)
    np.testing.assert_allclose(states[1, :2], expected[1, 8:10], atol=1e-9)


@pytest.mark.parametrize("name", ["plain", *EVERYTHING])
def test_float32_logits_agree_up_to_the_context(name):
    config, params, tokens = case(name, CONTEXT)
    _, states = step_by_step(params, tokens, config, recurrence.empty(params, 3, config))
    logits = network.readout(params.readout, states, config.precision)
    np.testing.assert_allclose(logits, oracles.logits(params, tokens, config=config), atol=1e-4)


def test_a_step_shows_what_it_looked_at(float64):
    """Boltzmann weights of the lags that there are: of the geodesic cost and the lag prior, recomputed from both."""
    config, params, tokens = case("curvature", CONTEXT + 3)
    params = to64(params)
    applied, history = layers(params, config=config), to64(recurrence.empty(params, 3, config))
    for place, token in enumerate(tokens.T):
        history, seen = advance(params, applied, history, jnp.asarray(token), config=config)
        known = min(place + 1, CONTEXT)
        assert not np.any(seen.weight[..., known:])
        couplings = applied.operators.couplings
        scores = -np.asarray(couplings.inverse_temperature)[:, None, :, None] * seen.cost[..., :known]
        scores = scores + np.asarray(couplings.scores[0].log_prior)[:, None, :, :known]
        weight = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        np.testing.assert_allclose(seen.weight[..., :known], weight, atol=1e-12)
        assert np.ptp(seen.resilience) > 0.01
