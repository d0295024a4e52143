import numpy as np
import pytest

from lior_jax.physics.taps import taps, taps_adjoint
from tests.oracles import check_adjoint, normal

# τ below, at and beyond L.
LENGTHS = [(1, 5), (3, 5), (5, 5), (8, 5), (4, 1)]


@pytest.mark.parametrize(("lags", "length"), LENGTHS)
def test_taps_are_a_causal_convolution(lags, length, float64):
    rng = np.random.default_rng(0)
    kernel, x = normal(rng, lags, 3), normal(rng, 2, length, 3)
    result = taps(kernel, x)
    assert result.shape == x.shape
    for b in range(2):
        for channel in range(3):
            expected = np.convolve(kernel[:, channel], x[b, :, channel])[:length]
            np.testing.assert_allclose(result[b, :, channel], expected, atol=1e-13)


@pytest.mark.parametrize(("lags", "length"), LENGTHS)
def test_taps_adjoint(lags, length):
    rng = np.random.default_rng(1)
    check_adjoint(taps, taps_adjoint, (normal(rng, lags, 3), normal(rng, 2, length, 3)), tol=1e-12)
