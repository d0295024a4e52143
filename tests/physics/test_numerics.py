from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from lior_jax.physics import numerics
from tests import oracles
from tests.oracles import check_adjoint, normal


def test_contract_is_einsum(float64):
    rng = np.random.default_rng(0)
    a, b = normal(rng, 2, 3, 4, 5), normal(rng, 2, 3, 6, 5)
    for precision in ("float32", "tf32"):
        result = numerics.contract("bhim,bhjm->bhij", a, b, precision)
        np.testing.assert_allclose(result, np.einsum("bhim,bhjm->bhij", a, b), rtol=1e-12)
        assert result.dtype == jnp.float64


def test_contract_in_full_precision_is_float32_accurate():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 30, 300)).astype(np.float32)
    result = numerics.contract("im,jm->ij", jnp.asarray(a), jnp.asarray(b), "float32")
    np.testing.assert_allclose(result, a.astype(np.float64) @ b.T.astype(np.float64), atol=1e-4)


CONTRACTED = partial(numerics.contract, precision="bfloat16")


@pytest.mark.parametrize("form", [CONTRACTED, numerics._in_bfloat16, numerics._of_rounded])
def test_bfloat16_rounds_the_operands_only(form):
    """By every backend's form. Rounded operands, worked on exactly, are expected: products and sums must not be rounded."""
    rng = np.random.default_rng(2)
    a, b = (jnp.asarray(x) for x in rng.standard_normal((2, 7, 500)).astype(np.float32))
    rounded = [np.asarray(x.astype(jnp.bfloat16), np.float64) for x in (a, b)]
    for product in (form, jax.jit(form, static_argnums=0)):
        result = product("im,jm->ij", a, b)
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, rounded[0] @ rounded[1].T, atol=1e-4)
    # A bfloat16 sum of ones stops at 256.
    ones = jnp.ones((1, 4096))
    assert form("im,jm->ij", ones, ones)[0, 0] == 4096


@pytest.mark.parametrize("size", [3, 40])
@pytest.mark.parametrize("subscripts", ["bihm,hmn->bihn", "bihm,bjhm->bhij", "bihm,bihn->hmn", "hij,bjhv->bihv"])
def test_bfloat16_products_in_batches(subscripts, size):
    """Whatever the backend lacks: XLA for CPUs has no `bihm,hmn->bihn` of bfloat16 with float32 sums."""
    rng = np.random.default_rng(3)
    operands = subscripts.split("->")[0].split(",")
    a, b = (jnp.asarray(rng.standard_normal([size + ord(axis) % 5 for axis in names]), jnp.float32) for names in operands)
    expected = np.einsum(subscripts, *(np.asarray(x.astype(jnp.bfloat16), np.float64) for x in (a, b)))
    np.testing.assert_allclose(CONTRACTED(subscripts, a, b), expected, rtol=1e-4, atol=1e-4 * size)


def test_project_and_its_adjoints(float64):
    rng = np.random.default_rng(3)
    x, weight = normal(rng, 2, 3, 4), normal(rng, 5, 4)
    np.testing.assert_allclose(numerics.project(x, weight, "float32"), np.asarray(x) @ np.asarray(weight).T, rtol=1e-12)

    def adjoint(x, weight, cotangent):
        return numerics.project_back(cotangent, weight, "float32"), numerics.correlate(cotangent, x, "float32")

    check_adjoint(lambda x, weight: numerics.project(x, weight, "float32"), adjoint, (x, weight))


def test_rms_normalize_closed_form(float64):
    x = normal(np.random.default_rng(4), 3, 5, 7, scale=10.0)
    x_hat, inverse = numerics.rms_normalize(x)
    np.testing.assert_allclose(x_hat, oracles.rms_hat(np.asarray(x)), rtol=1e-12)
    np.testing.assert_allclose(np.mean(np.square(x_hat), -1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(x_hat, x * inverse, rtol=1e-12)
    assert inverse.shape == (3, 5, 1)


def test_rms_normalize_of_zero_is_zero():
    x_hat, inverse = numerics.rms_normalize(jnp.zeros((2, 4)))
    assert not x_hat.any()
    np.testing.assert_allclose(inverse, numerics.RMS_EPSILON**-0.5, rtol=1e-6)


# The smallest scale is where the epsilon rules.
@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
def test_rms_normalize_adjoint(scale):
    x = normal(np.random.default_rng(5), 3, 5, scale=scale)

    def adjoint(x, cotangent):
        return (numerics.rms_normalize_adjoint(*numerics.rms_normalize(x), cotangent),)

    check_adjoint(lambda x: numerics.rms_normalize(x)[0], adjoint, (x,), tol=1e-10)


def test_rms_normalize_jacobian_is_symmetric(float64):
    jacobian = jax.jacfwd(lambda x: numerics.rms_normalize(x)[0])(normal(np.random.default_rng(6), 6))
    np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-12)


def test_gelu_and_slope(float64):
    z = jnp.linspace(-9.0, 9.0, 201)
    value, slope = numerics.gelu_and_slope(z)
    np.testing.assert_allclose(value, np.asarray(z) * ndtr(np.asarray(z)), atol=1e-13)
    np.testing.assert_allclose(value, jax.nn.gelu(z, approximate=False), atol=1e-13)
    np.testing.assert_allclose(slope, jax.vmap(jax.grad(lambda z: jax.nn.gelu(z, approximate=False)))(z), atol=1e-13)


@pytest.mark.parametrize("value", [1e-3, 0.1, 1.0, 20.0])
def test_softplus_inverse(value, float64):
    raw = numerics.softplus_inverse(value)
    assert isinstance(raw, float)
    np.testing.assert_allclose(jax.nn.softplus(raw), value, rtol=1e-6)


def test_softplus_adjoint():
    raw = jnp.linspace(-30.0, 30.0, 41)
    check_adjoint(jax.nn.softplus, lambda raw, cotangent: (numerics.softplus_adjoint(raw, cotangent),), (raw,), tol=1e-12)
