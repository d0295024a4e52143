"""The blocks as a layer: the echo's cotangents of a given cotangent are those of automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax import config as configuration
from lior_jax import model
from lior_jax.learning import layer
from tests.oracles import trained_looking


@pytest.mark.parametrize("carries", ["true", "false"])
@pytest.mark.parametrize("chunk", ["null", "2"])
def test_cotangents_are_those_of_automatic_differentiation(carries, chunk):
    config = configuration.parse(
        "model: {context: 8, width: 16, blocks: 2, heads: 2, vocab_size: 5, geometry: {chart_dim: 4, rotor_layers: 2}}",
        "this test",
        [f"model.flow.carry_momentum={carries}", f"learning.chunk={chunk}"],
    )
    params = trained_looking(config.model)
    s, cotangent = jax.random.normal(jax.random.key(1), (2, 4, 8, 16))
    ours, ours_s = layer.apply_adjoint(params, s, cotangent, config.model, config.learning)

    def out(blocks, s):
        return layer.apply(params._replace(blocks=blocks), s, config.model)

    _, pull = jax.vjp(out, params.blocks, s)
    exact, exact_s = pull(cotangent)
    for leaf, other in zip(jax.tree.leaves((ours.blocks, ours_s)), jax.tree.leaves((exact, exact_s)), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=0, atol=2e-3 * float(jnp.max(jnp.abs(other), initial=1e-6)))


def test_the_layer_is_what_the_network_has_between_embedding_and_readout():
    config = configuration.parse("model: {context: 8, width: 16, blocks: 2, heads: 2, vocab_size: 5}", "this test").model
    params, tokens = trained_looking(config), jax.random.randint(jax.random.key(0), (2, 8), 0, 5)
    s = layer.apply(params, model.network.embed(params.embedding, tokens), config)
    np.testing.assert_allclose(
        model.network.readout(params.readout, s, config.precision), model.logits(params, tokens, config), rtol=1e-4, atol=1e-5
    )
