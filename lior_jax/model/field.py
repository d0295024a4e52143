"""The field of a block: its parameters, its operators, and its read-out.

    y_t = gate T_t q_t + gate′ S_t q̂_t      T: poles of the kernel (linear attention with decay), S: site of the master
    equation (delta rule)

The kernel's part is a mixing term of retrieval (`physics.field_state`), whose matrix product it shares (Katharopoulos et al.
2020); the site (`physics.master`; Schlag et al. 2021), added by `evolution: master`, is read separately; and keys and values
may be projections of the field (`physics.projection`). Source: docs/design.md section 3.

Shapes: `N` blocks, `H` heads, `d` width, `m` whitened chart dimensions, `v` value dimensions, `L` positions. Parameters have a
leading axis `N`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lior_jax.model import terms
from lior_jax.physics import frames, kernel, master
from lior_jax.physics.field_state import ReadOut
from lior_jax.physics.kernel import Kernel
from lior_jax.physics.master import Site
from lior_jax.physics.numerics import correlate, project, project_back, raw_positive, softplus_adjoint
from lior_jax.physics.projection import Projector
from lior_jax.physics.rotor_planes import max_rotor_layers
from lior_jax.physics.turn import Generator
from lior_jax.settings import ModelConfig

FRAME_LAYERS = 4
"""Layers of rotors in a generator's frame."""


class Evidence(NamedTuple):
    """The site of the master equation: the pull `λ = σ(pull · c + bias)` to the evidence, `[H, d]` and `[H]`; the raw `rate`
    `[H]` of its memory; the `angles` `[H, layers, m // 2]` of its generator's frame, and its `frequency` `[H, m // 2]`; the
    `gate` `[H]` of its read-out."""

    pull: Array
    bias: Array
    rate: Array
    angles: Array
    frequency: Array
    gate: Array


class Projection(NamedTuple):
    """Parameters of the projection of keys and values, as in `Projector`."""

    key_probe: Array
    value_probe: Array
    key_gate: Array
    value_gate: Array


class FieldState(NamedTuple):
    """The prompt's field: the propagating `kernel` of each head, the `gate` `[H]` of its read-out, and the optional parts."""

    kernel: Kernel
    gate: Array
    evidence: Evidence | None
    projection: Projection | None


class EvidenceSite(NamedTuple):
    """Applied form of `Evidence`."""

    site: Site
    pull: Array
    bias: Array
    gate: Array


class FieldOperators(NamedTuple):
    """Applied form of `Field`: the read-out of the kernel's poles, and the optional parts."""

    mixing: tuple[ReadOut, ...]
    evidence: EvidenceSite | None
    projector: Projector | None


def init(config: ModelConfig, normal: Callable[..., Array]) -> FieldState | None:
    """Raw parameters of one block. All gates start at zero, so the field has no effect at first."""
    if config.field.evolution == "off":
        return None
    heads, m, v = config.heads, config.geometry.whitened_dim, config.width // config.heads
    probes = None
    if config.field.project:
        probes = normal(heads, v, scale=v**-0.5), normal(heads, m, scale=m**-0.5)
        probes = Projection(*probes, jnp.zeros(heads), jnp.zeros(heads))
    kernels = terms.initial_kernel(config, (0.5, -0.1, 0.2), order=0.5)
    return FieldState(kernels, jnp.zeros(heads), _init_evidence(config), probes)


def _init_evidence(config: ModelConfig) -> Evidence | None:
    """Memory lengths of the heads from a quarter of the context to four times the context, with a turn of at most a radian in
    that time."""
    if config.field.evolution != "master":
        return None
    heads, m = config.heads, config.geometry.whitened_dim
    slow = jnp.asarray(np.arange(m // 2) / (m // 2 * config.context), jnp.float32)
    return Evidence(
        pull=jnp.zeros((heads, config.width)),
        bias=jnp.zeros(heads),
        rate=raw_positive(np.geomspace(4.0, 0.25, heads) / config.context),
        angles=jnp.zeros((heads, min(FRAME_LAYERS, max_rotor_layers(m)), m // 2)),
        frequency=jnp.tile(slow[None], (heads, 1)),
        gate=jnp.zeros(heads),
    )


def prepare(raw: FieldState | None, length: int, config: ModelConfig) -> FieldOperators:
    """Operators of all blocks, for sequences of `length` positions."""
    if raw is None:
        return FieldOperators((), None, None)
    by_lag = jax.vmap(partial(kernel.values, length=length))(raw.kernel)
    evidence = None if raw.evidence is None else _prepare_evidence(raw.evidence, config)
    projector = None if raw.projection is None else Projector(by_lag, *raw.projection)
    return FieldOperators((ReadOut(gain(raw.gate, config)[..., None] * by_lag),), evidence, projector)


def prepare_adjoint(raw: FieldState | None, cotangent: FieldOperators, config: ModelConfig) -> FieldState | None:
    """Adjoint of `prepare`."""
    if raw is None:
        return None
    (read_out,) = cotangent.mixing
    by_lag = jax.vmap(partial(kernel.values, length=read_out.by_lag.shape[-1]))(raw.kernel)
    c_read = read_out.by_lag / terms.products_scale(config)
    c_by_lag, c_evidence, c_projection = raw.gate[..., None] * c_read, None, None
    if raw.projection is not None:
        assert cotangent.projector is not None
        c_by_lag = c_by_lag + cotangent.projector.by_lag
        c_projection = Projection(*cotangent.projector[1:])
    if raw.evidence is not None:
        assert cotangent.evidence is not None
        c_evidence = _prepare_evidence_adjoint(raw.evidence, cotangent.evidence, config)
    c_kernel = jax.vmap(kernel.values_adjoint)(raw.kernel, c_by_lag)
    return FieldState(c_kernel, jnp.sum(c_read * by_lag, -1), c_evidence, c_projection)


def gain(gate: Array, config: ModelConfig) -> Array:
    """The factor of the kernel, from its raw `gate`."""
    return gate / terms.products_scale(config)


def _prepare_evidence(raw: Evidence, config: ModelConfig) -> EvidenceSite:
    site = Site(jax.nn.softplus(raw.rate), Generator(_frames(raw.angles, config), raw.frequency))
    return EvidenceSite(site, raw.pull, raw.bias, raw.gate)


def _prepare_evidence_adjoint(raw: Evidence, cotangent: EvidenceSite, config: ModelConfig) -> Evidence:
    rate, generator = cotangent.site
    c_angles, _ = jax.vmap(jax.vmap(frames.rotate_adjoint))(raw.angles, _frames(raw.angles, config), generator.frame)
    c_rate = softplus_adjoint(raw.rate, rate)
    return Evidence(cotangent.pull, cotangent.bias, c_rate, c_angles, generator.frequency, cotangent.gate)


def _frames(angles: Array, config: ModelConfig) -> Array:
    """`Rᵀ` of every head."""
    axes = jnp.eye(config.geometry.whitened_dim, dtype=angles.dtype)
    return jax.vmap(jax.vmap(lambda own: frames.rotate(own, axes)))(angles)


# --- the evidence ----------------------------------------------------------------------------------------------------


def pull(evidence: EvidenceSite, context: Array, config: ModelConfig) -> Array:
    """The strength λ `[B, L, H]` in (0, 1) of the pull to each position's evidence, from its context `[B, L, d]`."""
    return jax.nn.sigmoid(project(context, evidence.pull, config.precision) + evidence.bias[None, None])


def pull_adjoint(
    evidence: EvidenceSite, context: Array, pulled: Array, cotangent: Array, config: ModelConfig
) -> tuple[Array, Array, Array]:
    """Adjoint of `pull`, with its result `pulled`: cotangents of `evidence.pull`, `evidence.bias` and the context."""
    c_raw = cotangent * pulled * (1 - pulled)
    c_context = project_back(c_raw, evidence.pull, config.precision)
    return correlate(c_raw, context, config.precision), jnp.sum(c_raw, (0, 1)), c_context


def read(evidence: EvidenceSite, queries: Array, keys: Array, values: Array, pull: Array, config: ModelConfig) -> Array:
    """The site's read-out, added to the retrieved means: `[B, L, H, v]`."""
    return _opened(evidence, master.evolve(evidence.site, queries, keys, values, pull, config.precision))


def read_and_adjoint(
    evidence: EvidenceSite, queries: Array, keys: Array, values: Array, pull: Array, cotangent: Array, config: ModelConfig
) -> tuple[Array, tuple[EvidenceSite, Array, Array, Array, Array]]:
    """`read` and its adjoint in one pass, for a cotangent `[B, L, H, v]`.

    Returns:
        The result of `read`, and the cotangents of the site (zero for the parameters of `pull`), queries, keys, values and
        pull.
    """
    c_read = _opened(evidence, cotangent)
    found, (c_site, c_queries, c_keys, c_values, c_pull) = master.evolve_and_adjoint(
        evidence.site, queries, keys, values, pull, c_read, config.precision
    )
    c_gate = jnp.sum(cotangent * found, (0, 1, 3))
    zeros = jax.tree.map(jnp.zeros_like, evidence)
    return _opened(evidence, found), (zeros._replace(site=c_site, gate=c_gate), c_queries, c_keys, c_values, c_pull)


def _opened(evidence: EvidenceSite, x: Array) -> Array:
    return evidence.gate[None, None, :, None] * x
