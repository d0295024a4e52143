"""Keys and values by projection of the field: each position's key and value get a read-out of the field of earlier positions.

    T_t = Σ_{s<t} K_h(t − s) v_s k_sᵀ,      k̃_t = k_t + γ_k T_tᵀ a,      ṽ_t = v_t + γ_v T_t b

with probes `a` and `b` and gates γ per head. `T_tᵀ a = Σ_{s<t} K(t − s) ⟨v_s, a⟩ k_s`, and `T_t b` likewise, so both are one
causal convolution with the kernel, and the field itself is never built. Source: the audit's "extract K, V via geometric
projection", and docs/design.md section 3.

Shapes: `B` sequences, `L` positions, `H` heads, `m` whitened chart dimensions, `v` value dimensions, `P` poles. Keys are
`[B, L, H, m]`, values `[B, L, H, v]`, the poles' charges `[B, H, P, m + v]`, complex.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from lior_jax.physics import kernel
from lior_jax.physics.kernel import Poles
from lior_jax.physics.numerics import Precision

Pair = tuple[Array, Array]
"""Keys and values."""


class Projector(NamedTuple):
    """`by_lag` `[H, L]`, the kernel's values, lag 0 unused; `key_probe` `[H, v]` = a, `value_probe` `[H, m]` = b; the
    gates `key_gate` and `value_gate` `[H]`."""

    by_lag: Array
    key_probe: Array
    value_probe: Array
    key_gate: Array
    value_gate: Array


class _Held(NamedTuple):
    """What is written to the field or read from it: `[B, L, H, m]` for keys and `[B, L, H, v]` for values."""

    keys: Array
    values: Array

    @staticmethod
    def split(x: Array, keys: Array) -> "_Held":
        return _Held(x[..., : keys.shape[-1]], x[..., keys.shape[-1] :])

    def joined(self) -> Array:
        return jnp.concatenate(self, -1)


def project(projector: Projector, keys: Array, values: Array, precision: Precision = "float32") -> Pair:
    """Projected keys and values, for sequences from their beginning."""
    written = _written(projector, keys, values).joined()
    return _opened(projector, keys, values, kernel.convolve(_before(projector.by_lag), written, precision))


def project_adjoint(
    projector: Projector, keys: Array, values: Array, cotangent: Pair, precision: Precision = "float32"
) -> tuple[Projector, Array, Array]:
    """Adjoint of `project`: cotangents of projector, keys and values."""
    c_keys, c_values = cotangent
    written = _written(projector, keys, values)
    # Gates commute with the convolution. Applied before it, their cotangents need no second convolution.
    gated = _gated(projector, written)
    c_by_lag, c_gated = kernel.convolve_adjoint(
        _before(projector.by_lag), gated.joined(), _Held(*cotangent).joined(), precision
    )
    c_gated = _Held.split(c_gated, keys)
    c_written = _gated(projector, c_gated)
    on_values, on_keys = (jnp.sum(c * x, -1, keepdims=True) for c, x in zip(c_written, (keys, values), strict=True))
    c_keys = c_keys + _probed(projector.key_probe, values) * c_written.keys + on_keys * projector.value_probe[None, None]
    c_values = c_values + _probed(projector.value_probe, keys) * c_written.values + on_values * projector.key_probe[None, None]
    c_projector = Projector(
        by_lag=_before(c_by_lag),
        key_probe=jnp.sum(on_values * values, (0, 1)),
        value_probe=jnp.sum(on_keys * keys, (0, 1)),
        key_gate=jnp.sum(c_gated.keys * written.keys, (0, 1, 3)),
        value_gate=jnp.sum(c_gated.values * written.values, (0, 1, 3)),
    )
    return c_projector, c_keys, c_values


def project_step(projector: Projector, system: Poles, charge: Array, keys: Array, values: Array) -> tuple[Array, Pair]:
    """One position, `[B, 1, H, m]` and `[B, 1, H, v]`, at a cost that does not grow with the history.

    Args:
        system: the poles of the kernel; `projector.by_lag` is not used.
        charge: state of the poles after the previous position; zero before the first.

    Returns:
        The new charge, and projected keys and values.
    """
    written = _written(projector, keys, values).joined()
    charge, held = kernel.convolve_step(system, charge, written[:, 0])
    return charge, _opened(projector, keys, values, held[:, None] - _own(system) * written)


def project_more(
    projector: Projector,
    system: Poles,
    charge: Array,
    keys: Array,
    values: Array,
    lengths: Array,
    precision: Precision = "float32",
) -> tuple[Array, Pair]:
    """`project_step` for a chunk of positions, of which each sequence has `lengths` `[B]`."""
    written = _written(projector, keys, values).joined()
    charge, held = kernel.convolve_more(system, charge, written, lengths, precision)
    return charge, _opened(projector, keys, values, held - _own(system) * written)


def _before(by_lag: Array) -> Array:
    """The kernel without lag 0, so that a position reads earlier ones only."""
    return by_lag.at[:, 0].set(0)


def _own(system: Poles) -> Array:
    """`K(0)` of each head, broadcast to points."""
    return jnp.sum(jnp.real(system.weight), -1)[None, None, :, None]


def _written(projector: Projector, keys: Array, values: Array) -> _Held:
    return _Held(_probed(projector.key_probe, values) * keys, _probed(projector.value_probe, keys) * values)


def _probed(probe: Array, x: Array) -> Array:
    return jnp.sum(probe[None, None] * x, -1, keepdims=True)


def _gated(projector: Projector, held: _Held) -> _Held:
    return _Held(projector.key_gate[None, None, :, None] * held.keys, projector.value_gate[None, None, :, None] * held.values)


def _opened(projector: Projector, keys: Array, values: Array, held: Array) -> Pair:
    gated = _gated(projector, _Held.split(held, keys))
    return keys + gated.keys, values + gated.values
