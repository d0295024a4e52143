import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax.learning import nudge
from lior_jax.physics.pair import Pair
from tests.oracles import normal


def end_point(seed=0):
    """State, momentum and their cotangents at the end of a block; every position has a cotangent of another size."""
    rng = np.random.default_rng(seed)
    s, p, c_s, c_p = (normal(rng, 2, 3, 5) for _ in range(4))
    sizes = jnp.asarray(10.0 ** rng.uniform(-6, 0, (2, 3, 1)))
    return s, p, sizes * c_s, sizes * c_p


def test_every_position_is_pushed_by_the_same_share_of_its_state():
    s, _, c_s, c_p = end_point()
    epsilon = nudge.strength(1e-3, s, c_s, c_p)
    assert epsilon.shape == (2, 3, 1)
    push = np.sqrt(np.sum(np.square(epsilon * c_s) + np.square(epsilon * c_p), -1))
    np.testing.assert_allclose(push, 1e-3 * np.linalg.norm(s, axis=-1), rtol=1e-5)


def test_the_push_is_small_beside_the_smaller_state_but_has_a_floor():
    """The flow's start counts if it is smaller; below the constant in directions, `rms(s)` = 1e-3, no size does."""
    s, _, c_s, c_p = end_point()
    for start, expected in ((0.5, 0.5), (2e-3, 2e-3), (1e-5, 1e-3), (0.0, 1e-3), (100.0, None)):
        epsilon = nudge.strength(1e-3, s, c_s, c_p, start=jnp.full((2, 3, 1), start**2))
        push = np.sqrt(np.mean(np.square(epsilon * c_s) + np.square(epsilon * c_p), -1))
        own = np.sqrt(np.mean(np.square(s), -1))
        np.testing.assert_allclose(push, 1e-3 * (own if expected is None else np.minimum(own, expected)), rtol=1e-5)


@pytest.mark.parametrize("mode", ["centred", "one_sided"])
def test_runs_are_pushed_along_the_symplectic_gradient(mode):
    """The ends are `(s − β ε λ_p, p + β ε λ_s)` for the two signs β, and their distance is the span."""
    s, p, c_s, c_p = end_point()
    epsilon = nudge.strength(0.1, s, c_s, c_p)
    sides = nudge.SIDES[mode]
    assert sides == {"centred": (1.0, -1.0), "one_sided": (1.0, 0.0)}[mode]
    s_pair, p_pair, span = nudge.nudged_pair(s, p, c_s, c_p, epsilon, sides)
    for side, s_end, p_end in zip(sides, s_pair.ends(span), p_pair.ends(span), strict=True):
        np.testing.assert_allclose(s_end, s - side * epsilon * c_p, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(p_end, p + side * epsilon * c_s, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(s_pair.slope, -c_p)
    np.testing.assert_allclose(p_pair.slope, c_s)
    np.testing.assert_allclose(span, (sides[0] - sides[1]) * epsilon, rtol=1e-6)


@pytest.mark.parametrize("mode", ["centred", "one_sided"])
def test_the_push_can_be_taken_away_again(mode):
    s, p, c_s, c_p = end_point()
    epsilon = nudge.strength(0.1, s, c_s, c_p)
    s_pair, p_pair, _ = nudge.nudged_pair(s, p, c_s, c_p, epsilon, nudge.SIDES[mode])
    np.testing.assert_allclose(nudge.without_nudge(s_pair, epsilon, nudge.SIDES[mode]), s, atol=1e-6)
    np.testing.assert_allclose(nudge.without_nudge(p_pair, epsilon, nudge.SIDES[mode]), p, atol=1e-6)


def test_without_nudge_is_the_unpushed_run():
    """One-sided: exactly the run whose push is zero, whatever became of the other. Centred: the mean of both."""
    mean, slope = normal(np.random.default_rng(1), 2, 2, 3, 5)
    epsilon = jnp.full((2, 3, 1), 0.2)
    free = Pair(mean, slope).ends(epsilon)[1]
    np.testing.assert_allclose(nudge.without_nudge(Pair(mean, slope), epsilon, nudge.SIDES["one_sided"]), free, atol=1e-6)
    np.testing.assert_allclose(nudge.without_nudge(Pair(mean, slope), epsilon, nudge.SIDES["centred"]), mean)


def test_random_signs_tell_sequences_apart_that_differ_in_their_order():
    """As evenly as coins. A sign is the sequence's own: the same in any batch, and at any place of it."""
    rng = np.random.default_rng(2)
    tokens = jnp.asarray([rng.permutation(12) for _ in range(64)])
    sign, free = nudge.sides_of("random_sign", tokens)
    assert sign.shape == free.shape == (64, 1, 1)
    np.testing.assert_array_equal(np.abs(sign), 1)
    np.testing.assert_array_equal(free, 0)
    assert 16 < np.sum(np.asarray(sign) > 0) < 48
    np.testing.assert_array_equal(nudge.sides_of("random_sign", tokens[5:9])[0], sign[5:9])
    moved = nudge.sides_of("random_sign", jnp.asarray(np.eye(32, dtype=np.int32)))[0]
    assert 4 < np.sum(np.asarray(moved) > 0) < 28


def test_a_position_without_a_pull_stays_finite():
    """λ = 0 and s = 0, each alone and both: nothing to divide by, and in float32 the squares of small numbers vanish."""
    s, p, c_s, c_p = end_point()
    s = s.at[0, 0].set(0.0).at[0, 1].set(0.0)
    c_s = c_s.at[0, 0].set(0.0).at[0, 2].set(0.0).at[1, 0].set(1e-30)
    c_p = c_p.at[0, 0].set(0.0).at[0, 2].set(0.0).at[1, 0].set(0.0)
    epsilon = nudge.strength(1e-3, s, c_s, c_p)
    assert (epsilon > 0).all()
    s_pair, p_pair, span = nudge.nudged_pair(s, p, c_s, c_p, epsilon, nudge.SIDES["centred"])
    for leaf in (epsilon, span, 1 / span, *s_pair, *p_pair, *s_pair.ends(span), *p_pair.ends(span)):
        assert np.isfinite(leaf).all()
    for end, free in ((s_pair, s), (p_pair, p)):
        np.testing.assert_array_equal(end.ends(span)[0][0, 2], free[0, 2])
