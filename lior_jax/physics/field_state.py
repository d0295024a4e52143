"""The field state of a prompt: one field per pole of the LIoR kernel, written by keys and read by queries.

    T_i = Σ_{j≤i} K_h(i − j) v_j k_jᵀ,      y_i = T_i q_i = Σ_{j≤i} K_h(i − j) v_j ⟨k_j, q_i⟩

With `K(Δ) = Re Σ_p c_p e^{−s_p Δ}` each pole keeps `S_p = Σ_{j≤i} e^{−s_p (i − j)} v_j k_jᵀ`, so that `T = Re Σ_p c_p S_p`
is updated at a cost independent of the prompt's length. This is linear attention (Katharopoulos et al. 2020) with decay, as in
retention (Sun et al. 2023). Source: docs/design.md section 3. The three forms here compute the same `y`.

Shapes: `B` sequences, `L` positions, `H` heads, `P` poles, `m` whitened chart dimensions, `v` value dimensions.
Queries and keys are `[B, L, H, m]`, values `[B, L, H, v]`, the state of the poles `[B, H, P, v, m]`, complex for complex poles.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from lior_jax.errors import UserError
from lior_jax.physics.kernel import Poles, decay_by_lag, fade
from lior_jax.physics.lags import spread
from lior_jax.physics.numerics import Precision, contract
from lior_jax.physics.pairwise import PairCotangent, Pairs


class ReadOut(NamedTuple):
    """`encode` as a mixing term of retrieval (`scores`), sharing its matrix product: `by_lag` `[H, L]`, the gated propagator
    `F`."""

    by_lag: Array

    def mix(self, pairs: Pairs) -> Array:
        return pairs.places.by_lag(self.by_lag) * pairs.product

    def mix_adjoint(self, pairs: Pairs, cotangent: Array) -> tuple["ReadOut", PairCotangent]:
        c_by_lag = pairs.sequence.by_lag_adjoint(self.by_lag, cotangent * pairs.product)
        return ReadOut(c_by_lag), pairs.product_adjoint(pairs.places.by_lag(self.by_lag) * cotangent)


def encode(queries: Array, keys: Array, values: Array, by_lag: Array, precision: Precision = "float32") -> Array:
    """All pairs of positions at once: `[B, L, H, v]`.

    Args:
        by_lag: `K_h(Δ)` for the lags `0 … L − 1`, `[H, L]`, from `kernel.values`.
    """
    weights = spread(by_lag)[None] * contract("bihm,bjhm->bhij", queries, keys, precision)
    return contract("bhij,bjhv->bihv", weights, values, precision)


def initial_state(system: Poles, key: Array, value: Array) -> Array:
    """The empty state `[B, H, P, v, m]` for keys like `key` `[B, H, m]` and values like `value` `[B, H, v]`."""
    return jnp.zeros((key.shape[0], *system.rate.shape, value.shape[-1], key.shape[-1]), system.rate.dtype)


def encode_step(system: Poles, state: Array, query: Array, key: Array, value: Array) -> tuple[Array, Array]:
    """One position: query and key `[B, H, m]`, value `[B, H, v]`. Returns the new state, and `y` `[B, H, v]`."""
    written = value[..., None] * key[:, :, None]
    state = jnp.exp(-system.rate)[None, :, :, None, None] * state + written[:, :, None]
    if jnp.iscomplexobj(state):
        field = jnp.sum(jnp.real(system.weight[None, :, :, None, None] * state), axis=2)
    else:  # as a product: on a CPU, XLA's sum over any axis but the last takes ten times as long
        weight = jnp.broadcast_to(system.weight[None], state.shape[:3])
        field = contract("bhp,bhpvm->bhvm", weight, state, "float32")
    return state, contract("bhvm,bhm->bhv", field, query, "float32")


def encode_chunked(
    queries: Array,
    keys: Array,
    values: Array,
    system: Poles,
    chunk: int,
    state: Array | None = None,
    precision: Precision = "float32",
) -> tuple[Array, Array]:
    """Pairs of positions within a chunk, the poles' state between chunks (tool): time and memory linear in `L`.

    Args:
        chunk: positions processed at once; the last chunk is shorter if `L` is not a multiple.
        state: of the poles after the preceding positions of the same sequences; empty by default.

    Returns:
        The state after the last position, and `y` `[B, L, H, v]`.
    """
    if chunk < 1:
        raise UserError(f"chunk is {chunk}, but must be at least 1 position.")
    inputs, length = (queries, keys, values), queries.shape[1]
    state = initial_state(system, keys[:, 0], values[:, 0]) if state is None else state
    whole = length - length % chunk
    read = []
    if whole:
        chunks = tuple(x[:, :whole].reshape(x.shape[0], -1, chunk, *x.shape[2:]).swapaxes(0, 1) for x in inputs)
        state, first = lax.scan(lambda state, x: encode_more(system, state, *x, precision=precision), state, chunks)
        read.append(first.swapaxes(0, 1).reshape(values.shape[0], whole, *values.shape[2:]))
    if whole < length:
        state, rest = encode_more(system, state, *(x[:, whole:] for x in inputs), precision=precision)
        read.append(rest)
    return state, jnp.concatenate(read, axis=1)


def encode_more(
    system: Poles,
    state: Array,
    queries: Array,
    keys: Array,
    values: Array,
    lengths: Array | None = None,
    precision: Precision = "float32",
) -> tuple[Array, Array]:
    """Continue from a state by a chunk of `C` positions.

    Args:
        lengths: `[B]`, how many of the chunk's positions each sequence has; the rest is padding and has no effect. All by
            default.

    Returns:
        The state after each sequence's last position, and `y` `[B, C, H, v]`.
    """
    # Complex sums are written as `2P` real parts side by side: only real products are available in every precision.
    poles = system.rate.shape[1]
    lengths = jnp.full(queries.shape[0], queries.shape[1]) if lengths is None else lengths
    decay = decay_by_lag(system, queries.shape[1])
    own = encode(queries, keys, values, jnp.sum(jnp.real(system.weight[None] * decay), -1).T, precision)

    # Re(a b) = Re a Re b − Im a Im b. The state lies one step before the chunk's first key.
    reader = (system.weight * jnp.exp(-system.rate))[None] * decay
    reader = jnp.concatenate([jnp.real(reader), -jnp.imag(reader)], -1)[None, ..., None]
    parts = jnp.concatenate([jnp.real(state), jnp.imag(state)], axis=2)
    earlier = contract("bihpm,bhpvm->bihv", reader * queries[:, :, :, None], parts, precision)

    kept, writer = fade(system, queries.shape[1], lengths)
    writer = jnp.concatenate([jnp.real(writer), jnp.imag(writer)], -1)[..., None]
    written = contract("bjhv,bjhpm->bhpvm", values, writer * keys[:, :, :, None], precision)
    state = kept[..., None, None] * state
    return state + lax.complex(written[:, :, :poles], written[:, :, poles:]), own + earlier
