"""Integrators as data: palindromes, their schedules, and how large a step they take."""

import numpy as np
import pytest

from lior_jax.physics.integrators import VELOCITY_VERLET, YOSHIDA4, schedule, stability_limit

# Another palindrome with inner kicks, so that nothing rests on the shape of Verlet's. (McLachlan's two-stage scheme.)
TWO_STAGE = (0.1931833, 0.5, 1 - 2 * 0.1931833, 0.5, 0.1931833)
ALL = {"verlet": VELOCITY_VERLET, "yoshida4": YOSHIDA4, "two_stage": TWO_STAGE}


@pytest.mark.parametrize("coefficients", ALL.values(), ids=ALL)
def test_integrators_are_palindromic_and_consistent(coefficients):
    assert coefficients == coefficients[::-1]
    assert len(coefficients) % 2 == 1
    np.testing.assert_allclose(sum(coefficients[::2]), 1.0)
    np.testing.assert_allclose(sum(coefficients[1::2]), 1.0)


def test_verlet_schedule_merges_neighbouring_kicks():
    times = schedule(VELOCITY_VERLET, steps=3, step_size=0.2)
    np.testing.assert_allclose(times.kicks, [0.1, 0.2, 0.2])
    np.testing.assert_allclose(times.drifts, [0.2, 0.2, 0.2])
    np.testing.assert_allclose(times.final_kick, 0.1)


def test_two_stage_schedule_merges_neighbouring_kicks():
    a = TWO_STAGE[0]
    times = schedule(TWO_STAGE, steps=2, step_size=2.0)
    np.testing.assert_allclose(times.kicks, 2 * np.array([a, 1 - 2 * a, 2 * a, 1 - 2 * a]))
    np.testing.assert_allclose(times.drifts, [1.0, 1.0, 1.0, 1.0])
    np.testing.assert_allclose(times.final_kick, 2 * a)


@pytest.mark.parametrize("coefficients", ALL.values(), ids=ALL)
@pytest.mark.parametrize("steps", [1, 4])
def test_schedule_lasts_as_long_as_its_steps(coefficients, steps):
    times = schedule(coefficients, steps, 0.3)
    np.testing.assert_allclose(sum(times.kicks) + times.final_kick, 0.3 * steps)
    np.testing.assert_allclose(sum(times.drifts), 0.3 * steps)


def test_final_kick_is_left_out_on_request():
    with_kick, without = (schedule(VELOCITY_VERLET, 3, 0.2, final_kick=x) for x in (True, False))
    assert without.final_kick == 0
    np.testing.assert_array_equal(with_kick.kicks, without.kicks)
    np.testing.assert_array_equal(with_kick.drifts, without.drifts)


def test_yoshida_is_three_steps_of_verlet():
    """Their lengths `w` add up to one and their cubes to nothing, which is what makes the order four."""
    lengths = np.array(YOSHIDA4[1::2])
    np.testing.assert_allclose([lengths.sum(), (lengths**3).sum()], [1, 0], atol=1e-14)
    np.testing.assert_allclose(YOSHIDA4[::2], np.convolve(lengths, [0.5, 0.5]), rtol=1e-14)


@pytest.mark.parametrize(("coefficients", "limit"), [(VELOCITY_VERLET, 2.0), (YOSHIDA4, 1.5734)], ids=["verlet", "yoshida4"])
def test_stability_limit_is_where_an_oscillation_begins_to_grow(coefficients, limit):
    """Just below it a unit oscillator stays bounded over many steps, just above it does not."""
    assert stability_limit(coefficients) == pytest.approx(limit, abs=2e-3)
    largest = []
    for size in (stability_limit(coefficients) - 0.01, stability_limit(coefficients) + 0.01):
        s, p, path = 1.0, 0.3, []
        for _ in range(2000):
            for index, length in enumerate(coefficients):
                s, p = (s, p - length * size * s) if index % 2 == 0 else (s + length * size * p, p)
            path.append(abs(s))
        largest.append(max(path))
    assert largest[0] < 30
    assert largest[1] > 1e6
