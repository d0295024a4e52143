"""Tables by lag against the double loop, and their sums against the traces."""

import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax.physics import lags
from tests.oracles import normal


@pytest.mark.parametrize("length", [1, 2, 5])
def test_spread_is_its_double_loop(length):
    by_lag = np.random.default_rng(6).standard_normal((3, length)).astype(np.float32)
    expected = np.zeros((3, length, length), np.float32)
    for i in range(length):
        for j in range(i + 1):
            expected[:, i, j] = by_lag[:, i - j]
    np.testing.assert_array_equal(lags.spread(jnp.asarray(by_lag)), expected)
    for rows in range(1, length + 1):
        np.testing.assert_array_equal(lags.spread(jnp.asarray(by_lag), rows), expected[:, length - rows :])


@pytest.mark.parametrize("length", [1, 2, 5])
def test_sum_by_lag_is_the_adjoint_of_spread(length, float64):
    """The traces on and below the diagonal; what is above it counts for nothing."""
    rng = np.random.default_rng(7)
    pairs, by_lag = normal(rng, 3, length, length), normal(rng, 3, length)
    result = lags.sum_by_lag(pairs)
    expected = np.stack([np.trace(np.asarray(pairs), offset=-lag, axis1=1, axis2=2) for lag in range(length)], -1)
    np.testing.assert_allclose(result, expected, atol=1e-13)
    np.testing.assert_allclose(np.vdot(lags.spread(by_lag), pairs), np.vdot(by_lag, result), atol=1e-12)
    for rows in range(1, length + 1):
        last = pairs[:, length - rows :]
        expected = np.vdot(lags.spread(by_lag, rows), last)
        np.testing.assert_allclose(np.vdot(by_lag, lags.sum_by_lag(last)), expected, atol=1e-12)
