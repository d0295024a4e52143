"""Symplectic rollouts: a palindromic list of coefficients, given to one generator of kicks and drifts.

`flow` runs forward in time. `echo` runs two nudged copies of the end point backwards and reads, from their
difference alone, the cotangents of the start point and of every parameter of the Hamiltonian.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lior_jax.physics.hamiltonian import Hamiltonian, Pair, drift_contrast, force, kick_contrast, velocity
from lior_jax.physics.numerics import Precision

# kick, drift, kick, …, in units of the step size. A palindrome makes the step its own inverse in negative time.
VELOCITY_VERLET = (0.5, 1.0, 0.5)


class Schedule(NamedTuple):
    """Lengths of the kicks and drifts in time order: `kicks[0], drifts[0], kicks[1], …, final_kick`."""

    kicks: np.ndarray
    drifts: np.ndarray
    final_kick: float


def schedule(coefficients: tuple[float, ...], steps: int, step_size: float, final_kick: bool = True) -> Schedule:
    """`steps` steps of an integrator, neighbouring half-kicks merged.

    Without `final_kick` the last one is left out: it moves only the momentum, so a caller who throws the momentum
    away saves one evaluation of the force. What remains is still symplectic and still undone exactly.
    """
    kicks, drifts = coefficients[::2], coefficients[1::2]
    joined = [*kicks[:-1]] + [kicks[-1] + kicks[0], *kicks[1:-1]] * (steps - 1)
    return Schedule(
        kicks=np.array(joined) * step_size,
        drifts=np.array([*drifts] * steps) * step_size,
        final_kick=kicks[-1] * step_size if final_kick else 0.0,
    )


def flow(
    hamiltonian: Hamiltonian, s: Array, p: Array, times: Schedule, precision: Precision = "float32"
) -> tuple[Array, Array]:
    """Follow the Hamiltonian flow from `(s, p)`, each `[B, L, d]`, every position by itself."""

    def step(state, lengths):
        s, p = state
        kick, drift = lengths
        p = p + kick * force(hamiltonian, s, precision)
        return (s + drift * velocity(hamiltonian, p), p), None

    (s, p), _ = lax.scan(step, (s, p), _lengths(times, s.dtype))
    if times.final_kick:
        p = p + times.final_kick * force(hamiltonian, s, precision)
    return s, p


def echo(
    hamiltonian: Hamiltonian, s: Pair, p: Pair, span: Array, times: Schedule, precision: Precision = "float32"
) -> tuple[Pair, Pair, Hamiltonian]:
    """Run a nudged pair of end points backwards through `flow`.

    Args:
        s, p: the pair at the end, `[B, L, d]` each.
        span: `[B, L, 1]`, the distance of the two nudges, `slope` being the difference divided by it.
        times: as given to `flow`.

    Returns:
        The pair at the start, and `Σ length × [∂H/∂θ(+) − ∂H/∂θ(−)] / span` over all kicks and drifts.
    """
    contrast = jax.tree.map(jnp.zeros_like, hamiltonian)

    def unkick(s, p, contrast, length):
        forces, local = kick_contrast(hamiltonian, s, span, precision)
        p = jax.tree.map(lambda x, f: x - length * f, p, forces)
        return p, jax.tree.map(lambda total, x: total + length * x, contrast, local)

    if times.final_kick:
        p, contrast = unkick(s, p, contrast, times.final_kick)

    def step(state, lengths):
        s, p, contrast = state
        kick, drift = lengths
        s = jax.tree.map(lambda x, y: x - drift * velocity(hamiltonian, y), s, p)
        contrast = contrast._replace(inverse_mass=contrast.inverse_mass + drift * drift_contrast(p))
        p, contrast = unkick(s, p, contrast, kick)
        return (s, p, contrast), None

    (s, p, contrast), _ = lax.scan(step, (s, p, contrast), _lengths(times, span.dtype), reverse=True)
    return s, p, contrast


def _lengths(times: Schedule, dtype: jnp.dtype) -> tuple[Array, Array]:
    return jnp.asarray(times.kicks, dtype), jnp.asarray(times.drifts, dtype)
