"""From a block's input state to retrieval: the context of every position, and its queries, keys and values.

    û = s / rms(s)      c_t = Σ_{j<τ} κ_j ⊙ û_{t−j} + gain ⊙ Σ_{j≤t} K_h(t − j) û_j      q = A_q c, k = A_k c, v = A_v c

The context is a depthwise causal convolution, short (taps; So et al. 2021) and long (by a LIoR kernel; compare Poli et al.
2023); the charts are query, key and value projections, with the metric's whitening folded into query and key. Source:
docs/design.md sections 2.2 and 2.3.

Shapes: `B` sequences, `L` positions, `H` heads, `m` whitened chart dimensions, `v` value dimensions, `d` width.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lior_jax.model import field
from lior_jax.model.operators import Operators
from lior_jax.physics import projection
from lior_jax.physics.kernel import convolve, convolve_adjoint
from lior_jax.physics.numerics import correlate, project, project_back, rms_normalize, rms_normalize_adjoint
from lior_jax.physics.resilience import resilience, resilience_adjoint
from lior_jax.physics.taps import taps, taps_adjoint
from lior_jax.settings import ModelConfig

Points = tuple[Array, Array, Array, Array]
"""Inputs of retrieval: whitened queries and keys `[B, L, H, m]`, values `[B, L, H, v]`, the queries' resilience
`[B, L, H]`."""


class Seen(NamedTuple):
    """Intermediate values of `see`: the `direction` `[B, L, d]` of the state, `inverse` `[B, L, 1]` (one over its root mean
    square), `context` `[B, L, d]`, and what `gather` `kept`; retrieval's points, and what `project` `held`; the `pull`
    `[B, L, H]` of the field to its evidence, if configured."""

    direction: Array
    inverse: Array
    context: Array
    kept: Any
    query: Array
    key: Array
    value: Array
    resilience: Array
    held: Any
    pull: Array | None

    @property
    def points(self) -> Points:
        return self.query, self.key, self.value, self.resilience


def gather_sequence(operators: Operators, direction: Array, config: ModelConfig) -> tuple[Array, Array | None]:
    """The context, for sequences from their beginning, and the result of the long convolution, if any, before its gain."""
    context = taps(operators.taps, direction)
    if operators.long_convolution is None:
        return context, None
    remembered = convolve(operators.long_convolution.by_lag, split_heads(direction, config), config.precision).reshape(
        direction.shape
    )
    return context + operators.long_convolution.gain[None, None] * remembered, remembered


def project_sequence(
    operators: Operators, key: Array, value: Array, config: ModelConfig
) -> tuple[tuple[Array, Array], tuple[Array, Array] | None]:
    """Keys and values, projected if configured, for sequences from their beginning; and the unprojected ones, if projected."""
    if operators.projector is None:
        return (key, value), None
    return projection.project(operators.projector, key, value, config.precision), (key, value)


Gather = Callable[[Operators, Array, ModelConfig], tuple[Array, Any]]
Project = Callable[[Operators, Array, Array, ModelConfig], tuple[tuple[Array, Array], Any]]


def see(
    operators: Operators, s: Array, config: ModelConfig, gather: Gather = gather_sequence, project: Project = project_sequence
) -> Seen:
    """Context, retrieval points and pull from a state `[B, L, d]`.

    Args:
        gather: from directions `[B, L, d]` to the context, including any past, and data to keep.
        project: from keys and values to those projected by the field, including any past, and data to keep.
    """
    direction, inverse = rms_normalize(s)
    context, kept = gather(operators, direction, config)
    query, key, value = (to_heads(context, chart, config) for chart in _charts(operators))
    (key, value), held = project(operators, key, value, config)
    law = resilience(operators.resilience, query, inverse)
    pull = None if operators.evidence is None else field.pull(operators.evidence, context, config)
    return Seen(direction, inverse, context, kept, query, key, value, law, held, pull)


def see_adjoint(
    operators: Operators, seen: Seen, cotangent: Points, c_pull: Array | None, config: ModelConfig
) -> tuple[Operators, Array]:
    """Adjoint of `see` for sequences from their beginning.

    Args:
        seen: the result of `see`.
        cotangent: of retrieval's points.
        c_pull: of the pull, if any.

    Returns:
        Cotangents of the operators, zero for those not used here, and of the state `[B, L, d]`.
    """
    c_query, c_key, c_value, c_resilience = cotangent
    c_law, c_query_by_law, c_s_by_law = resilience_adjoint(
        operators.resilience, seen.query, seen.direction, seen.inverse, c_resilience
    )
    c_projector = c_evidence = None
    if operators.projector is not None:
        key, value = seen.held
        c_projector, c_key, c_value = projection.project_adjoint(
            operators.projector, key, value, (c_key, c_value), config.precision
        )
    c_points = c_query + c_query_by_law, c_key, c_value

    c_charts = [correlate_heads(c, seen.context, config) for c in c_points]
    c_context = reduce(jnp.add, map(partial(from_heads, config=config), c_points, _charts(operators)))
    if operators.evidence is not None:
        assert seen.pull is not None
        assert c_pull is not None
        c_weights, c_bias, c_by_pull = field.pull_adjoint(operators.evidence, seen.context, seen.pull, c_pull, config)
        c_evidence = jax.tree.map(jnp.zeros_like, operators.evidence)._replace(pull=c_weights, bias=c_bias)
        c_context = c_context + c_by_pull
    c_taps, c_direction = taps_adjoint(operators.taps, seen.direction, c_context)
    c_long = None
    if operators.long_convolution is not None:
        c_remembered = operators.long_convolution.gain[None, None] * c_context
        c_by_lag, c_channels = convolve_adjoint(
            operators.long_convolution.by_lag,
            split_heads(seen.direction, config),
            split_heads(c_remembered, config),
            config.precision,
        )
        c_direction = c_direction + c_channels.reshape(c_direction.shape)
        c_long = operators.long_convolution._replace(by_lag=c_by_lag, gain=jnp.sum(c_context * seen.kept, (0, 1)))

    gradient = jax.tree.map(jnp.zeros_like, operators)._replace(taps=c_taps, long_convolution=c_long, resilience=c_law)
    gradient = gradient._replace(evidence=c_evidence, projector=c_projector)
    gradient = gradient._replace(**dict(zip(("query", "key", "value"), c_charts, strict=True)))
    return gradient, rms_normalize_adjoint(seen.direction, seen.inverse, c_direction) + c_s_by_law


def _charts(operators: Operators) -> tuple[Array, Array, Array]:
    return operators.query, operators.key, operators.value


# --- channels and heads ----------------------------------------------------------------------------------------------


def split_heads(x: Array, config: ModelConfig) -> Array:
    """Channels `[B, L, d]` by head: `[B, L, H, v]`."""
    return x.reshape(*x.shape[:-1], config.heads, -1)


def to_heads(x: Array, chart: Array, config: ModelConfig) -> Array:
    """`x` `[B, L, d]` projected by charts `[H, m, d]`: `[B, L, H, m]`."""
    return project(x, chart.reshape(-1, chart.shape[-1]), config.precision).reshape(*x.shape[:-1], *chart.shape[:-1])


def from_heads(x: Array, chart: Array, config: ModelConfig) -> Array:
    """The adjoint of `to_heads` with respect to `x`: `[B, L, H, m]` to `[B, L, d]`."""
    return project_back(x.reshape(*x.shape[:-2], -1), chart.reshape(-1, chart.shape[-1]), config.precision)


def correlate_heads(x: Array, y: Array, config: ModelConfig) -> Array:
    """The adjoint of `to_heads` with respect to the chart: `[B, L, H, m]` and `[B, L, d]` to `[H, m, d]`."""
    return correlate(x.reshape(*x.shape[:-2], -1), y, config.precision).reshape(*x.shape[-2:], y.shape[-1])
