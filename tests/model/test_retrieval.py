"""Which form of retrieval a block runs, and that a block and an estimate come out the same with either."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax import learning
from lior_jax.model import block, operators, retrieval
from lior_jax.settings import LearningConfig, ModelConfig
from tests.oracles import initial

TINY = ModelConfig(
    vocab_size=7, context=9, width=12, blocks=2, heads=2, geometry={"chart_dim": 5, "rank": 1}, flow={"units": 8}
)


def with_retrieval(config, **changes):
    return config.model_copy(update={"retrieval": config.retrieval.model_copy(update=changes)})


@pytest.mark.parametrize(
    ("device", "capability", "changes", "fused", "reason"),
    [
        ("the backend cpu", 0.0, {}, False, "this is the backend cpu"),
        ("NVIDIA H200", 9.0, {}, True, "on NVIDIA H200"),
        ("Tesla T4", 7.5, {}, False, "this is Tesla T4"),
        ("NVIDIA H200", 9.0, {"kernel": "plain"}, False, "asks for it"),
        ("NVIDIA H200", 9.0, {"products": ("tensor", "wedge")}, False, "no tensor, wedge"),
        ("the backend cpu", 0.0, {"kernel": "interpret"}, True, "interpreter"),
        ("the backend cpu", 0.0, {"kernel": "interpret", "products": ("spinor",)}, False, "no spinor"),
    ],
)
def test_the_form_follows_from_backend_and_terms(device, capability, changes, fused, reason, monkeypatch):
    monkeypatch.setattr(retrieval, "nvidia", lambda: (device, capability))
    chosen = retrieval.choice(with_retrieval(TINY, **changes))
    assert chosen.fused == fused
    assert chosen.interpret == (fused and "interpret" in changes.values())
    assert reason in chosen.sentence


def test_heads_that_are_too_large_for_a_tile_are_retrieved_plainly(monkeypatch):
    monkeypatch.setattr(retrieval, "nvidia", lambda: ("NVIDIA H200", 9.0))
    wide = TINY.model_copy(update={"width": 2 * 129})
    assert retrieval.choice(wide.model_copy(update={"width": 2 * 128})).fused
    assert not retrieval.choice(wide).fused


def close(found, expected):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * max(np.abs(y).max(), 1e-6), err_msg=jax.tree_util.keystr(path))


def test_a_block_is_kicked_the_same_by_the_kernels():
    """The kick, and the cotangents of the operators and of the state."""
    params = initial(TINY)
    own = jax.tree.map(lambda x: x[1], operators.prepare(params, 9, TINY))
    s, cotangent = jax.random.normal(jax.random.key(1), (2, 2, 9, 12))
    forms = [with_retrieval(TINY, kernel=kernel) for kernel in ("interpret", "plain")]
    close(*(jax.jit(block.kick_and_adjoint, static_argnums=3)(own, s, cotangent, form) for form in forms))
    close(*(jax.jit(block.kick, static_argnums=2)(own, s, form) for form in forms))


@pytest.mark.slow
def test_the_echo_is_the_same_with_the_kernels():
    params = initial(TINY)
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params._replace(carried=None))
    params = params._replace(carried=initial(TINY).carried)
    tokens = jax.random.randint(jax.random.key(2), (2, 10), 0, 7)
    batch = tokens[:, :-1], tokens[:, 1:]
    run = jax.jit(learning.estimate, static_argnums=(2, 3))
    (found, info), (expected, of_plain) = (
        run(params, batch, with_retrieval(TINY, kernel=kernel), LearningConfig()) for kernel in ("interpret", "plain")
    )
    np.testing.assert_allclose(info.loss, of_plain.loss, rtol=1e-6)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert jnp.linalg.norm(x - y) <= 1e-3 * jnp.linalg.norm(y), jax.tree_util.keystr(path)
