"""The cognitive tensor field (tool): complex `D × D` tensors on a periodic grid, their operators and three time steppers.

    iħ ∂_t T = H[T] + Λ_QR[T] − Λ_F[T] + J,      H = −(ħ²/2m) ∇² + V,   Λ_QR = λ (B[T] − T),   Λ_F = γ Σ_k w_k T_{n−k}

Source: the audit's master equation, and docs/design.md section 3. `S = Λ_QR − Λ_F + J` collects the source
terms. Each mode interprets the equation such that `S` pulls the field instead of only rotating its phase:

    unitary       ħ ∂_t T = −i H[T] + S        the equation above with `i S` for `S`: sources add to the field at a rate
    dissipative   ħ ∂_t T = −H[T] + S          the same in imaginary time: gradient descent on the energy
    symplectic    ∂_t T = P / m,  ∂_t P = −H[T] + S     `S` is a force; without memory, which would not be reversible

`Λ_F` is the audit's *memory operator*, the fractional integral over the field's own past. "Memory" in this module means this
operator only, not the memory bank of inference.

Literature: the split-step Fourier method, Feit et al. 1982; Grünwald–Letnikov weights, Podlubny 1999.

Shapes: `T` `[Nx, Ny, D, D]` complex, called `field`; `V` `[Nx, Ny]` real, `potential`; `E` and `J` like `T`, `evidence` and
`source`. All quantities are in units of `ħ`, `m` and the grid spacing.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lior_jax.errors import UserError
from lior_jax.physics.numerics import contract

Mode = Literal["unitary", "symplectic", "dissipative"]


class Constants(NamedTuple):
    """Constants of the equation, static under `jit`. By default the field is free: no evidence, no memory."""

    hbar: float = 1.0
    mass: float = 1.0
    spacing: float = 1.0
    """Grid spacing, in both directions."""
    dt: float = 0.05
    evidence_rate: float = 0.0
    """λ ≥ 0, an energy: near the evidence the field relaxes to it at the rate λ / 2ħ."""
    evidence_temperature: float = 1.0
    """τ > 0, in units of |T|²: the squared distance over which the likelihood of the evidence decays."""
    memory_order: float = 0.5
    """α in (0, 1) of the fractional integral."""
    memory_rate: float = 0.0
    """γ ≥ 0, an energy."""
    memory_length: int = 32
    """Number of states that the memory sums over, including the present one."""


class State(NamedTuple):
    """`field` `[Nx, Ny, D, D]`; `momentum` P, same shape, used by the symplectic mode only; `past`
    `[memory_length − 1, Nx, Ny, D, D]`, the fields of the previous steps, latest first (empty without memory)."""

    field: Array
    momentum: Array
    past: Array


class Diagnostics(NamedTuple):
    """After each step: `norm`, and `energy` (`mechanical_energy` in the symplectic mode), `[steps]`."""

    norm: Array
    energy: Array


def begin(field: Array, constants: Constants, momentum: Array | None = None) -> State:
    """The state of a field with a zero past; at rest unless a `momentum` is given."""
    field = jnp.asarray(field)
    field = field.astype(jnp.result_type(field, jnp.complex64))
    momentum = jnp.zeros_like(field) if momentum is None else jnp.asarray(momentum).astype(field.dtype)
    return State(field, momentum, jnp.zeros((_past_length(constants), *field.shape), field.dtype))


def _past_length(constants: Constants) -> int:
    return constants.memory_length - 1 if constants.memory_rate else 0


# --- operators -------------------------------------------------------------------------------------------------------


def _squared_wave_numbers(shape: tuple[int, ...], spacing: float) -> np.ndarray:
    """`k² = k_x² + k_y²` of each Fourier mode, `[Nx, Ny, 1, 1]`."""
    kx, ky = (2 * np.pi * np.fft.fftfreq(n, spacing) for n in shape[:2])
    return (kx[:, None] ** 2 + ky[None] ** 2)[..., None, None]


def _in_fourier_space(factors: np.ndarray, field: Array) -> Array:
    """Multiply every Fourier mode of the grid by its factor `[Nx, Ny, 1, 1]`."""
    rounded = jnp.asarray(factors, field.dtype)  # computed in float64, rounded once
    return jnp.fft.ifftn(rounded * jnp.fft.fftn(field, axes=(0, 1)), axes=(0, 1))


def laplacian(field: Array, spacing: float) -> Array:
    """`∇² T`, exact for every Fourier mode of the periodic grid."""
    return _in_fourier_space(-_squared_wave_numbers(field.shape, spacing), field)


def hamiltonian(field: Array, potential: Array, constants: Constants) -> Array:
    """`H[T] = −(ħ²/2m) ∇² T + V T`, Hermitian."""
    kinetic = -(constants.hbar**2 / (2 * constants.mass)) * laplacian(field, constants.spacing)
    return kinetic + potential[..., None, None] * field


def split_step(field: Array, potential: Array, constants: Constants) -> Array:
    """One step of `iħ ∂_t T = H[T]`: `e^{−iV dt/2ħ} F⁻¹ e^{−iħk² dt/2m} F e^{−iV dt/2ħ} T`, unitary, second order."""
    half = jnp.exp(-1j * (0.5 * constants.dt / constants.hbar) * potential)[..., None, None]
    angle = (0.5 * constants.hbar * constants.dt / constants.mass) * _squared_wave_numbers(field.shape, constants.spacing)
    return half * _in_fourier_space(np.exp(-1j * angle), half * field)


def posterior(field: Array, evidence: Array, temperature: float) -> tuple[Array, Array]:
    """Probabilities of keeping a component of `T` and of taking the evidence's: `1 / (1 + w)` and `w / (1 + w)`.

    The field has weight 1, the evidence its likelihood `w = exp(−|T − E|² / τ)`, per component.
    """
    difference = field - evidence
    surprise = (jnp.real(difference) ** 2 + jnp.imag(difference) ** 2) / temperature
    # The logistic forms stay accurate when w is too small to be added to 1.
    return jax.nn.sigmoid(surprise), jax.nn.sigmoid(-surprise)


def bayes(field: Array, evidence: Array, temperature: float) -> Array:
    """The posterior mean `B[T] = (T + w E) / (1 + w)`, between `T` and at most the midpoint of `T` and `E`."""
    _, believed = posterior(field, evidence, temperature)
    return field + believed * (evidence - field)


def memory_weights(order: float, length: int) -> np.ndarray:
    """Grünwald–Letnikov weights `[length]` of the fractional integral, `w_k ∝ (−1)^k binom(−α, k) = Γ(k+α) / (Γ(α) k!)`.

    Lag 0 comes first and has the largest weight; they decay like `k^{α−1}` and sum to 1 over the stored history.
    """
    lag = np.arange(1, length)
    weights = np.cumprod(np.concatenate([[1.0], (lag - 1 + order) / lag]))
    return weights / weights.sum()


def memory(field: Array, past: Array, constants: Constants) -> Array:
    """The memory operator `Λ_F = γ Σ_k w_k T_{n−k}`, with `field` at lag 0 and `past` `[K − 1, Nx, Ny, D, D]` at the lags after
    it.

    It is subtracted and so damps; only for α near 1 can it amplify a mode whose phase completes a turn within the history.
    """
    history = jnp.concatenate([field[None], past])
    weights = jnp.asarray(memory_weights(constants.memory_order, history.shape[0]), field.dtype)
    return constants.memory_rate * contract("k,kxyij->xyij", weights, history, "float32")


def sources(field: Array, past: Array, evidence: Array | None, source: Array | None, constants: Constants) -> Array:
    """`S = λ (B[T] − T) − Λ_F + J`."""
    total = jnp.zeros_like(field) if source is None else source
    if constants.evidence_rate:
        assert evidence is not None, "an evidence_rate needs evidence"
        total = total + constants.evidence_rate * (bayes(field, evidence, constants.evidence_temperature) - field)
    if constants.memory_rate:
        total = total - memory(field, past, constants)
    return total


# --- invariants ------------------------------------------------------------------------------------------------------


def norm(field: Array) -> Array:
    """`sqrt(Σ |T|²)` over the grid and the components."""
    return jnp.sqrt(jnp.sum(jnp.real(field) ** 2 + jnp.imag(field) ** 2))


def energy(field: Array, potential: Array, constants: Constants) -> Array:
    """`Σ Re⟨T, H[T]⟩` times the area of a grid cell."""
    return constants.spacing**2 * jnp.sum(jnp.real(jnp.conj(field) * hamiltonian(field, potential, constants)))


def mechanical_energy(field: Array, momentum: Array, potential: Array, constants: Constants) -> Array:
    """`‖P‖²/2m + ½ ⟨T, H[T]⟩`, each times the area of a grid cell: what the symplectic mode conserves."""
    kinetic = constants.spacing**2 * norm(momentum) ** 2 / (2 * constants.mass)
    return kinetic + 0.5 * energy(field, potential, constants)


# --- evolution -------------------------------------------------------------------------------------------------------

Sources = Callable[[Array, Array], Array]
"""`S` for a field and its past."""


def _unitary_step(state: State, potential: Array, outside: Sources | None, constants: Constants) -> State:
    """Half a step of the sources, the split step, half a step of the sources: second order without memory."""
    past = _push(state)
    field = split_step(_half_exchange(state.field, state.past, outside, constants), potential, constants)
    return state._replace(field=_half_exchange(field, past, outside, constants), past=past)


def _half_exchange(field: Array, past: Array, outside: Sources | None, constants: Constants) -> Array:
    """Half a step of `ħ ∂_t T = S` by the midpoint rule."""
    if outside is None:
        return field
    half = 0.5 * constants.dt / constants.hbar
    return field + half * outside(field + 0.5 * half * outside(field, past), past)


def _symplectic_step(state: State, potential: Array, outside: Sources | None, constants: Constants) -> State:
    """Leapfrog: kick ½, drift, kick ½. The same step with `−P` inverts it."""
    momentum = state.momentum + 0.5 * constants.dt * _descent(state.field, state.past, potential, outside, constants)
    field = state.field + (constants.dt / constants.mass) * momentum
    kick = 0.5 * constants.dt * _descent(field, state.past, potential, outside, constants)
    return state._replace(field=field, momentum=momentum + kick)


def _dissipative_step(state: State, potential: Array, outside: Sources | None, constants: Constants) -> State:
    """One explicit step of gradient descent. Without sources the energy never rises, and the ground state of `H` decays
    slowest."""
    slope = _descent(state.field, state.past, potential, outside, constants)
    return state._replace(field=state.field + (constants.dt / constants.hbar) * slope, past=_push(state))


def _descent(field: Array, past: Array, potential: Array, outside: Sources | None, constants: Constants) -> Array:
    """`−H[T] + S`."""
    downhill = -hamiltonian(field, potential, constants)
    return downhill if outside is None else downhill + outside(field, past)


def _push(state: State) -> Array:
    # Shifting costs no more than the sum over the history, which every step computes anyway.
    return jnp.concatenate([state.field[None], state.past])[:-1]


_STEPS = {"unitary": _unitary_step, "symplectic": _symplectic_step, "dissipative": _dissipative_step}


def evolve(
    state: State,
    potential: Array,
    evidence: Array | None,
    source: Array | None,
    constants: Constants,
    steps: int,
    mode: Mode,
) -> tuple[State, Diagnostics]:
    """Evolve the field for `steps` steps; under `jit`, `constants`, `steps` and `mode` are static.

    Args:
        potential: V `[Nx, Ny]`, real.
        evidence: E, like the field; may be None while `evidence_rate` is 0.
        source: J, like the field, the same at every step; None for none.

    Returns:
        The final state, and the diagnostics of each step.

    Raises:
        UserError: mismatched shapes, or constants that `check` refuses for every potential. For the limit on dt with a given
            potential, call `check` with a bound of it, outside `jit`.
    """
    _check_arrays(state, potential, evidence, source, constants)
    check(constants, state.field.shape, 0.0, mode)
    start = norm(state.field)
    closed = source is None and not constants.evidence_rate and not constants.memory_rate
    outside = None if closed else lambda field, past: sources(field, past, evidence, source, constants)

    def step(state, _):
        state = _STEPS[mode](state, potential, outside, constants)
        if mode == "unitary" and closed:
            # The step is unitary; rounding in the transforms is not, and shrinks the norm slightly at every step.
            present = jnp.maximum(norm(state.field), jnp.finfo(start.dtype).tiny)
            state = state._replace(field=state.field * (start / present))
        if mode == "symplectic":
            level = mechanical_energy(state.field, state.momentum, potential, constants)
        else:
            level = energy(state.field, potential, constants)
        return state, Diagnostics(norm(state.field), level)

    return lax.scan(step, state, None, length=steps)


# --- validation ------------------------------------------------------------------------------------------------------


def check(constants: Constants, shape: tuple[int, ...], potential_bound: float, mode: Mode) -> None:
    """Refuse invalid constants, and time steps too long for a field of this shape.

    The limits, with `λ_max ≤ ħ² k²_max / 2m + max |V|` of `H` and the memory's mean lag `k̄ = Σ_k k w_k` in steps, are

        unitary       dt max |V| / ħ ≤ π   and   dt (λ + γ (1 + k̄)) / ħ ≤ 1
        dissipative   dt (½ λ_max + λ + γ (1 + k̄)) / ħ ≤ 1
        symplectic    dt sqrt((λ_max + λ) / m) ≤ 2

    The split step is stable at any dt, but a phase beyond π is aliased. A restoring term delayed by `k̄` steps oscillates with
    growing amplitude where an immediate one would overshoot: `1 / (½ + k̄)` bounds `dt γ / ħ` for a field at rest.

    Args:
        shape: of the field.
        potential_bound: an upper bound of `max |V|`.

    Raises:
        UserError: an invalid constant; if dt is too long, the message names the longest allowed one.
    """
    if mode not in _STEPS:
        raise UserError(f"There is no mode {mode!r} of the field; take one of {', '.join(_STEPS)}.")
    if len(shape) != 4 or shape[2] != shape[3] or 0 in shape:
        raise UserError(f"A field has the shape [Nx, Ny, D, D], not {list(shape)}; give square tensors on a plane grid.")
    given = constants._asdict() | {"potential_bound": potential_bound}
    for name in ("hbar", "mass", "spacing", "dt", "evidence_temperature"):
        if not 0 < given[name] < math.inf:
            raise UserError(f"{name} is {given[name]}, but must be positive and finite.")
    for name in ("evidence_rate", "memory_rate", "potential_bound"):
        if not 0 <= given[name] < math.inf:
            raise UserError(f"{name} is {given[name]}, but must be at least 0 and finite.")
    if not 0 < constants.memory_order < 1:
        raise UserError(f"memory_order is {constants.memory_order}, but must lie between 0 and 1, both excluded.")
    if not isinstance(constants.memory_length, int) or constants.memory_length < 1:
        raise UserError(f"memory_length is {constants.memory_length}, but must be a whole number, 1 or more.")
    if mode == "symplectic" and constants.memory_rate:
        raise UserError("The symplectic mode is reversible and has no memory; set memory_rate to 0 or take another mode.")
    longest, why = _longest_step(constants, shape, potential_bound, mode)
    if constants.dt > longest * (1 + 1e-5):  # rounded down: the printed limit must itself be allowed
        raise UserError(f"dt = {constants.dt:g} is too long for the {mode} mode: {why}; take dt at most {longest:.6g}.")


def _longest_step(constants: Constants, shape: tuple[int, ...], potential_bound: float, mode: Mode) -> tuple[float, str]:
    hbar, mass = constants.hbar, constants.mass
    largest = hbar**2 * float(_squared_wave_numbers(shape, constants.spacing).max()) / (2 * mass) + potential_bound
    mean_lag = float(memory_weights(constants.memory_order, constants.memory_length) @ np.arange(constants.memory_length))
    exchange = constants.evidence_rate + constants.memory_rate * (1 + mean_lag)
    if mode == "symplectic":
        return _divide(2.0, math.sqrt((largest + constants.evidence_rate) / mass)), "the leapfrog would be unstable"
    if mode == "dissipative":
        return _divide(hbar, 0.5 * largest + exchange), "the explicit step would be unstable"
    phase = _divide(math.pi * hbar, potential_bound), "the potential would turn a phase by more than π"
    return min(phase, (_divide(hbar, exchange), "evidence and memory would overshoot"))


def _divide(a: float, b: float) -> float:
    return a / b if b else math.inf


def _check_arrays(state: State, potential: Array, evidence: Array | None, source: Array | None, constants: Constants) -> None:
    shape = state.field.shape
    if potential.shape != shape[:2] or jnp.iscomplexobj(potential):
        raise UserError(
            f"The potential is {potential.dtype} of the shape {list(potential.shape)}, but must be real and of the grid's "
            f"shape {list(shape[:2])}."
        )
    for name, array in (("momentum", state.momentum), ("evidence", evidence), ("source", source)):
        if array is not None and array.shape != shape:
            raise UserError(f"The {name} has the shape {list(array.shape)}, but must have that of the field, {list(shape)}.")
    if constants.evidence_rate and evidence is None:
        raise UserError("evidence_rate is not 0, but there is no evidence; give some, or set the rate to 0.")
    if state.past.shape[0] != _past_length(constants):
        raise UserError("The state was begun with another memory_rate or memory_length; begin again with these constants.")
