"""Keys and values by projection of the field, against the field built as the matrix that it is."""

import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax.physics import kernel, projection
from lior_jax.physics.kernel import Kernel
from lior_jax.physics.projection import Projector
from tests.oracles import check_adjoint, normal


def random_kernel(rng, heads):
    return Kernel(*(normal(rng, heads, *shape) for shape in ((3,), (3,), (), (), ())))


def random_inputs(batch=2, length=7, heads=2, m=4, v=3, seed=0):
    rng = np.random.default_rng(seed)
    own = random_kernel(rng, heads)
    probes = normal(rng, heads, v), normal(rng, heads, m), normal(rng, heads), normal(rng, heads)
    points = normal(rng, batch, length, heads, m), normal(rng, batch, length, heads, v)
    return own, (Projector(kernel.values(own, length), *probes), *points)


def by_the_field(projector, keys, values):
    """`T_t = Σ_{s<t} K(t − s) v_s k_sᵀ` of every sequence, head and position, then `Tᵀ a` and `T b`."""
    by_lag, a, b, key_gate, value_gate = (np.asarray(x) for x in projector)
    keys, values = np.asarray(keys), np.asarray(values)
    projected = keys.copy(), values.copy()
    for n, t, h in np.ndindex(keys.shape[:3]):
        field = sum((by_lag[h, t - s] * np.outer(values[n, s, h], keys[n, s, h]) for s in range(t)), np.zeros((1, 1)))
        if t:
            projected[0][n, t, h] += key_gate[h] * field.T @ a[h]
            projected[1][n, t, h] += value_gate[h] * field @ b[h]
    return projected


@pytest.mark.parametrize("shape", [{}, {"length": 1}, {"batch": 1, "heads": 3, "m": 2, "v": 5}])
def test_projection_is_that_of_the_field(shape, float64):
    _, inputs = random_inputs(**shape)
    for actual, expected in zip(projection.project(*inputs), by_the_field(*inputs), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_all_forms_agree(float64):
    own, (projector, keys, values) = random_inputs()
    expected = [np.asarray(x) for x in projection.project(projector, keys, values)]
    system = kernel.poles(own)
    charge = start = jnp.zeros((2, 2, 17, 7), complex)
    for t in range(7):
        charge, found = projection.project_step(projector, system, charge, keys[:, t : t + 1], values[:, t : t + 1])
        for actual, whole in zip(found, expected, strict=True):
            np.testing.assert_allclose(actual[:, 0], whole[:, t], atol=1e-10)
    for first, lengths in ((0, [3, 3]), (3, [4, 4])):
        own_part = slice(first, first + lengths[0])
        start, found = projection.project_more(
            projector, system, start, keys[:, own_part], values[:, own_part], jnp.array(lengths)
        )
        for actual, whole in zip(found, expected, strict=True):
            np.testing.assert_allclose(actual, whole[:, own_part], atol=1e-10)
    np.testing.assert_allclose(start, charge, atol=1e-10)


@pytest.mark.parametrize("shape", [{}, {"length": 1}, {"batch": 1, "heads": 3, "m": 2, "v": 5}])
def test_project_adjoint(shape):
    _, inputs = random_inputs(**shape)

    def adjoint(*args):
        return projection.project_adjoint(*args)

    check_adjoint(lambda *args: projection.project(*args), adjoint, inputs)


def test_a_position_gets_nothing_of_itself(float64):
    """Pairs reach keys and values of later positions only."""
    _, (projector, keys, values) = random_inputs()
    changed = projection.project(projector, keys.at[:, 4].add(1.0), values.at[:, 4].add(1.0))
    for before, after in zip(projection.project(projector, keys, values), changed, strict=True):
        np.testing.assert_array_equal(after[:, :4], before[:, :4])
        np.testing.assert_allclose(after[:, 4], before[:, 4] + 1.0, atol=1e-12)
        assert np.abs(after[:, 5:] - before[:, 5:]).max() > 1e-3


def test_closed_gates_leave_the_points_alone(float64):
    _, (projector, keys, values) = random_inputs()
    closed = projector._replace(key_gate=jnp.zeros(2), value_gate=jnp.zeros(2))
    for actual, expected in zip(projection.project(closed, keys, values), (keys, values), strict=True):
        np.testing.assert_array_equal(actual, expected)
