"""Score terms of the model: one from outside is drawn, prepared, learned and decoded like those of the package."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax.errors import UserError
from lior_jax.model import recurrence
from lior_jax.registry import SCORE_TERMS
from tests import oracles
from tests.oracles import agreement, random_batch, random_params, small_config, trained_looking
from tests.parity import PARITY, ParityBonus


@pytest.fixture(scope="module", autouse=True)
def registered():
    SCORE_TERMS.register("parity", PARITY)
    yield
    del SCORE_TERMS._entries["parity"]


def with_parity(**changes):
    return small_config(retrieval__products=("tensor", "parity"), blocks=1, **changes)


def test_a_registered_term_has_parameters():
    params = jax.eval_shape(lambda: oracles.initial(with_parity().model))
    assert set(params.blocks.scores) == {"lag_prior", "tensor", "parity"}
    assert params.blocks.scores["parity"].bonus.shape == (1, 2)


def test_a_registered_term_is_learned():
    """By the echo, leaf for leaf like automatic differentiation of the loss."""
    config = with_parity()
    params, batch = trained_looking(config.model), random_batch(config)
    estimate, _ = oracles.estimate(params, batch, config=config)
    _, gradient = oracles.autodiff(params, *batch, config)
    found = agreement(estimate, gradient)["blocks.scores.parity.bonus"]
    assert found.share > 1e-4
    assert found.cosine > 0.9999
    assert found.relative_error < 5e-3


def test_a_registered_term_is_decoded(float64):
    """Token by token as all at once."""
    config = with_parity(context=6).model
    params = oracles.to64(random_params(config, scale=0.5))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 6))
    layers, history = recurrence.layers(params, config), oracles.to64(recurrence.empty(params, 2, config))
    advance = jax.jit(recurrence.advance, static_argnames="config")
    for token in tokens.T:
        history, _ = advance(params, layers, history, jnp.asarray(token), config=config)
    logits = oracles.logits(params, tokens, config=config)[:, -1]
    direction = oracles.rms_hat(np.asarray(history.last))
    np.testing.assert_allclose(direction @ np.asarray(params.readout).T, logits, atol=1e-9)
    silent = params.blocks.scores | {"parity": ParityBonus(jnp.zeros((1, 2)))}
    without = params._replace(blocks=params.blocks._replace(scores=silent))
    assert np.abs(oracles.logits(without, tokens, config=config)[:, -1] - logits).max() > 1e-4


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="There is a score term 'tensor' already"):
        SCORE_TERMS.register("tensor", PARITY)
    with pytest.raises(UserError, match="'twist' is not a known score term"):
        SCORE_TERMS["twist"]
