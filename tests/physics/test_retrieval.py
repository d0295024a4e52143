import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lior_jax.physics import geometry, retrieval
from lior_jax.physics.retrieval import Couplings, retrieve, retrieve_adjoint
from tests import oracles
from tests.oracles import check_adjoint, normal


def random_inputs(batch=2, length=6, heads=2, m=3, v=4, seed=0):
    """Queries, keys, values, couplings; couplings differ between heads."""
    rng = np.random.default_rng(seed)
    couplings = Couplings(*(jnp.asarray(rng.uniform(0.1, high, heads)) for high in (3.0, 0.5, 1.5)))
    return (
        normal(rng, batch, length, heads, m),
        normal(rng, batch, length, heads, m),
        normal(rng, batch, length, heads, v),
        couplings,
    )


@pytest.mark.parametrize(("length", "heads"), [(6, 2), (1, 1), (9, 3)])
def test_retrieval_is_its_displacement_form(length, heads, float64):
    inputs = random_inputs(length=length, heads=heads)
    expected, expected_weights = oracles.dense_retrieve(*inputs)
    np.testing.assert_allclose(retrieve(*inputs), expected, atol=1e-11)
    queries, keys, _, couplings = inputs
    cost = retrieval.geodesic_cost(retrieval.squared_distance(queries, keys))
    weights = retrieval.weights(cost, couplings.inverse_temperature, retrieval.log_prior(couplings, length))
    np.testing.assert_allclose(weights, expected_weights, atol=1e-11)


def test_whitened_distance_is_the_metric_of_the_displacement(float64):
    metric, rng = oracles.random_metric(4, 3, 2), np.random.default_rng(1)
    queries, keys = normal(rng, 1, 5, 1, 4), normal(rng, 1, 5, 1, 4)
    whitened = [geometry.whiten(metric, x[0, :, 0].T).T[None, :, None] for x in (queries, keys)]
    displacement = queries[0, :, None, 0] - keys[0, None, :, 0]
    expected = geometry.quad_form(metric, displacement)
    np.testing.assert_allclose(retrieval.squared_distance(*whitened)[0, 0], expected, atol=1e-11)


def test_close_points_far_from_the_origin():
    """In float32, 1000 from the origin and 0.01 apart: expanded about the origin, squares of 1e6 would drown distances of
    1e-4. The inputs are exact; only the arithmetic may err."""
    rng = np.random.default_rng(2)
    points = (1000 + 0.01 * rng.standard_normal((2, 2, 8, 1, 4))).astype(np.float32)
    squared = retrieval.squared_distance(jnp.asarray(points[0]), jnp.asarray(points[1]))
    exact = points.astype(np.float64)
    expected = np.square(exact[0][:, :, None, 0] - exact[1][:, None, :, 0]).sum(-1)
    np.testing.assert_allclose(squared[:, 0], expected, rtol=1e-4, atol=1e-8)


def test_retrieval_of_near_duplicates_in_float32():
    queries, keys, values, couplings = random_inputs(seed=3)
    close = [(300 + 0.1 * x).astype(jnp.float32) for x in (queries, keys)]
    expected, _ = oracles.dense_retrieve(*close, values, couplings._replace(inverse_temperature=jnp.array([20.0, 5.0])))
    result = retrieve(*close, values, couplings._replace(inverse_temperature=jnp.array([20.0, 5.0])))
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_weights_are_causal_probabilities():
    queries, keys, _, couplings = random_inputs()
    cost = retrieval.geodesic_cost(retrieval.squared_distance(30 * queries, 30 * keys))
    weights = np.asarray(retrieval.weights(cost, 10 * couplings.inverse_temperature, retrieval.log_prior(couplings, 6)))
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    assert (weights >= 0).all()
    above = np.triu(np.ones((6, 6), bool), 1)
    assert (weights[:, :, above] == 0).all()
    assert (weights[:, :, 0, 0] == 1).all()


def test_the_past_never_sees_the_future():
    """To the last bit: later queries, keys and values change nothing before them."""
    queries, keys, values, couplings = random_inputs(length=6)
    before = retrieve(queries, keys, values, couplings)
    after = retrieve(*(x.at[:, 4:].add(7.0) for x in (queries, keys, values)), couplings)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (np.asarray(before[:, 4:]) != np.asarray(after[:, 4:])).all()


def test_lag_prior_closed_form(float64):
    couplings = Couplings(jnp.ones(2), lag_rate=jnp.array([0.3, 0.01]), lag_order=jnp.array([0.2, 1.5]))
    prior = np.exp(np.asarray(retrieval.log_prior(couplings, 7)))
    for h in range(2):
        for i in range(7):
            for j in range(i + 1):
                expected = (1.0 + i - j) ** -couplings.lag_order[h] * np.exp(-couplings.lag_rate[h] * (i - j))
                np.testing.assert_allclose(prior[h, i, j], expected, rtol=1e-12)


def test_colder_and_nearer_weigh_more(float64):
    """Three keys at distances 0, 1, 2 and no prior: weights fall by `e^−β` per unit of distance (the epsilon aside)."""
    keys = jnp.array([2.0, 1.0, 0.0])[None, :, None, None]
    queries = jnp.zeros_like(keys)
    cost = retrieval.geodesic_cost(retrieval.squared_distance(queries, keys))
    for beta in (0.5, 3.0):
        weights = retrieval.weights(cost, jnp.array([beta]), jnp.zeros((1, 3, 3)))[0, 0, 2]
        np.testing.assert_allclose(weights[1] / weights[0], np.exp(beta), rtol=1e-3)
        np.testing.assert_allclose(weights[2] / weights[1], np.exp(beta * 0.99), rtol=1e-3)  # sqrt(ε) = 0.01 at zero


def test_translation_changes_nothing(float64):
    queries, keys, values, couplings = random_inputs(seed=4)
    moved = retrieve(queries + 5.0, keys + 5.0, values, couplings)
    np.testing.assert_allclose(moved, retrieve(queries, keys, values, couplings), atol=1e-11)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_coarse_products_stay_close(precision):
    """bfloat16 has 8 bits: products of order one err by about 1e-2."""
    inputs = random_inputs(seed=5)
    np.testing.assert_allclose(retrieve(*inputs, precision), oracles.dense_retrieve(*inputs)[0], atol=3e-2)


@given(
    length=st.integers(1, 7),
    heads=st.integers(1, 3),
    m=st.integers(1, 4),
    v=st.integers(1, 3),
    seed=st.integers(0, 999),
)
@example(length=6, heads=2, m=3, v=4, seed=0)
def test_retrieve_adjoint(length, heads, m, v, seed):
    """Queries, keys, values and all three couplings."""
    inputs = random_inputs(2, length, heads, m, v, seed)
    check_adjoint(retrieve, lambda *args: retrieve_adjoint(*args)[1], inputs, tol=1e-7)


def test_retrieve_adjoint_with_coincident_points():
    """A query on top of a key: the distance has a kink there without the epsilon, and its gradient is zero with it."""
    queries, keys, values, couplings = random_inputs(seed=6)
    queries = queries.at[:, 3].set(keys[:, 1]).at[:, 2].set(keys[:, 2]).at[:, 0].set(keys[:, 0])
    keys = keys.at[:, 4].set(keys[:, 0])
    check_adjoint(retrieve, lambda *args: retrieve_adjoint(*args)[1], (queries, keys, values, couplings), tol=1e-7)


def test_retrieve_adjoint_returns_the_forward_result():
    inputs = random_inputs(seed=7)
    retrieved, _ = retrieve_adjoint(*inputs, jnp.ones_like(inputs[2]))
    np.testing.assert_allclose(retrieved, retrieve(*inputs), rtol=1e-6, atol=1e-6)


def test_forces_between_queries_and_keys_balance(float64):
    """Only displacements matter, so the cotangents of all queries and keys of a sequence add up to zero."""
    *inputs, couplings = random_inputs(seed=8)
    _, (c_queries, c_keys, _, _) = jax.jit(retrieve_adjoint)(*inputs, couplings, inputs[2] ** 2)
    np.testing.assert_allclose(jnp.sum(c_queries + c_keys, axis=1), 0.0, atol=1e-12)
