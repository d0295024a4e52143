"""Conservation properties of a flow on phase space: energy, norm, reversibility, and phase-space volume.

A flow is any map `(s, p) → (s, p)` of states and momenta `[B, L, d]` that acts on every position independently. Its Jacobian is
measured by finite differences along a basis, so nothing is differentiated automatically. Everything is measured in float64,
whatever the model's type: in float32 such small differences are dominated by rounding.
Source: a flow is symplectic if `Φᵀ J Φ = J`, and then `det Φ = 1` (Hairer et al. 2006, section VI.2).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lior_jax.analysis import probe
from lior_jax.model import Params, block
from lior_jax.model.operators import prepare
from lior_jax.physics import flow, hamiltonian, integrators
from lior_jax.physics.flow import System
from lior_jax.registry import INTEGRATORS, POTENTIALS
from lior_jax.settings import ModelConfig

Flow = Callable[[Array, Array], tuple[Array, Array]]


class Conservation(NamedTuple):
    """Conserved quantities at every position, with `[...]` = `[B, L]`: float64 NumPy arrays, which JAX supports in x64 mode
    only."""

    energy: np.ndarray
    """`[T + 1, ...]`, at the start and after each step."""
    norm: np.ndarray
    """`[T + 1, ...]`, `‖s‖`."""
    reversibility: np.ndarray
    """`[...]`, relative distance of the start from its reconstruction by running back from the end."""
    volume: np.ndarray
    """`[...]`, `det Φ` of all steps together: the factor on a small volume around the start."""
    symplectic_error: np.ndarray
    """`[...]`, largest entry of `|Φᵀ J Φ − J|`."""


def measure(step: Flow, back: Flow, energy: Callable[[Array, Array], Array], s: Array, p: Array, steps: int) -> Conservation:
    """Run a flow and measure its conservation properties.

    In float64: constants of a narrower type in flow and energy are used unchanged, and results for float64 states are float64.
    Do not call under `jit`.

    Args:
        step: one step.
        back: its expected inverse.
        energy: from `s` and `p` to `[B, L]`.
        s, p: the start, `[B, L, d]`.
        steps: `T`.
    """
    with jax.enable_x64(True):
        measured = jax.jit(partial(_measure, step, back, energy, steps=steps))(*_to_float64((s, p)))
        return Conservation(*map(np.asarray, measured))


def _measure(
    step: Flow, back: Flow, energy: Callable[[Array, Array], Array], s: Array, p: Array, steps: int
) -> tuple[Array, ...]:
    """The fields of `Conservation`, in order."""
    path_s, path_p = path(step, s, p, steps)
    start_s, start_p = _repeat(back, steps)(path_s[-1], path_p[-1])
    distance = jnp.sqrt(_squares(start_s - s) + _squares(start_p - p))
    phi = jacobian(_repeat(step, steps), s, p)
    return (
        jax.vmap(energy)(path_s, path_p),
        jnp.sqrt(_squares(path_s)),
        distance / jnp.sqrt(_squares(s) + _squares(p)),
        jnp.linalg.det(phi),
        symplectic_error(phi),
    )


def path(step: Flow, s: Array, p: Array, steps: int) -> tuple[Array, Array]:
    """Start and state after each step: `[T + 1, B, L, d]` of `s` and of `p`."""

    def one(state, _):
        state = step(*state)
        return state, state

    _, (after_s, after_p) = lax.scan(one, (s, p), None, length=steps)
    return jnp.concatenate([s[None], after_s]), jnp.concatenate([p[None], after_p])


def _repeat(step: Flow, steps: int) -> Flow:
    return lambda s, p: lax.scan(lambda state, _: (step(*state), None), (s, p), None, length=steps)[0]


def jacobian(flow: Flow, s: Array, p: Array) -> Array:
    """`∂(s, p)_end / ∂(s, p)_start` of every position, `[B, L, 2d, 2d]`, by five-point differences.

    The starts are displaced by ±δ and ±2δ along each axis of phase space, with δ = `eps^{1/5}` of the position's rms, which
    balances the formula's error `O(δ⁴)` and rounding: about 1e-12 in float64, for flows that are smooth at that scale. In
    float32 δ would be 4 % of the state, a scale at which hardly any flow is smooth.
    """
    dimension = s.shape[-1]
    scale = jnp.sqrt((_squares(s) + _squares(p)) / (2 * dimension))[..., None]
    delta = jnp.finfo(s.dtype).eps ** 0.2 * jnp.maximum(scale, jnp.finfo(s.dtype).tiny)

    def column(direction: Array) -> Array:
        push_s, push_p = (delta * part[None, None] for part in jnp.split(direction, 2))

        def end(size: float) -> Array:
            return jnp.concatenate(flow(s + size * push_s, p + size * push_p), -1)

        return (8 * (end(1) - end(-1)) - (end(2) - end(-2))) / (12 * delta)

    return jnp.moveaxis(lax.map(column, jnp.eye(2 * dimension, dtype=s.dtype)), 0, -1)


def symplectic_error(phi: Array) -> Array:
    """Largest entry of `|Φᵀ J Φ − J|` for Jacobians `[..., 2d, 2d]`: `[...]`."""
    d = phi.shape[-1] // 2
    j = jnp.kron(jnp.array([[0, 1], [-1, 0]], phi.dtype), jnp.eye(d, dtype=phi.dtype))
    form = jnp.einsum("...ki,kl,...lj->...ij", phi, j, phi)
    return jnp.max(jnp.abs(form - j.reshape((1,) * (phi.ndim - 2) + j.shape)), (-1, -2))


def step_of(system: System, coefficients: integrators.Coefficients, step_size: float) -> Flow:
    """One step with its first and its last kick, so that state and momentum belong to the same time. The step with
    `−step_size` inverts it."""
    times = integrators.schedule(coefficients, 1, step_size)
    return lambda s, p: flow.flow(system, s, p, times)[:2]


def of_blocks(params: Params, tokens: Array, config: ModelConfig) -> Conservation:
    """Conservation properties of each block's flow, started from the states of a text. In float64 with exact products, whatever
    the model's precision; do not call under `jit`.

    Args:
        tokens: `[B, L]`; a few suffice, since a Jacobian `[2d, 2d]` is measured at each.

    Returns:
        The properties, with a leading axis `N`.
    """
    with jax.enable_x64(True):
        exact = config.model_copy(update={"precision": "float32"})
        return Conservation(*map(np.asarray, _of_blocks(_to_float64(params), jnp.asarray(tokens), exact)))


@partial(jax.jit, static_argnums=2)
def _of_blocks(params: Params, tokens: Array, config: ModelConfig) -> tuple[Array, ...]:
    view = probe.look(params, tokens, config)

    def measured(scanned):
        operators, s, p = scanned
        system, coefficients = block.system(operators, config), INTEGRATORS[config.flow.integrator]
        step, back = (step_of(system, coefficients, sign * config.flow.step_size) for sign in (1, -1))
        energy = partial(hamiltonian.energy, POTENTIALS[config.flow.potential], operators.hamiltonian)
        return _measure(step, back, energy, s, p, config.flow.steps)

    return lax.map(measured, (prepare(params, tokens.shape[1], config), view.state, view.momentum))


def _to_float64(tree: Any) -> Any:
    """Float64 copies of a tree's floating-point arrays; within float64 mode."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64 if jnp.issubdtype(x.dtype, jnp.floating) else None), tree)


def _squares(x: Array) -> Array:
    return jnp.sum(x * x, -1)
