"""The LIoR kernel, a decaying function of the lag with three modes: its values, its convolution, and an O(1) recurrence.

    K(Δ) = a₀ e^{−βΔ} − a₁ Δ^{−δ} e^{−ξΔ} + a₂ cos(ωΔ + φ) e^{−ζΔ}   for Δ ≥ 0,   0 for Δ < 0

The power law is a finite sum of exponentials, the trapezoid rule in `y = ln u` on `Δ^{−δ} = ∫ u^{δ−1} e^{−uΔ} du / Γ(δ)`
with one slow pole for the tail below the nodes. So `K` is a sum of complex poles `Re Σ_p c_p e^{−s_p Δ}`, finite at
`Δ = 0`, and within 0.5 % of the formula above for lags 1 … 10⁴. Literature: sums of exponentials by that quadrature, Beylkin
and Monzón 2010; convolution and recurrence by poles, as in linear state-space layers, Gu et al. 2022. Source: docs/design.md
section 3.

Shapes: `H` kernels, `L` positions, `P` poles, `B` sequences, `v` channels of each kernel.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import digamma, gammaln

from lior_jax.physics.lags import delay, delay_adjoint, spread, sum_by_lag
from lior_jax.physics.numerics import Precision, contract, softplus_adjoint
from lior_jax.physics.tiling import Tile, in_tiles

NODES = np.arange(-10.5, 3.0, 1.0)
"""Quadrature nodes `y = ln u` of the power law."""
_TAIL = float(NODES[0]) - 0.5
"""Upper limit of the tail in `y`, which the slow pole replaces."""
_SLOWEST = math.exp(_TAIL)


class Kernel(NamedTuple):
    """Raw parameters of `H` kernels: `amplitude` `[H, 3]` = a; `rate` `[H, 3]` → β, ξ, ζ > 0 by softplus, per position;
    `order` `[H]` → δ in (0, 1) by the logistic function; `frequency` `[H]` = ω and `phase` `[H]` = φ in radians."""

    amplitude: Array
    rate: Array
    order: Array
    frequency: Array
    phase: Array


class Poles(NamedTuple):
    """`weight` `[H, P]` = c and `rate` `[H, P]` = s with `Re s > 0`, complex: `K(Δ) = Re Σ_p c_p e^{−s_p Δ}`."""

    weight: Array
    rate: Array


def _power_poles(order: Array) -> tuple[Array, Array]:
    """Weights and rates `[H, 15]` of the poles of `Δ^{−δ}`: the nodes, then the slow pole."""
    delta = order[:, None]
    nodes = jnp.asarray(NODES, order.dtype)[None]
    weights = jnp.exp(nodes * delta - gammaln(delta))
    slow_weight = jnp.exp(_TAIL * delta - gammaln(1 + delta))
    slow_rate = _SLOWEST * delta / (1 + delta)  # the tail's mean rate
    rates = jnp.broadcast_to(jnp.exp(nodes), weights.shape)
    return jnp.concatenate([weights, slow_weight], -1), jnp.concatenate([rates, slow_rate], -1)


def poles(kernel: Kernel) -> Poles:
    """All poles of the three modes, `P = 17`."""
    rate = jax.nn.softplus(kernel.rate)
    power_weight, power_rate = _power_poles(jax.nn.sigmoid(kernel.order))
    exponential = kernel.amplitude[:, :1], rate[:, :1]
    power = -kernel.amplitude[:, 1:2] * power_weight, power_rate + rate[:, 1:2]
    wave = (
        kernel.amplitude[:, 2:] * jnp.exp(1j * kernel.phase[:, None]),
        rate[:, 2:] - 1j * kernel.frequency[:, None],
    )
    return Poles(*(jnp.concatenate(parts, -1) for parts in zip(exponential, power, wave, strict=True)))


def split(system: Poles) -> tuple[Poles, Poles]:
    """Split the result of `poles` into its `P − 1` real poles, as real numbers, and the wave's complex pole; `K` is the sum of
    both parts."""
    real, wave = (jax.tree.map(lambda x, part=part: x[:, part], system) for part in (slice(-1), slice(-1, None)))
    return jax.tree.map(jnp.real, real), wave


def values(kernel: Kernel, length: int) -> Array:
    """`K(Δ)` for the lags `Δ = 0 … L − 1`: `[H, L]`."""
    modes, _ = _modes(kernel, length)
    return jnp.sum(kernel.amplitude[..., None] * modes, axis=1)


def values_adjoint(kernel: Kernel, cotangent: Array) -> Kernel:
    """Adjoint of `values` for a cotangent `[H, L]`."""
    length = cotangent.shape[-1]
    lag = jnp.arange(length, dtype=cotangent.dtype)[None]
    modes, (by_order, by_angle) = _modes(kernel, length)
    c_modes = kernel.amplitude[..., None] * cotangent[:, None]
    delta = jax.nn.sigmoid(kernel.order)
    c_angle = c_modes[:, 2] * by_angle
    return Kernel(
        amplitude=jnp.sum(cotangent[:, None] * modes, -1),
        rate=softplus_adjoint(kernel.rate, -jnp.sum(c_modes * modes * lag[:, None], -1)),
        order=jnp.sum(c_modes[:, 1] * by_order, -1) * delta * jax.nn.sigmoid(-kernel.order),
        frequency=jnp.sum(c_angle * lag, -1),
        phase=jnp.sum(c_angle, -1),
    )


def _modes(kernel: Kernel, length: int) -> tuple[Array, tuple[Array, Array]]:
    """The modes at unit amplitude, `[H, 3, L]`; and the derivatives of the power mode with respect to δ and of the wave with
    respect to its angle, `[H, L]` each."""
    lag = jnp.arange(length, dtype=kernel.order.dtype)[None]
    decay = jnp.exp(-jax.nn.softplus(kernel.rate)[..., None] * lag[None])
    delta = jax.nn.sigmoid(kernel.order)[:, None]
    weights, rates = _power_poles(delta[:, 0])
    terms = weights[..., None] * jnp.exp(-rates[..., None] * lag[None])
    nodes = jnp.asarray(NODES, lag.dtype)[None]
    slopes = (nodes - digamma(delta))[..., None] * terms[:, :-1]
    slow_slope = (_TAIL - digamma(1 + delta) - lag * _SLOWEST / (1 + delta) ** 2) * terms[:, -1]
    angle = kernel.frequency[:, None] * lag + kernel.phase[:, None]
    modes = jnp.stack([jnp.ones_like(angle), -jnp.sum(terms, 1), jnp.cos(angle)], 1) * decay
    by_order = -(jnp.sum(slopes, 1) + slow_slope) * decay[:, 1]
    return modes, (by_order, -jnp.sin(angle) * decay[:, 2])


# --- the kernel as a prior over lags ---------------------------------------------------------------------------------


def log_prior(kernel: Kernel, shift: Array, length: int) -> Array:
    """`ln K₊(Δ)` of the positive kernel `e^{a₀ − βΔ} + e^{a₁ − ξΔ} (1 + Δ)^{−δ} + e^{a₂ − ζΔ} (1 + ½ cos(ωΔ + φ))`: `[H, L]`.

    A prior must be positive, so the amplitudes are logarithms here, and the wave modulates its envelope.

    Args:
        shift: `[H]`, added to the raw order: `ln(α / (1 − α))` for a fractional order α; 0 for the learned δ.
    """
    return jax.nn.logsumexp(_log_modes(kernel, shift, length), axis=1)


def log_prior_adjoint(kernel: Kernel, shift: Array, cotangent: Array) -> Kernel:
    """Adjoint of `log_prior` with respect to the kernel, for a cotangent `[H, L]`."""
    length = cotangent.shape[-1]
    lag = jnp.arange(length, dtype=cotangent.dtype)[None]
    c_modes = cotangent[:, None] * jax.nn.softmax(_log_modes(kernel, shift, length), axis=1)
    angle = kernel.frequency[:, None] * lag + kernel.phase[:, None]
    c_angle = -c_modes[:, 2] * 0.5 * jnp.sin(angle) / (1 + 0.5 * jnp.cos(angle))
    delta = jax.nn.sigmoid(kernel.order + shift)
    return Kernel(
        amplitude=jnp.sum(c_modes, -1),
        rate=softplus_adjoint(kernel.rate, -jnp.sum(c_modes * lag[:, None], -1)),
        order=-jnp.sum(c_modes[:, 1] * jnp.log1p(lag), -1) * delta * jax.nn.sigmoid(-kernel.order - shift),
        frequency=jnp.sum(c_angle * lag, -1),
        phase=jnp.sum(c_angle, -1),
    )


def _log_modes(kernel: Kernel, shift: Array, length: int) -> Array:
    lag = jnp.arange(length, dtype=kernel.order.dtype)[None]
    delta = jax.nn.sigmoid(kernel.order + shift)[:, None]
    wave = jnp.log1p(0.5 * jnp.cos(kernel.frequency[:, None] * lag + kernel.phase[:, None]))
    shapes = jnp.stack([jnp.zeros_like(wave), -delta * jnp.log1p(lag), wave], 1)
    return kernel.amplitude[..., None] + shapes - jax.nn.softplus(kernel.rate)[..., None] * lag[None]


# --- convolution -----------------------------------------------------------------------------------------------------


TILE = 128
"""Positions per tile of the convolution."""


def convolve(by_lag: Array, x: Array, precision: Precision = "float32", tile: int | None = TILE) -> Array:
    """`y_t = Σ_{s≤t} K_h(t − s) x_s`, by matrix products, one `tile` of positions at a time (`tiling`).

    Args:
        by_lag: `[H, L]`, from `values`.
        x: `[B, L, H, v]`.
    """

    def one_tile(tile: Tile) -> tuple[Array, None, None]:
        return contract("hij,bjhv->bihv", _matrix(by_lag, tile), x[:, : tile.stop], precision), None, None

    return in_tiles(one_tile, x.shape[1], tile)[0]


def convolve_adjoint(
    by_lag: Array, x: Array, cotangent: Array, precision: Precision = "float32", tile: int | None = TILE
) -> tuple[Array, Array]:
    """Adjoint of `convolve`: cotangents of `by_lag` and `x`."""
    length = x.shape[1]

    def one_tile(tile: Tile) -> tuple[None, Array, Array]:
        own = tile.own(cotangent, 1)
        c_x = contract("hij,bihv->bjhv", _matrix(by_lag, tile), own, precision)
        c_by_lag = sum_by_lag(contract("bihv,bjhv->hij", own, x[:, : tile.stop], precision))
        c_by_lag = delay_adjoint(c_by_lag, tile.first, tile.rows)
        return None, c_x, jnp.pad(c_by_lag, ((0, 0), (0, length - tile.stop)))

    _, c_x, c_by_lag = in_tiles(one_tile, length, tile)
    return c_by_lag, c_x


def _matrix(by_lag: Array, tile: Tile) -> Array:
    """Rows of the causal matrix `[H, T, stop]`."""
    return spread(delay(by_lag, tile.first, tile.rows, tile.stop), tile.rows)


def convolve_scan(system: Poles, x: Array) -> Array:
    """`convolve` as an associative scan over positions, in depth `O(log L)` and work `O(P L)` (tool). `x` `[B, L, H, v]`."""

    def join(early, late):
        return late[0] * early[0], late[0] * early[1] + late[1]

    decay = jnp.exp(-system.rate)[None, None, :, :, None]
    charge = jnp.broadcast_to(x[:, :, :, None], (*x.shape[:3], decay.shape[3], x.shape[3])).astype(decay.dtype)
    _, charge = lax.associative_scan(join, (jnp.broadcast_to(decay, charge.shape), charge), axis=1)
    return _read(system, charge)


def convolve_step(system: Poles, charge: Array, x: Array) -> tuple[Array, Array]:
    """One position of `convolve`, at a cost independent of the length of the history.

    Args:
        charge: `[B, H, P, v]`, complex if the poles are: the state of each pole after the previous step; zero at first.
        x: `[B, H, v]`.

    Returns:
        The new charge, and `y` `[B, H, v]`.
    """
    charge = jnp.exp(-system.rate)[None, :, :, None] * charge + x[:, :, None]
    return charge, _read(system, charge)


def convolve_more(
    system: Poles, charge: Array, x: Array, lengths: Array, precision: Precision = "float32"
) -> tuple[Array, Array]:
    """Continue `convolve` by a chunk of `C` positions.

    Args:
        charge: `[B, H, P, v]`, the state before the chunk.
        x: `[B, C, H, v]`.
        lengths: `[B]`, how many of the chunk's positions each sequence has; the rest is padding and has no effect.

    Returns:
        The charge after each sequence's last position, and `y` `[B, C, H, v]`.
    """
    decay = decay_by_lag(system, x.shape[1])
    own = convolve(jnp.sum(jnp.real(system.weight[None] * decay), -1).T, x, precision)
    # The charge belongs to the position before the chunk: one step further back than the chunk's first input.
    earlier = jnp.einsum("ihp,bhpv->bihv", (system.weight * jnp.exp(-system.rate))[None] * decay, charge)
    kept, written = fade(system, x.shape[1], lengths)
    charge = kept[..., None] * charge + jnp.einsum("bjhp,bjhv->bhpv", written, x.astype(written.dtype))
    return charge, own + jnp.real(earlier)


def decay_by_lag(system: Poles, length: int) -> Array:
    """`e^{−s_p Δ}` for the lags `0 … C − 1`: `[C, H, P]`."""
    return jnp.exp(-system.rate[None] * jnp.arange(length, dtype=jnp.real(system.rate).dtype)[:, None, None])


def fade(system: Poles, length: int, lengths: Array) -> tuple[Array, Array]:
    """Decay factors up to the last position of each sequence: of the state before a chunk, `e^{−s_p n}` `[B, H, P]` with `n` of
    `lengths` `[B]`, and of the inputs at its `length` positions, `[B, length, H, P]`, 0 past a sequence's length."""
    real = jnp.real(system.rate).dtype
    age = (lengths[:, None] - 1 - jnp.arange(length)[None])[..., None, None]
    written = jnp.where(age >= 0, jnp.exp(-system.rate[None, None] * jnp.maximum(age, 0).astype(real)), 0)
    return jnp.exp(-system.rate[None] * lengths[:, None, None].astype(real)), written


def _read(system: Poles, charge: Array) -> Array:
    """`Re Σ_p c_p m_p` for charges `[…, H, P, v]`."""
    weight = system.weight.reshape((1,) * (charge.ndim - 3) + (*system.weight.shape, 1))
    return jnp.sum(jnp.real(weight * charge), axis=-2)
