import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lior_jax.physics import base_geometry, resilience
from lior_jax.physics.numerics import RMS_EPSILON, rms_normalize
from lior_jax.physics.resilience import CURVATURE_EPSILON, Collapsed, Constitutive, Curvature
from tests.oracles import check_adjoint, normal

B, L, H, C = 2, 5, 3, 4


def random_geometry(n, seed=0):
    """Of a base metric with eigenvalues from 0.4 to 2 along random axes."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((n, n)))[0]
    matrix = axes @ np.diag(np.geomspace(0.4, 2, n)) @ axes.T
    return base_geometry.precompute((matrix + matrix.T) / 2)


def random_curvature(n, m, seed=0):
    rng = np.random.default_rng(seed)
    return Curvature(forms=normal(rng, H, C, n, n), slope=normal(rng, H, C, m), level=normal(rng, H, C))


def random_points(m, seed=0):
    return normal(np.random.default_rng(seed + 50), B, L, H, m)


def dense_contraction(curvature, points, g):
    """`K_μνρσ R_μνρσ(x)` with `R` and `K` of rank 4 spelled out, from the base metric `g`: `[B, L, H]`."""
    forms, slope, level = (np.asarray(x, np.float64) for x in curvature)
    inverse, n = np.linalg.inv(g), len(g)
    kappa = level + np.einsum("blhm,hcm->blhc", np.asarray(points, np.float64), slope)
    tensor = np.einsum("blhc,hcmr,hcns->blhmnrs", kappa, forms, forms)
    kernel = np.einsum("mr,ns->mnrs", inverse, inverse) / n**2
    return (tensor * kernel).sum((-4, -3, -2, -1))


def state_resilience(exponent, s):
    """Constitutive resilience as a function of the state itself."""
    return resilience.resilience(Constitutive(exponent), None, rms_normalize(s)[1])


# --- the scalar of a dense curvature tensor --------------------------------------------------------------------------


def test_scalar_curvature_is_the_contraction_entry_by_entry(float64):
    n, made = 3, random_geometry(3)
    tensor = np.asarray(normal(np.random.default_rng(1), 6, n, n, n, n))
    sums = np.zeros(6)
    for point, m, v, r, s in np.ndindex(6, n, n, n, n):
        sums[point] += made.inverse[m, r] * made.inverse[v, s] * tensor[point, m, v, r, s] / n**2
    assert sums.min() < 0 < sums.max()
    actual = resilience.scalar_curvature(jnp.asarray(tensor), jnp.asarray(base_geometry.contraction_kernel(made)))
    np.testing.assert_allclose(actual, np.sqrt(np.abs(sums) + CURVATURE_EPSILON), rtol=1e-12)


@pytest.mark.parametrize("n", [2, 4])
def test_scalar_of_the_metric_times_itself_is_its_factor(n, float64):
    """`R_μνρσ = κ g_μρ g_νσ` has the scalar `|κ|`, whatever the base metric, and in every dimension."""
    made = random_geometry(n, seed=n)
    kappa = np.array([-2.0, 0.0, 3.0])
    tensor = np.einsum("p,mr,ns->pmnrs", kappa, made.metric, made.metric)
    actual = resilience.scalar_curvature(jnp.asarray(tensor), jnp.asarray(base_geometry.contraction_kernel(made)))
    np.testing.assert_allclose(actual, np.sqrt(np.abs(kappa) + CURVATURE_EPSILON), rtol=1e-12)


# --- structured curvature --------------------------------------------------------------------------------------------


@given(n=st.integers(2, 8), extra=st.integers(0, 2), seed=st.integers(0, 999))
@settings(max_examples=5)
@example(n=8, extra=2, seed=0)
@example(n=2, extra=0, seed=1)
def test_structured_resilience_is_the_dense_contraction(n, extra, seed):
    made, curvature = random_geometry(n, seed), random_curvature(n, n + extra, seed)
    points = 2 * random_points(n + extra, seed)
    with jax.enable_x64(True):
        structured = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), curvature)
        law = resilience.collapse(structured, jnp.asarray(made.inverse))
        actual = np.asarray(resilience.resilience(law, jnp.asarray(np.asarray(points), jnp.float64), None))
    sums = dense_contraction(curvature, points, made.metric)
    assert sums.min() < 0 < sums.max()  # the absolute value is needed
    np.testing.assert_allclose(actual, np.sqrt(np.abs(sums) + CURVATURE_EPSILON), rtol=1e-9)


def test_collapsed_curvature_is_affine_with_the_sign_of_the_contraction(float64):
    n, m = 4, 6
    made, curvature, points = random_geometry(n, 2), random_curvature(n, m, 2), random_points(m, 2)
    law = resilience.collapse(curvature, jnp.asarray(made.inverse))
    affine = np.asarray(law.level) + np.einsum("hm,blhm->blh", law.slope, points)
    np.testing.assert_allclose(affine, dense_contraction(curvature, points, made.metric), rtol=1e-11, atol=1e-13)


def test_no_curvature_leaves_the_smallest_resilience(float64):
    law = Collapsed(jnp.zeros((H, 2)), jnp.zeros(H))
    np.testing.assert_allclose(resilience.resilience(law, random_points(2), None), CURVATURE_EPSILON**0.5, rtol=1e-14)


# --- constitutive and unit -------------------------------------------------------------------------------------------


def test_unit_resilience_is_one_whatever_it_sees():
    points, direction, inverse_rms = random_points(2), jnp.ones((B, L, 7)), jnp.ones((B, L, 1))
    np.testing.assert_array_equal(resilience.resilience(None, points, inverse_rms), np.ones((B, L, H)))
    cotangent = jnp.ones((B, L, H))
    c_law, c_points, c_state = resilience.resilience_adjoint(None, points, direction, inverse_rms, cotangent)
    assert c_law is None
    np.testing.assert_array_equal(c_points, np.zeros(points.shape))
    np.testing.assert_array_equal(c_state, np.zeros(direction.shape))


def test_constitutive_resilience_is_its_closed_form(float64):
    """`(mean(s²) + ε)^(χ/2)`: it grows with the field for χ > 0, shrinks for χ < 0, and is 1 for χ = 0."""
    exponent = jnp.array([1.4, -0.6, 0.0])
    s = normal(np.random.default_rng(3), B, L, 7) * jnp.asarray(np.geomspace(1e-4, 1e3, L))[None, :, None]
    actual = np.asarray(state_resilience(exponent, s))
    magnitude = np.mean(np.asarray(s) ** 2, -1) + RMS_EPSILON
    for head, chi in enumerate([1.4, -0.6, 0.0]):
        np.testing.assert_allclose(actual[..., head], magnitude ** (chi / 2), rtol=1e-12)


def test_constitutive_resilience_scales_with_the_state(float64):
    """Twice the state is `2^χ` times the resilience, up to the share of ε in `mean(s²)`, here 1e-10."""
    exponent = np.array([2.0, 0.5, -1.0])
    s = 100 * normal(np.random.default_rng(4), B, L, 9)
    ratio = np.asarray(state_resilience(jnp.asarray(exponent), 2 * s) / state_resilience(jnp.asarray(exponent), s))
    np.testing.assert_allclose(ratio, np.broadcast_to(2.0**exponent, ratio.shape), rtol=1e-9)


def test_constitutive_resilience_of_no_field_is_finite():
    """In float32, where the state is zero: `ε^(χ/2)`, and no pull on the state in any direction."""
    exponent, s = jnp.array([1.0, -1.0]), jnp.zeros((1, 2, 4))
    direction, inverse_rms = rms_normalize(s)
    value = np.asarray(resilience.resilience(Constitutive(exponent), None, inverse_rms))
    np.testing.assert_allclose(value, np.broadcast_to(RMS_EPSILON ** np.array([0.5, -0.5]), value.shape), rtol=1e-5)
    points, cotangent = jnp.zeros((1, 2, 2, 3)), jnp.ones((1, 2, 2))
    adjoint = resilience.resilience_adjoint(Constitutive(exponent), points, direction, inverse_rms, cotangent)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(adjoint))
    np.testing.assert_array_equal(adjoint[2], np.zeros(s.shape))


# --- adjoints --------------------------------------------------------------------------------------------------------


@given(n=st.integers(2, 6), m=st.integers(2, 7), seed=st.integers(0, 999))
@settings(max_examples=3)
@example(n=3, m=4, seed=0)  # before the others, so that a failure is told at once
def test_collapse_adjoint(n, m, seed):
    inverse = random_geometry(n, seed).inverse

    def collapse(curvature):
        return resilience.collapse(curvature, jnp.asarray(inverse))

    def adjoint(curvature, cotangent):
        return (resilience.collapse_adjoint(curvature, jnp.asarray(inverse), cotangent),)

    check_adjoint(collapse, adjoint, (random_curvature(n, m, seed),), tol=1e-10, seed=seed)


@given(m=st.integers(2, 6), seed=st.integers(0, 999))
@settings(max_examples=3)
@example(m=3, seed=0)
def test_resilience_adjoint_of_curvature(m, seed):
    """At points on both sides of zero curvature. The state is treated as constant: it acts only through the points."""
    rng = np.random.default_rng(seed)
    law, points = Collapsed(normal(rng, H, m), normal(rng, H)), 2 * random_points(m, seed)
    s = normal(rng, B, L, 4)
    contraction = np.asarray(law.level) + np.einsum("hm,blhm->blh", law.slope, points)
    assert contraction.min() < 0 < contraction.max()

    def function(law, points, s):
        return resilience.resilience(law, points, rms_normalize(s)[1])

    def adjoint(law, points, s, cotangent):
        direction, inverse_rms = rms_normalize(s)
        return resilience.resilience_adjoint(law, points, direction, inverse_rms, cotangent)

    check_adjoint(function, adjoint, (law, points, s), tol=1e-10, seed=seed)


@given(d=st.integers(1, 9), seed=st.integers(0, 999))
@settings(max_examples=3)
@example(d=4, seed=0)
def test_resilience_adjoint_of_the_constitutive_law(d, seed):
    """To the state itself, whose magnitude the law weighs, and to the exponent; the points do not count."""
    rng = np.random.default_rng(seed)

    def function(law, points, s):
        return resilience.resilience(law, points, rms_normalize(s)[1])

    def adjoint(law, points, s, cotangent):
        direction, inverse_rms = rms_normalize(s)
        return resilience.resilience_adjoint(law, points, direction, inverse_rms, cotangent)

    args = (Constitutive(normal(rng, H)), random_points(3), normal(rng, B, L, d, scale=2.0))
    check_adjoint(function, adjoint, args, tol=1e-10, seed=seed)


def test_resilience_adjoint_at_zero_curvature_is_finite():
    """Where `|x|` has no slope: the cotangents are zero rather than of either sign."""
    law, points = Collapsed(jnp.zeros((H, 2)), jnp.zeros(H)), random_points(2)
    direction, inverse_rms = jnp.ones((B, L, 4)), jnp.ones((B, L, 1))
    adjoint = resilience.resilience_adjoint(law, points, direction, inverse_rms, jnp.ones((B, L, H)))
    for leaf in jax.tree.leaves(adjoint):
        np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))
