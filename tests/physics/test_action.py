import numpy as np

from lior_jax.physics import geometry
from lior_jax.physics.action import path_action
from tests.oracles import dense_metric, normal, random_metric


def test_straight_line(float64):
    ends = normal(np.random.default_rng(0), 2, 3, 4)
    np.testing.assert_allclose(path_action(ends), np.linalg.norm(ends[1] - ends[0], axis=-1), rtol=1e-12)


def test_refining_a_straight_line_changes_nothing(float64):
    """Nor does the pace at which it is walked."""
    begin, end = np.asarray(normal(np.random.default_rng(1), 2, 3, 4))
    for tau in (np.linspace(0, 1, 8), np.array([0, 0.01, 0.5, 0.9, 1.0])):
        path = begin + tau[:, None, None] * (end - begin)
        np.testing.assert_allclose(path_action(path), path_action(np.stack([begin, end])), rtol=1e-12)


def test_square(float64):
    """Four sides of length 2, and a return of zero length."""
    corners = np.array([[0, 0], [2, 0], [2, 2], [0, 2], [0, 0], [0, 0]], float)
    np.testing.assert_allclose(path_action(corners), 8.0)


def test_a_detour_is_longer(float64):
    path = np.asarray(normal(np.random.default_rng(2), 6, 3, 4))
    assert (path_action(path) > path_action(path[[0, -1]])).all()


def test_scaling_and_direction(float64):
    path = np.asarray(normal(np.random.default_rng(3), 6, 2, 4))
    np.testing.assert_allclose(path_action(-3 * path), 3 * path_action(path), rtol=1e-12)
    np.testing.assert_allclose(path_action(path[::-1]), path_action(path), rtol=1e-12)
    np.testing.assert_allclose(path_action(path + 7.0), path_action(path), rtol=1e-12)


def test_whitened_action_is_the_metric_length(float64):
    metric, path = random_metric(4, 3, 2), normal(np.random.default_rng(4), 5, 4)
    step = np.diff(np.asarray(path), axis=0)
    expected = np.sqrt(np.einsum("km,mn,kn->k", step, dense_metric(metric), step)).sum()
    np.testing.assert_allclose(path_action(geometry.whiten(metric, path.T).T), expected, rtol=1e-11)
