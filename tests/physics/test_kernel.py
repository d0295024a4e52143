import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import lax
from scipy.special import gamma

from lior_jax.physics import kernel
from lior_jax.physics.kernel import Kernel
from tests.oracles import check_adjoint, normal, random_like, softplus, to64, to_numpy

# Compiled whole, and with shapes shared between tests: operation by operation they take three times as long.
values = jax.jit(kernel.values, static_argnames="length")
poles = jax.jit(kernel.poles)
convolve = jax.jit(kernel.convolve)
convolve_scan = jax.jit(kernel.convolve_scan)
log_prior = jax.jit(kernel.log_prior, static_argnames="length")
UNDAMPED = -60.0
"""A raw rate: a decay of 1e-26 a step."""


def random_kernel(heads: int, seed: int = 0) -> Kernel:
    rng = np.random.default_rng(seed)
    return Kernel(*(normal(rng, *shape) for shape in ((heads, 3), (heads, 3), (heads,), (heads,), (heads,))))


def only(mode: int, full: Kernel) -> Kernel:
    """`full` with the amplitudes of the other two modes zero."""
    return full._replace(amplitude=full.amplitude * (jnp.arange(3) == mode)[None])


def raw_order(delta) -> np.ndarray:
    return np.log(delta / (1 - np.asarray(delta)))


def dense_power(delta: float, lag: np.ndarray) -> np.ndarray:
    """`Δ^{−δ}` by the trapezoid rule at y = −10.5 … 2.5. Below y = −11 lies `∫₀^v u^{δ−1} du = v^δ / δ` with `v = e^−11`, all
    taken to decay at its mean rate `v δ / (δ + 1)`."""
    u, v = np.exp(np.arange(-10.5, 3.0)), np.exp(-11.0)
    trapezoid = np.sum(u**delta * np.exp(-u * lag[:, None]), -1)
    tail = v**delta / delta * np.exp(-v * delta / (delta + 1) * lag)
    return (trapezoid + tail) / gamma(delta)


def dense_modes(full: Kernel, length: int) -> np.ndarray:
    """The three modes with their amplitudes and signs, `[3, H, L]`."""
    full, lag = to_numpy(full), np.arange(length, dtype=np.float64)
    modes = np.zeros((3, len(full.order), length))
    for h, ((a0, a1, a2), (beta, xi, zeta)) in enumerate(zip(full.amplitude, softplus(full.rate), strict=True)):
        delta = 1 / (1 + np.exp(-full.order[h]))
        modes[0, h] = a0 * np.exp(-beta * lag)
        modes[1, h] = -a1 * dense_power(delta, lag) * np.exp(-xi * lag)
        modes[2, h] = a2 * np.cos(full.frequency[h] * lag + full.phase[h]) * np.exp(-zeta * lag)
    return modes


def dense_log_prior(full: Kernel, shift, length: int) -> np.ndarray:
    """`ln(e^{a₀ − βΔ} + e^{a₁ − ξΔ} (1 + Δ)^{−δ} + e^{a₂ − ζΔ} (1 + ½ cos(ωΔ + φ)))`, `[H, L]`."""
    full, shift, lag = to_numpy(full), to_numpy(shift), np.arange(length, dtype=np.float64)
    result = np.zeros((len(full.order), length))
    for h, ((a0, a1, a2), (beta, xi, zeta)) in enumerate(zip(full.amplitude, softplus(full.rate), strict=True)):
        delta = 1 / (1 + np.exp(-full.order[h] - shift[h]))
        wave = 1 + 0.5 * np.cos(full.frequency[h] * lag + full.phase[h])
        logarithms = [a0 - beta * lag, a1 - xi * lag - delta * np.log(1 + lag), a2 - zeta * lag + np.log(wave)]
        result[h] = np.logaddexp.reduce(logarithms)
    return result


def dense_convolve(by_lag, x) -> np.ndarray:
    by_lag, x = to_numpy((by_lag, x))
    batch, length, heads, channels = x.shape
    result = np.zeros(x.shape)
    for b, h, channel in itertools.product(range(batch), range(heads), range(channels)):
        result[b, :, h, channel] = np.convolve(by_lag[h], x[b, :, h, channel])[:length]
    return result


def sum_of_poles(system: kernel.Poles, length: int) -> np.ndarray:
    weight, rate = np.asarray(system.weight), np.asarray(system.rate)
    terms = weight[..., None] * np.exp(-rate[..., None] * np.arange(length))
    return terms.sum(1).real


@jax.jit
def run(system, charge, x):
    """`convolve_step` along the positions of `x` `[B, L, H, v]`: the last charge, and all outputs."""
    charge, y = lax.scan(lambda charge, x: kernel.convolve_step(system, charge, x), charge, jnp.moveaxis(x, 1, 0))
    return charge, jnp.moveaxis(y, 0, 1)


def convolve_form(form: str, full: Kernel, x) -> np.ndarray:
    return np.asarray(convolve(values(full, x.shape[1]), x) if form == "dense" else convolve_scan(poles(full), x))


def run_from_nothing(system, x):
    return run(system, no_charge(system, x), x)


def no_charge(system, x):
    """`[B, H, P, v]` before the first position of `x` `[B, L, H, v]`."""
    return jnp.zeros((len(x), *system.rate.shape, x.shape[-1]), system.rate.dtype)


# --- the kernel as a function of the lag -----------------------------------------------------------------------------


def test_power_law():
    """`Δ^{−δ}` for all lags up to 10⁴, in float32: 1 % is what memory needs, 0.5 % is what `kernel` promises."""
    orders = np.linspace(0.1, 0.9, 17)
    amplitude = jnp.tile(jnp.array([0.0, -1.0, 0.0]), (17, 1))
    power = Kernel(
        amplitude, jnp.full((17, 3), UNDAMPED), jnp.asarray(raw_order(orders), jnp.float32), jnp.zeros(17), jnp.zeros(17)
    )
    lag = np.arange(1, 10_001)
    error = np.abs(np.asarray(values(power, 10_001), np.float64)[:, 1:] * lag ** orders[:, None] - 1)
    assert error.max() < 0.01
    assert error.max() < 0.005


@pytest.mark.parametrize("mode", [0, 1, 2], ids=["exponential", "power", "wave"])
def test_each_mode_is_its_formula(mode, float64):
    """In `values` and in `poles`, with both signs of the amplitude, the frequency and the phase."""
    full = random_kernel(5, seed=1)
    alone = only(mode, full)
    expected = dense_modes(full, 40)[mode]
    np.testing.assert_allclose(values(alone, 40), expected, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(sum_of_poles(poles(alone), 40), expected, rtol=1e-11, atol=1e-13)


def test_power_mode_is_subtracted(float64):
    """`−a₁ Δ^{−δ} e^{−ξΔ}` itself, not its quadrature: a positive amplitude takes away at every lag, the zero one included."""
    power = only(1, random_kernel(5, seed=2)._replace(order=jnp.asarray(raw_order([0.1, 0.3, 0.5, 0.7, 0.9]))))
    power = power._replace(amplitude=jnp.abs(power.amplitude))
    lag, delta = np.arange(1, 40), np.array([[0.1], [0.3], [0.5], [0.7], [0.9]])
    expected = -power.amplitude[:, 1:2] * lag**-delta * np.exp(-softplus(np.asarray(power.rate[:, 1:2])) * lag)
    result = values(power, 40)
    np.testing.assert_allclose(result[:, 1:], expected, rtol=0.005)
    assert (np.asarray(result) < 0).all()
    assert np.isfinite(result).all()


def test_split_poles_are_real_but_for_the_wave_and_add_up(float64):
    system = poles(random_kernel(2, seed=4))
    real, wave = kernel.split(system)
    assert not jnp.iscomplexobj(real.rate)
    assert not jnp.iscomplexobj(real.weight)
    assert (real.rate.shape[1], wave.rate.shape[1]) == (16, 1)
    np.testing.assert_allclose(sum_of_poles(real, 9) + sum_of_poles(wave, 9), sum_of_poles(system, 9), atol=1e-12)


def test_values_are_the_real_part_of_seventeen_decaying_poles(float64):
    """One of the exponential, fifteen of the power law, one of the wave."""
    full = random_kernel(5, seed=3)
    system = poles(full)
    assert system.weight.shape == system.rate.shape == (5, 17)
    assert (np.real(system.rate) > 0).all()
    expected = dense_modes(full, 40).sum(0)
    np.testing.assert_allclose(sum_of_poles(system, 40), expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(values(full, 40), expected, rtol=1e-11, atol=1e-12)


@settings(max_examples=3)
@given(heads=st.integers(1, 3), length=st.integers(1, 9), seed=st.integers(0, 999))
@example(heads=2, length=7, seed=0)
def test_values_adjoint(heads, length, seed):
    """All five leaves; the order's is the digamma function against the derivative of the log of the gamma function."""
    check_adjoint(
        lambda full: kernel.values(full, length),
        lambda full, cotangent: (kernel.values_adjoint(full, cotangent),),
        (random_kernel(heads, seed),),
        tol=1e-9,
    )


# --- the kernel as a prior of the lag --------------------------------------------------------------------------------


def test_log_prior_is_its_formula(float64):
    full, shift = random_kernel(5, seed=4), jnp.linspace(-1.5, 2.0, 5)
    np.testing.assert_allclose(log_prior(full, shift, 30), dense_log_prior(full, shift, 30), rtol=1e-12, atol=1e-12)


def test_shift_moves_the_raw_order(float64):
    full, shift = random_kernel(5, seed=5), jnp.array([-2.0, -0.3, 0.0, 0.4, 3.0])
    moved = full._replace(order=full.order + shift)
    np.testing.assert_allclose(log_prior(full, shift, 30), log_prior(moved, jnp.zeros(5), 30), rtol=1e-13)


def test_fractional_order_is_the_exponent_of_the_prior(float64):
    """With raw order 0 the shift `ln(α / (1 − α))` gives `(1 + Δ)^{−α}`: the larger α, the shorter the memory."""
    alpha = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
    zeros = jnp.zeros(5)
    power = Kernel(jnp.tile(jnp.array([-80.0, 0.3, -80.0]), (5, 1)), jnp.full((5, 3), UNDAMPED), zeros, zeros, zeros)
    result = np.asarray(log_prior(power, jnp.asarray(raw_order(alpha)), 30))
    np.testing.assert_allclose(result, 0.3 - alpha[:, None] * np.log(1.0 + np.arange(30)), rtol=1e-12)
    assert (np.diff(result - result[:, :1], axis=0)[:, 1:] < 0).all()


@settings(max_examples=3)
@given(heads=st.integers(1, 3), length=st.integers(1, 9), seed=st.integers(0, 999))
@example(heads=2, length=7, seed=0)
def test_log_prior_adjoint(heads, length, seed):
    """All five leaves. The shift is added to the raw order, so its cotangent is the order's."""

    def adjoint(full, shift, cotangent):
        c_kernel = kernel.log_prior_adjoint(full, shift, cotangent)
        return c_kernel, c_kernel.order

    args = random_kernel(heads, seed), normal(np.random.default_rng(seed), heads)
    check_adjoint(lambda full, shift: kernel.log_prior(full, shift, length), adjoint, args, tol=1e-9)


# --- extreme parameters ----------------------------------------------------------------------------------------------


def extreme_kernels() -> Kernel:
    """Every combination of raw values −30 and 30, in float32."""
    corners = jnp.asarray(np.array(list(itertools.product([-30.0, 30.0], repeat=9))), jnp.float32)
    return Kernel(corners[:, :3], corners[:, 3:6], corners[:, 6], corners[:, 7], corners[:, 8])


def test_extreme_parameters_keep_the_poles_decaying():
    system = poles(extreme_kernels())
    assert (np.real(system.rate) > 0).all()
    assert np.isfinite(system.rate).all()
    assert np.isfinite(system.weight).all()


def assert_exact_in_float32(function, adjoint, expected, full: Kernel) -> None:
    """`function(full)` is the float64 array `expected` and `adjoint(full, cotangent)` its gradient in float64; both finite."""
    cotangent = random_like(jnp.zeros(expected.shape))
    result, gradient = jax.jit(lambda full, cotangent: (function(full), adjoint(full, cotangent)))(full, cotangent)
    with jax.enable_x64(True):
        (exact,) = jax.jit(lambda full, cotangent: jax.vjp(function, full)[1](cotangent))(*to64((full, cotangent)))
    for actual, oracle in zip((result, *gradient), (expected, *exact), strict=True):
        assert np.isfinite(actual).all()
        np.testing.assert_allclose(actual, oracle, rtol=1e-4, atol=1e-4)


def test_extreme_values_in_float32():
    full = extreme_kernels()
    assert_exact_in_float32(lambda full: kernel.values(full, 9), kernel.values_adjoint, dense_modes(full, 9).sum(0), full)


def test_extreme_log_prior_in_float32():
    """A finite logarithm is a positive weight."""
    full = extreme_kernels()
    shift = np.where(np.arange(len(full.order)) % 3 == 0, -3.0, 3.0).astype(np.float32)
    assert_exact_in_float32(
        lambda full: kernel.log_prior(full, shift, 9),
        lambda full, cotangent: kernel.log_prior_adjoint(full, shift, cotangent),
        dense_log_prior(full, shift, 9),
        full,
    )


# --- convolution -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 12])
def test_every_convolution_is_that_of_its_formula(length, float64):
    full, x = random_kernel(2, seed=8), normal(np.random.default_rng(8), 2, length, 2, 3)
    expected = dense_convolve(dense_modes(full, length).sum(0), x)
    system = poles(full)
    np.testing.assert_allclose(convolve(values(full, length), x), expected, atol=1e-11)
    np.testing.assert_allclose(convolve_scan(system, x), expected, atol=1e-11)
    np.testing.assert_allclose(run_from_nothing(system, x)[1], expected, atol=1e-11)


def test_convolutions_agree_over_4096_steps():
    """In float32 to 1e-5 of the largest output, with a power law that reaches over all of them, and an exponential and a
    wave that last for a hundred steps or fewer: rounding turns an undamped wave by `ω Δ` times 6e-8, which is more."""
    rate = np.array([[0.1, np.nan, 0.05], [0.5, np.nan, 0.01]])
    raw_rate = np.where(np.isnan(rate), UNDAMPED, np.log(np.expm1(rate)))
    parameters = [[0.7, -0.8, 0.5], [-0.4, 0.9, 1.1]], raw_rate, [-0.5, 0.8], [0.3, -1.2], [0.4, -1.1]
    full = Kernel(*(jnp.asarray(np.asarray(leaf), jnp.float32) for leaf in parameters))
    x = normal(np.random.default_rng(9), 1, 4096, 2, 1)

    system = poles(full)
    forms = {
        "dense": convolve(values(full, 4096), x),
        "scan": convolve_scan(system, x),
        "step": run_from_nothing(system, x)[1],
        "float64": dense_convolve(dense_modes(full, 4096).sum(0), x),
    }
    tolerance = 1e-5 * np.abs(forms["float64"]).max(axis=(0, 1, 3), keepdims=True)
    for one, other in itertools.combinations(forms, 2):
        difference = np.abs(np.asarray(forms[one], np.float64) - np.asarray(forms[other], np.float64))
        assert (difference <= tolerance).all(), (one, other)


def test_charge_is_a_fixed_number_of_sums_over_the_history(float64):
    """`m_p = Σ_s e^{−s_p (t − s)} x_s`: the same room after one position and after twelve."""
    system, x = poles(random_kernel(2, seed=10)), normal(np.random.default_rng(10), 2, 12, 2, 3)
    charge = no_charge(system, x)
    for t in range(12):
        charge, _ = run(system, charge, x[:, t : t + 1])
        decay = np.exp(-np.asarray(system.rate)[..., None] * np.arange(t, -1, -1))
        expected = np.einsum("hps,bshv->bhpv", decay, x[:, : t + 1])
        assert charge.shape == expected.shape == (2, 2, 17, 3)
        np.testing.assert_allclose(charge, expected, atol=1e-12)


def test_a_carried_charge_continues_the_run(float64):
    full, x = random_kernel(2, seed=11), normal(np.random.default_rng(11), 2, 12, 2, 3)
    system = poles(full)
    charge, early = run_from_nothing(system, x[:, :5])
    _, late = run(system, charge, x[:, 5:])
    expected = dense_convolve(dense_modes(full, 12).sum(0), x)
    np.testing.assert_allclose(np.concatenate([early, late], 1), expected, atol=1e-11)


@pytest.mark.parametrize(("length", "tile"), [(9, 4), (19, 2), (8, None)])
def test_convolution_by_tiles(length, tile, float64):
    """One by one, in loops over several, and all at once; and their adjoint."""
    rng = np.random.default_rng(16)
    by_lag, x = normal(rng, 2, length), normal(rng, 2, length, 2, 3)
    np.testing.assert_allclose(kernel.convolve(by_lag, x, tile=tile), dense_convolve(by_lag, x), atol=1e-12)
    tiled = {"precision": "float32", "tile": tile}
    check_adjoint(partial(kernel.convolve, **tiled), partial(kernel.convolve_adjoint, **tiled), (by_lag, x), tol=1e-9)


@pytest.mark.parametrize("form", ["dense", "scan"])
def test_convolution_never_sees_the_future(form, float64):
    """To the last bit: later inputs change nothing before them, and everything after."""
    full, x = random_kernel(2, seed=12), normal(np.random.default_rng(12), 2, 12, 2, 3)
    before, after = (convolve_form(form, full, inputs) for inputs in (x, x.at[:, 4:].add(7.0)))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).all()


@pytest.mark.parametrize("form", ["dense", "scan"])
def test_sequences_and_heads_do_not_mix(form, float64):
    full, x = random_kernel(2, seed=13), normal(np.random.default_rng(13), 2, 12, 2, 3)
    before = convolve_form(form, full, x)
    one_input = convolve_form(form, full, x.at[1, :, 0].add(3.0))
    changed = np.zeros(x.shape, bool)
    changed[1, :, 0] = True
    np.testing.assert_array_equal(one_input != before, changed)
    one_head = convolve_form(form, full._replace(amplitude=full.amplitude.at[0].add(3.0)), x)
    np.testing.assert_array_equal(one_head != before, np.broadcast_to(np.array([True, False])[:, None], x.shape))


def test_convolution_is_linear_in_kernel_and_input(float64):
    rng = np.random.default_rng(14)
    kernels, inputs = normal(rng, 2, 2, 12), normal(rng, 2, 2, 12, 2, 3)
    result = convolve(2.0 * kernels[0] - 3.0 * kernels[1], 5.0 * inputs[0] - inputs[1])
    parts = [[dense_convolve(by_lag, x) for x in inputs] for by_lag in kernels]
    expected = 10.0 * parts[0][0] - 2.0 * parts[0][1] - 15.0 * parts[1][0] + 3.0 * parts[1][1]
    np.testing.assert_allclose(result, expected, atol=1e-11)


def test_coarse_products_of_a_convolution():
    """bfloat16 has 8 bits: products of order one err by about 1e-2, and do err."""
    rng = np.random.default_rng(15)
    by_lag, x, cotangent = normal(rng, 2, 6), normal(rng, 2, 6, 2, 3), normal(rng, 2, 6, 2, 3)
    exact = kernel.convolve(by_lag, x), *kernel.convolve_adjoint(by_lag, x, cotangent)
    coarse = kernel.convolve(by_lag, x, "bfloat16"), *kernel.convolve_adjoint(by_lag, x, cotangent, "bfloat16")
    np.testing.assert_allclose(exact[0], dense_convolve(by_lag, x), atol=1e-5)
    for one, other in zip(exact, coarse, strict=True):
        error = np.linalg.norm(one - other) / np.linalg.norm(one)
        assert 1e-4 < error < 1e-2


@settings(max_examples=3)
@given(
    batch=st.integers(1, 2), length=st.integers(1, 7), heads=st.integers(1, 3), v=st.integers(1, 3), seed=st.integers(0, 999)
)
@example(batch=2, length=5, heads=2, v=3, seed=0)
def test_convolve_adjoint(batch, length, heads, v, seed):
    rng = np.random.default_rng(seed)
    args = normal(rng, heads, length), normal(rng, batch, length, heads, v)
    check_adjoint(kernel.convolve, kernel.convolve_adjoint, args, tol=1e-9)
