from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lior_jax.physics import geometry
from tests import oracles
from tests.oracles import check_adjoint, normal, random_metric

# n, rotor layers, rank: odd and even n, no rotors, all rotors, no low rank.
SHAPES = [(2, 1, 0), (3, 0, 2), (4, 3, 1), (5, 5, 3), (7, 2, 0), (6, 0, 0)]


@st.composite
def shapes(draw):
    n = draw(st.integers(2, 6))
    return n, draw(st.integers(0, geometry.max_rotor_layers(n))), draw(st.integers(0, 3))


# --- rotor planes as data --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(2, 12))
def test_every_plane_meets_exactly_once(n):
    layers = geometry.max_rotor_layers(n)
    planes = geometry.rotor_planes(n, layers)
    met = sorted((int(i), int(j)) for layer in planes for i, j in layer)
    assert met == sorted(combinations(range(n), 2))


@pytest.mark.parametrize("n", range(2, 12))
def test_planes_of_a_layer_are_disjoint(n):
    for layers in range(geometry.max_rotor_layers(n) + 1):
        planes = geometry.rotor_planes(n, layers)
        assert planes.shape == (layers, n // 2, 2)
        for layer in planes:
            assert len(set(layer.ravel().tolist())) == 2 * (n // 2)


def test_more_layers_only_append():
    np.testing.assert_array_equal(geometry.rotor_planes(6, 5)[:2], geometry.rotor_planes(6, 2))


# --- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "layers"), [(2, 1), (3, 3), (4, 2), (5, 0), (7, 7), (8, 7)])
def test_frame_is_the_product_of_givens_matrices(n, layers, float64):
    angles = random_metric(n, layers, 0, seed=n).angles
    np.testing.assert_allclose(geometry.frame(angles, n), oracles.dense_frame(np.asarray(angles), n), atol=1e-12)


@pytest.mark.parametrize(("n", "layers"), [(2, 1), (3, 3), (4, 2), (5, 0), (7, 7)])
def test_frame_is_a_rotation(n, layers, float64):
    q = np.asarray(geometry.frame(random_metric(n, layers, 0, seed=1).angles, n))
    np.testing.assert_allclose(q.T @ q, np.eye(n), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(q), 1.0, rtol=1e-12)


def test_rotate_applies_the_transposed_frame(float64):
    rng, angles = np.random.default_rng(0), random_metric(5, 3, 0).angles
    x = normal(rng, 5, 4)
    np.testing.assert_allclose(geometry.rotate(angles, x), geometry.frame(angles, 5).T @ x, atol=1e-12)


def test_whole_turns_change_nothing(float64):
    angles = random_metric(5, 4, 0, seed=2).angles
    for turns in (1, -1, 7):
        np.testing.assert_allclose(geometry.frame(angles + 2 * np.pi * turns, 5), geometry.frame(angles, 5), atol=1e-12)


def test_wrapped_angles_are_in_the_half_open_interval(float64):
    angles = jnp.array([-np.pi, np.pi, 3 * np.pi, 0.0, 3.0, 4.0, -4.0, 100.0, -100.0])
    wrapped = np.asarray(geometry.wrap_angle(angles))
    assert (wrapped >= -np.pi).all()
    assert (wrapped < np.pi).all()
    np.testing.assert_allclose(np.exp(1j * wrapped), np.exp(1j * np.asarray(angles)), atol=1e-12)
    np.testing.assert_allclose(wrapped[:2], -np.pi, rtol=1e-15)


# --- the metric ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "layers", "rank"), SHAPES)
def test_metric_is_its_formula(n, layers, rank, float64):
    metric = random_metric(n, layers, rank, seed=n)
    g = oracles.dense_metric(metric)
    x = normal(np.random.default_rng(1), 2, 3, n)
    np.testing.assert_allclose(geometry.dense_metric(metric), g, atol=1e-12)
    np.testing.assert_allclose(geometry.quad_form(metric, x), np.einsum("bln,nm,blm->bl", x, g, x), rtol=1e-11)
    assert geometry.whiten(metric, x[0].T).shape == (n + rank, 3)


@given(shape=shapes(), seed=st.integers(0, 999), raw=st.floats(-12, 12))
def test_metric_is_positive_definite(shape, seed, raw):
    """`g(x, x) ≥ Ω² min λ ‖x‖²`, for raw parameters far from their usual size. The slack is the rounding of eigenvalues."""
    n, layers, rank = shape
    metric = random_metric(n, layers, rank, seed, spread=4.0)
    metric = metric._replace(scale=jnp.asarray(raw), low_rank=10 * metric.low_rank)
    with jax.enable_x64(True):
        g = np.asarray(geometry.dense_metric(oracles.to64(metric)))
    raw64 = oracles.to_numpy(metric)
    bound = oracles.softplus(raw64.scale) ** 2 * oracles.softplus(raw64.stiffness).min()
    eigenvalues = np.linalg.eigvalsh(g)
    np.testing.assert_allclose(g, g.T, rtol=0, atol=1e-15 * eigenvalues[-1])
    assert bound > 0
    assert eigenvalues[0] >= bound * (1 - 1e-9) - 1e-14 * eigenvalues[-1]


@pytest.mark.parametrize("raw", [-40.0, 0.0, 40.0])
def test_extreme_parameters_stay_finite(raw):
    """In float32: no negative distance, no infinity, no NaN, forward or backward."""
    metric = jax.tree.map(lambda x: (jnp.zeros_like(x) + raw).astype(jnp.float32), random_metric(4, 3, 2))
    x = normal(np.random.default_rng(3), 4, 5)
    distance = np.asarray(geometry.quad_form(metric, x.T))
    assert np.isfinite(distance).all()
    assert (distance >= 0).all()
    gradient = geometry.whiten_adjoint(metric, x, jnp.ones((6, 5)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_quad_form_is_quadratic(float64):
    metric, x = random_metric(4, 2, 1), normal(np.random.default_rng(4), 6, 4)
    np.testing.assert_allclose(geometry.quad_form(metric, -3 * x), 9 * geometry.quad_form(metric, x), rtol=1e-12)
    assert geometry.quad_form(metric, 0 * x).max() == 0


# --- adjoints --------------------------------------------------------------------------------------------------------


@given(shape=shapes(), columns=st.integers(1, 4), seed=st.integers(0, 999))
@example(shape=(5, 5, 0), columns=3, seed=0)
@example(shape=(4, 0, 0), columns=1, seed=1)
def test_whiten_adjoint(shape, columns, seed):
    n, layers, rank = shape
    metric, x = random_metric(n, layers, rank, seed), normal(np.random.default_rng(seed + 1), n, columns)
    check_adjoint(geometry.whiten, geometry.whiten_adjoint, (metric, x), tol=1e-9, seed=seed)


@pytest.mark.parametrize(("n", "layers"), [(2, 1), (5, 4), (6, 5), (3, 0)])
def test_rotate_adjoint(n, layers):
    angles, x = random_metric(n, layers, 0).angles, normal(np.random.default_rng(5), n, 3)

    def adjoint(angles, x, cotangent):
        return geometry.rotate_adjoint(angles, geometry.rotate(angles, x), cotangent)

    check_adjoint(geometry.rotate, adjoint, (angles, x), tol=1e-9)
