"""From parameters to the operators that blocks apply, prepared once per step for all blocks.

Whitening is folded into the charts, kernels are evaluated by lag, gates are folded into the operators behind them, and
positive quantities are passed through softplus.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lior_jax.model import field, terms
from lior_jax.model.field import EvidenceSite, FieldOperators
from lior_jax.model.parameters import Block, Carried, LongConvolution, Params
from lior_jax.physics import action, hamiltonian, kernel
from lior_jax.physics.field_state import ReadOut
from lior_jax.physics.frames import Derived, follow
from lior_jax.physics.geometry import rigidity, whiten, whiten_adjoint
from lior_jax.physics.hamiltonian import Hamiltonian
from lior_jax.physics.numerics import softplus_adjoint
from lior_jax.physics.projection import Projector
from lior_jax.physics.resilience import Constitutive, Curvature, Law, collapse, collapse_adjoint
from lior_jax.physics.retrieval import Couplings
from lior_jax.registry import POTENTIALS
from lior_jax.settings import ModelConfig

FRAME_RATE = 0.01
"""Weight of each step's points in the running covariance of a derived frame."""


class LongKernel(NamedTuple):
    """`by_lag` `[H, L]`, the kernel's values; `gain` `[d]`."""

    by_lag: Array
    gain: Array


class Operators(NamedTuple):
    """Applied form of `Block`: `query` and `key` `[H, n + r, d]` give whitened chart points, `value` and `output` are as in
    `Block`; couplings, curvature and inverse mass are positive. Absent parts are None."""

    taps: Array
    query: Array
    key: Array
    value: Array
    output: Array
    hamiltonian: Hamiltonian
    couplings: Couplings
    long_convolution: LongKernel | None
    resilience: Law
    evidence: EvidenceSite | None
    projector: Projector | None


def prepare(params: Params, length: int, config: ModelConfig) -> Operators:
    """Operators of all blocks, stacked like `params.blocks`, for sequences of `length` positions."""
    positive = jax.nn.softplus
    blocks = params.blocks
    by_lag = jax.vmap(partial(kernel.values, length=length))
    scores, long = terms.prepare(blocks.scores, params.carried.action, length, config), None
    mixing, evidence, projector = field.prepare(blocks.field, length, config)
    if blocks.long_convolution is not None:
        long = LongKernel(by_lag(blocks.long_convolution.kernel), blocks.long_convolution.gain)
    return Operators(
        taps=blocks.taps,
        query=_whiten_charts(params, blocks.query, config),
        key=_whiten_charts(params, blocks.key, config),
        value=blocks.value,
        output=blocks.output,
        hamiltonian=_prepare_hamiltonian(blocks.hamiltonian, config),
        couplings=Couplings(positive(blocks.inverse_temperature), scores, mixing),
        long_convolution=long,
        resilience=_prepare_resilience(blocks.resilience, config),
        evidence=evidence,
        projector=projector,
    )


def prepare_adjoint(params: Params, cotangent: Operators, config: ModelConfig) -> Block:
    """Adjoint of `prepare`: cotangents of the raw parameters; the metric's is the sum over queries and keys."""
    blocks, couplings = params.blocks, cotangent.couplings
    metric_by_query, c_query = _whiten_charts_adjoint(params, blocks.query, cotangent.query, config)
    metric_by_key, c_key = _whiten_charts_adjoint(params, blocks.key, cotangent.key, config)
    by_lag_adjoint = jax.vmap(kernel.values_adjoint)
    c_long = None
    if blocks.long_convolution is not None:
        assert cotangent.long_convolution is not None
        c_by_lag, c_gain = cotangent.long_convolution
        c_long = LongConvolution(by_lag_adjoint(blocks.long_convolution.kernel, c_by_lag), c_gain)
    c_mixing = tuple(term for term in couplings.mixing if isinstance(term, ReadOut))
    return Block(
        taps=cotangent.taps,
        query=c_query,
        key=c_key,
        value=cotangent.value,
        output=cotangent.output,
        metric=jax.tree.map(jnp.add, metric_by_query, metric_by_key),
        inverse_temperature=softplus_adjoint(blocks.inverse_temperature, couplings.inverse_temperature),
        hamiltonian=_prepare_hamiltonian_adjoint(blocks.hamiltonian, cotangent.hamiltonian, config),
        long_convolution=c_long,
        field=field.prepare_adjoint(blocks.field, FieldOperators(c_mixing, cotangent.evidence, cotangent.projector), config),
        scores=terms.prepare_adjoint(blocks.scores, params.carried.action, couplings.scores, config),
        resilience=_prepare_resilience_adjoint(blocks.resilience, cotangent.resilience, config),
    )


def carry(params: Params, actions: Array, moment: Array | None, config: ModelConfig) -> Carried:
    """The carried statistics after a step.

    Args:
        actions: `[N, H]`, mean action of each block's flow.
        moment: `[N, H, n, n]`, the keys' moment in whitened coordinates, if the frame is derived.
    """
    frame, state = params.carried
    if frame is not None:
        assert moment is not None  # required by a derived frame
        # From whitened coordinates back to the chart: z = Q (Ω Λ^½)⁻¹ x.
        stretch = jax.vmap(jax.vmap(rigidity))(params.blocks.metric)
        relaxed = moment / (stretch[..., :, None] * stretch[..., None, :])
        chart = frame.axes @ relaxed @ jnp.swapaxes(frame.axes, -1, -2)
        frame = jax.vmap(jax.vmap(partial(follow, rate=FRAME_RATE, block=_block(config))))(frame, chart)
    if state is not None:
        tau = config.flow.steps * config.flow.step_size
        state = action.step(actions / tau, tau, state)
    return Carried(frame, state)


def _prepare_hamiltonian(raw: Hamiltonian, config: ModelConfig) -> Hamiltonian:
    potential, relaxes = POTENTIALS[config.flow.potential], config.dynamics == "dissipative"
    return jax.vmap(lambda raw: hamiltonian.prepare(potential, raw, relaxes))(raw)


def _prepare_hamiltonian_adjoint(raw: Hamiltonian, cotangent: Hamiltonian, config: ModelConfig) -> Hamiltonian:
    potential, relaxes = POTENTIALS[config.flow.potential], config.dynamics == "dissipative"
    return jax.vmap(lambda raw, c: hamiltonian.prepare_adjoint(potential, raw, relaxes, c))(raw, cotangent)


def _block(config: ModelConfig) -> int | None:
    return config.geometry.block if config.geometry.metric == "block_rot" else None


def _frame(params: Params, config: ModelConfig) -> Array | None:
    """The frame of each head, unless it is made of rotors."""
    derived: Derived | None = params.carried.frame
    return None if derived is None else derived.axes


def _base(config: ModelConfig) -> Array | None:
    """The whitening of the base metric; None for the identity."""
    return None if config.geometry.base_metric is None else jnp.asarray(config.geometry.base.whitening, jnp.float32)


def _whiten_charts(params: Params, charts: Array, config: ModelConfig) -> Array:
    base = _base(config)
    charts = charts if base is None else jnp.einsum("mn,bhnd->bhmd", base.astype(charts.dtype), charts)
    whiten_heads = jax.vmap(jax.vmap(partial(whiten, block=_block(config))))
    return whiten_heads(params.blocks.metric, charts, _frame(params, config))


def _whiten_charts_adjoint(params: Params, charts: Array, cotangent: Array, config: ModelConfig):
    base = _base(config)
    charts = charts if base is None else jnp.einsum("mn,bhnd->bhmd", base.astype(charts.dtype), charts)
    adjoint = jax.vmap(jax.vmap(partial(whiten_adjoint, block=_block(config))))
    c_metric, c_charts = adjoint(params.blocks.metric, charts, cotangent, _frame(params, config))
    return c_metric, c_charts if base is None else jnp.einsum("mn,bhmd->bhnd", base.astype(charts.dtype), c_charts)


def _prepare_resilience(raw: Constitutive | Curvature | None, config: ModelConfig) -> Law:
    if not isinstance(raw, Curvature):
        return raw
    inverse = jnp.asarray(config.geometry.base.inverse, raw.level.dtype)
    return jax.vmap(partial(collapse, inverse=inverse))(raw)


def _prepare_resilience_adjoint(raw: Constitutive | Curvature | None, cotangent: Law, config: ModelConfig):
    if not isinstance(raw, Curvature):
        return cotangent
    inverse = jnp.asarray(config.geometry.base.inverse, raw.level.dtype)
    return jax.vmap(lambda curvature, c: collapse_adjoint(curvature, inverse, c))(raw, cotangent)
