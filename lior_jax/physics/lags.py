"""Tables by lag and causal matrices of pairs of positions: the one as the other, and sums along diagonals."""

import jax.numpy as jnp
from jax import Array, lax


def spread(by_lag: Array, rows: int | None = None) -> Array:
    """The last `rows` rows, by default all, of the causal Toeplitz matrix of `by_lag` `[H, L]`: `by_lag[:, i − j]` at `(i, j)`
    for `j ≤ i`, 0 above the diagonal; `[H, rows, L]`."""
    heads, length = by_lag.shape
    rows = length if rows is None else rows
    power = _power_of_two(rows)
    table = jnp.concatenate([by_lag[:, ::-1], jnp.zeros((heads, power - 1), by_lag.dtype)], -1)[:, None]
    # Every row is the one before it, shifted by one lag. Doubling the table takes contiguous copies only; a gather would be
    # fused into every loop that reads the matrix, which would recompute the indices.
    while (made := table.shape[1]) < power:
        table = jnp.concatenate([table[..., made:], table[..., :-made]], 1)
    return table[:, power - rows :]


def sum_by_lag(pairs: Array) -> Array:
    """Adjoint of `spread`: the sums of `[H, rows, L]` along its diagonals, `[H, L]`."""
    _, rows, length = pairs.shape
    table = jnp.pad(pairs, ((0, 0), (_power_of_two(rows) - rows, 0), (0, 0)))
    while (made := table.shape[1] // 2) > 0:
        early, late = (((0, 0), (0, 0), pad) for pad in ((made, 0), (0, made)))
        table = jnp.pad(table[:, :made], early) + jnp.pad(table[:, made:], late)
    return table[:, 0, length - 1 :: -1]


def delay(by_lag: Array, first: int | Array, rows: int, length: int) -> Array:
    """Shift `by_lag` `[H, N]`, `N ≥ length`, such that the last `rows` rows of `spread` become rows `first` to
    `first + rows − 1` of the causal matrix with `length` columns: `[H, length]`, 0 where a lag would be negative."""
    ahead = length - rows
    return lax.dynamic_slice_in_dim(jnp.pad(by_lag[:, :length], ((0, 0), (ahead, 0))), first, length, 1)


def delay_adjoint(cotangent: Array, first: int | Array, rows: int) -> Array:
    """Adjoint of `delay` for a cotangent `[H, length]`: the cotangent of the first `length` lags."""
    heads, length = cotangent.shape
    ahead = length - rows
    padded = jnp.zeros((heads, ahead + length), cotangent.dtype)
    return lax.dynamic_update_slice_in_dim(padded, cotangent, first, 1)[:, ahead:]


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
