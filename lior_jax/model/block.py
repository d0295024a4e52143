"""One block: context, charts and retrieval give a kick, and a Hamiltonian flow follows it.

`prepare` turns raw parameters into the operators that the block applies, once a step and for all blocks: whitening
is folded into the charts, softplus is taken. `kick` and its adjoint are the part that is not Hamiltonian.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lior_jax.config import ModelConfig
from lior_jax.model.parameters import Block
from lior_jax.physics import integrators
from lior_jax.physics.action import path_action
from lior_jax.physics.geometry import whiten, whiten_adjoint
from lior_jax.physics.hamiltonian import Hamiltonian
from lior_jax.physics.numerics import correlate, project, project_back, rms_normalize, rms_normalize_adjoint, softplus_adjoint
from lior_jax.physics.retrieval import Couplings, retrieve, retrieve_adjoint
from lior_jax.physics.taps import taps, taps_adjoint


class Operators(NamedTuple):
    """What a block applies: `query` and `key` `[H, n + r, d]` give whitened chart points; couplings, curvature and
    inverse mass are positive; the rest as in `Block`."""

    taps: Array
    query: Array
    key: Array
    value: Array
    output: Array
    couplings: Couplings
    hamiltonian: Hamiltonian


def prepare(blocks: Block) -> Operators:
    """Operators of all blocks, stacked like `blocks`."""
    positive = jax.nn.softplus
    whiten_heads = jax.vmap(jax.vmap(whiten))
    hamiltonian = blocks.hamiltonian
    return Operators(
        taps=blocks.taps,
        query=whiten_heads(blocks.metric, blocks.query),
        key=whiten_heads(blocks.metric, blocks.key),
        value=blocks.value,
        output=blocks.output,
        couplings=jax.tree.map(positive, blocks.couplings),
        hamiltonian=hamiltonian._replace(
            curvature=positive(hamiltonian.curvature), inverse_mass=positive(hamiltonian.inverse_mass)
        ),
    )


def prepare_adjoint(blocks: Block, cotangent: Operators) -> Block:
    """Adjoint of `prepare`: cotangents of the raw parameters, the metric's from its queries and its keys."""
    whiten_heads_adjoint = jax.vmap(jax.vmap(whiten_adjoint))
    metric_by_query, c_query = whiten_heads_adjoint(blocks.metric, blocks.query, cotangent.query)
    metric_by_key, c_key = whiten_heads_adjoint(blocks.metric, blocks.key, cotangent.key)
    raw, c_hamiltonian = blocks.hamiltonian, cotangent.hamiltonian
    return Block(
        taps=cotangent.taps,
        query=c_query,
        key=c_key,
        value=cotangent.value,
        output=cotangent.output,
        metric=jax.tree.map(jnp.add, metric_by_query, metric_by_key),
        couplings=jax.tree.map(softplus_adjoint, blocks.couplings, cotangent.couplings),
        hamiltonian=c_hamiltonian._replace(
            curvature=softplus_adjoint(raw.curvature, c_hamiltonian.curvature),
            inverse_mass=softplus_adjoint(raw.inverse_mass, c_hamiltonian.inverse_mass),
        ),
    )


def schedule(config: ModelConfig) -> integrators.Schedule:
    """Kicks and drifts of a block; the last kick is left out where its momentum would be thrown away."""
    return integrators.schedule(
        integrators.VELOCITY_VERLET, config.leapfrog_steps, config.step_size, final_kick=config.carry_momentum
    )


def apply(operators: Operators, s: Array, p: Array, config: ModelConfig) -> tuple[Array, Array]:
    """Send `(s, p)`, each `[B, L, d]`, through one block."""
    p = entering_momentum(p, config) + kick(operators, s, config)
    return integrators.flow(operators.hamiltonian, s, p, schedule(config), config.precision)


def entering_momentum(p: Array, config: ModelConfig) -> Array:
    """The momentum that a block starts from: what it was, or zero."""
    return p if config.carry_momentum else jnp.zeros_like(p)


def kick(operators: Operators, s: Array, config: ModelConfig) -> Array:
    """The retrieval's push on the momentum, `A_o y` (DESIGN.md sections 2.2 to 2.5): `[B, L, d]`."""
    direction, _ = rms_normalize(s)
    context = taps(operators.taps, direction)
    query, key, value = (_to_heads(context, chart, config) for chart in _charts(operators))
    retrieved = retrieve(query, key, value, operators.couplings, config.precision)
    return _from_heads(retrieved, operators.output, config)


def kick_adjoint(operators: Operators, s: Array, cotangent: Array, config: ModelConfig) -> tuple[Array, Array, Operators]:
    """`kick` and its adjoint in one pass.

    Args:
        cotangent: `[B, L, d]`, of the kick.

    Returns:
        The kick, the cotangent of `s`, and the cotangents of the operators (of the Hamiltonian: zeros).
    """
    direction, inverse = rms_normalize(s)
    context = taps(operators.taps, direction)
    query, key, value = (_to_heads(context, chart, config) for chart in _charts(operators))
    c_retrieved = _to_heads(cotangent, operators.output, config)
    retrieved, (*c_points, c_couplings) = retrieve_adjoint(
        query, key, value, operators.couplings, c_retrieved, config.precision
    )

    c_context = sum(_from_heads(c, chart, config) for c, chart in zip(c_points, _charts(operators), strict=True))
    c_taps, c_direction = taps_adjoint(operators.taps, direction, c_context)
    c_query, c_key, c_value = (_correlate_heads(c, context, config) for c in c_points)
    gradient = Operators(
        taps=c_taps,
        query=c_query,
        key=c_key,
        value=c_value,
        output=_correlate_heads(retrieved, cotangent, config),
        couplings=c_couplings,
        hamiltonian=jax.tree.map(jnp.zeros_like, operators.hamiltonian),
    )
    kicked = _from_heads(retrieved, operators.output, config)
    return kicked, rms_normalize_adjoint(direction, inverse, c_direction), gradient


def action(operators: Operators, before: Array, after: Array, config: ModelConfig) -> Array:
    """LIoR action of the move from one state to another, each `[B, L, d]`: `[B, L]`.

    It is the metric length of the straight path of the position's chart points `A_q ŝ`, all heads added up.
    """
    points = [_to_heads(rms_normalize(s)[0], operators.query, config) for s in (before, after)]
    return jnp.sum(path_action(jnp.stack(points)), axis=-1)


def _charts(operators: Operators) -> tuple[Array, Array, Array]:
    return operators.query, operators.key, operators.value


def _to_heads(x: Array, chart: Array, config: ModelConfig) -> Array:
    """`x` `[B, L, d]` seen through charts `[H, m, d]`: `[B, L, H, m]`."""
    return project(x, chart.reshape(-1, chart.shape[-1]), config.precision).reshape(*x.shape[:-1], *chart.shape[:-1])


def _from_heads(x: Array, chart: Array, config: ModelConfig) -> Array:
    """The adjoint of `_to_heads` to its `x`: `[B, L, H, m]` to `[B, L, d]`."""
    return project_back(x.reshape(*x.shape[:-2], -1), chart.reshape(-1, chart.shape[-1]), config.precision)


def _correlate_heads(x: Array, y: Array, config: ModelConfig) -> Array:
    """The adjoint of `_to_heads` to its chart: `[B, L, H, m]` and `[B, L, d]` to `[H, m, d]`."""
    return correlate(x.reshape(*x.shape[:-2], -1), y, config.precision).reshape(*x.shape[-2:], y.shape[-1])
