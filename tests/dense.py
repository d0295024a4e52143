"""The network in plain float64 numpy, each formula spelled out from docs/design.md: displacements one by one, bivectors and
curvature tensors with all their components, the field state as the matrix that it is, every half-kick."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from scipy.linalg import expm
from scipy.special import gamma

from lior_jax.model import Params
from lior_jax.model.field import Evidence, EvidenceSite
from lior_jax.model.operators import LongKernel, Operators
from lior_jax.physics.action import LENGTH_EPSILON
from lior_jax.physics.field_state import ReadOut
from lior_jax.physics.geometry import Metric
from lior_jax.physics.hamiltonian import Hamiltonian
from lior_jax.physics.kernel import Kernel
from lior_jax.physics.master import Site
from lior_jax.physics.numerics import RMS_EPSILON
from lior_jax.physics.potential.gated import Gated
from lior_jax.physics.potential.hopfield import Hopfield
from lior_jax.physics.products import PRODUCT_EPSILON, Spinor, Tensor, Wedge
from lior_jax.physics.projection import Projector
from lior_jax.physics.resilience import CURVATURE_EPSILON, Collapsed, Constitutive, Curvature
from lior_jax.physics.retrieval import COST_EPSILON, Couplings
from lior_jax.physics.scores import LagPrior
from lior_jax.physics.turn import Generator
from lior_jax.settings import ModelConfig
from tests.oracles import dense_force, dense_frame, rms_hat, softplus, to_numpy


def at(tree: Any, *index: int) -> Any:
    return jax.tree.map(lambda x: x[index], tree)


# --- kernels ---------------------------------------------------------------------------------------------------------


def logistic(x):
    return 1 / (1 + np.exp(-x))


def power_law(order: np.ndarray, lag: np.ndarray) -> np.ndarray:
    """`Δ^{−δ} = Γ(δ)^{-1} ∫ u^δ e^{−uΔ} dy` with `u = e^y`: one pole at each of y = −10.5 … 2.5; what lies below y = −11,
    `∫₀^v u^{δ−1} du = v^δ / δ` of it at Δ = 0, is one more that decays at its mean rate `v δ / (δ + 1)`."""
    v = np.exp(-11.0)
    poles = sum(u**order * np.exp(-u * lag) for u in np.exp(np.arange(-10.5, 3.0)))
    return (poles + v**order / order * np.exp(-v * order / (order + 1) * lag)) / gamma(order)


def kernel_values(kernel: Kernel, length: int) -> np.ndarray:
    """`a₀ e^{−βΔ} − a₁ Δ^{−δ} e^{−ξΔ} + a₂ cos(ωΔ + φ) e^{−ζΔ}` of kernels with any leading axes: `[..., L]`."""
    lag = np.arange(float(length))
    (a0, a1, a2), (beta, xi, zeta) = (np.moveaxis(x, -1, 0)[..., None] for x in (kernel.amplitude, softplus(kernel.rate)))
    wave = np.cos(kernel.frequency[..., None] * lag + kernel.phase[..., None])
    power = power_law(logistic(kernel.order)[..., None], lag)
    return a0 * np.exp(-beta * lag) - a1 * power * np.exp(-xi * lag) + a2 * wave * np.exp(-zeta * lag)


def log_prior(kernel: Kernel, fractional: np.ndarray, length: int) -> np.ndarray:
    """`ln(e^{a₀ − βΔ} + e^{a₁ − ξΔ} (1 + Δ)^{−δ} + e^{a₂ − ζΔ} (1 + ½ cos(ωΔ + φ)))`, the odds of δ being those of the
    learned order times those of the fractional order: `[..., L]`."""
    lag = np.arange(float(length))
    a, rate = np.moveaxis(kernel.amplitude, -1, 0)[..., None], np.moveaxis(softplus(kernel.rate), -1, 0)[..., None]
    odds = np.exp(kernel.order) * fractional / (1 - fractional)
    power = (1 + lag) ** -(odds / (1 + odds))[..., None]
    wave = 1 + 0.5 * np.cos(kernel.frequency[..., None] * lag + kernel.phase[..., None])
    return np.log(sum(np.exp(a[i] - rate[i] * lag) * shape for i, shape in enumerate((1.0, power, wave))))


# --- geometry --------------------------------------------------------------------------------------------------------


def base_of(config: ModelConfig) -> np.ndarray:
    """`g₀`."""
    return np.eye(config.geometry.chart_dim) if config.geometry.base_metric is None else np.array(config.geometry.base_metric)


def frame_of(angles: np.ndarray, config: ModelConfig) -> np.ndarray:
    """`Q` of rotors; in blocks, a layer's angles are those of the first block, then of the next."""
    n = config.geometry.chart_dim
    size = config.geometry.block if config.geometry.metric == "block_rot" else n
    q, half = np.zeros((n, n)), size // 2
    for index, start in enumerate(range(0, n - size + 1, size)):
        own = slice(start, start + size)
        q[own, own] = dense_frame(angles[:, index * half : (index + 1) * half], size)
    return q


def whitening(metric: Metric, frame: np.ndarray | None, config: ModelConfig) -> np.ndarray:
    """`W = [Ω Λ^½ Qᵀ ; D^½ Uᵀ] B` of one head, `[n + r, n]`, with `g₀ = Bᵀ B`."""
    q = frame_of(metric.angles, config) if frame is None else frame
    rigid = softplus(metric.scale) * np.diag(np.sqrt(softplus(metric.stiffness))) @ q.T
    soft = np.diag(np.sqrt(softplus(metric.low_rank_stiffness))) @ metric.low_rank.T
    return np.concatenate([rigid, soft]) @ np.linalg.cholesky(base_of(config)).T


def resilience(law: Constitutive | Curvature | None, points: np.ndarray, s: np.ndarray, config: ModelConfig) -> np.ndarray:
    """`R` at whitened points `[..., H, m]` of states `[..., d]`: `[..., H]`. The curvature has all its `n⁴` components."""
    if law is None:
        return np.ones(points.shape[:-1])
    if isinstance(law, Constitutive):
        return (np.mean(s * s, -1, keepdims=True) + RMS_EPSILON) ** (law.exponent / 2)
    kappa = law.level + np.einsum("...hm,hcm->...hc", points, law.slope)
    tensor = np.einsum("...hc,hcmr,hcns->...hmnrs", kappa, law.forms, law.forms)
    return np.sqrt(np.abs(contraction(tensor, config)) + CURVATURE_EPSILON)


def contraction(tensor: np.ndarray, config: ModelConfig) -> np.ndarray:
    """`K_μνρσ R_μνρσ` with `K_μνρσ = g₀⁻¹_μρ g₀⁻¹_νσ / n²` of `[..., n, n, n, n]`: `[...]`."""
    inverse = np.linalg.inv(base_of(config))
    kernel = np.einsum("mr,ns->mnrs", inverse, inverse) / config.geometry.chart_dim**2
    return (kernel * tensor).sum((-4, -3, -2, -1))


def action(law, charts: np.ndarray, before: np.ndarray, after: np.ndarray, config: ModelConfig) -> np.ndarray:
    """`R sqrt(‖x − x′‖² + ε)` of the move of the chart points `x = W A_q ŝ` from one state to another, `R` where it begins,
    for folded charts `W A_q` `[H, m, d]`: `[B, L, H]`."""
    begin, end = (np.einsum("bld,hmd->blhm", rms_hat(s), charts) for s in (before, after))
    return resilience(law, begin, before, config) * np.sqrt(np.sum((end - begin) ** 2, -1) + LENGTH_EPSILON)


# --- retrieval -------------------------------------------------------------------------------------------------------


def retrieve(queries, keys, values, weight, couplings: Couplings) -> tuple[np.ndarray, np.ndarray]:
    """Retrieval of whitened queries and keys `[B, L, H, m]`, with resilience `weight` `[B, L, H]`. Returns what is
    retrieved `[B, L, H, v]`, and the Boltzmann weights `[B, H, L, L]`."""
    queries, keys, values, weight, couplings = to_numpy((queries, keys, values, weight, couplings))
    batch, length, heads, _ = queries.shape
    retrieved, weights = np.zeros(values.shape), np.zeros((batch, heads, length, length))
    for b, h, i in np.ndindex(batch, heads, length):
        q, k, v = queries[b, i, h], keys[b, : i + 1, h], values[b, : i + 1, h]
        lag = i - np.arange(i + 1)
        cost = np.sqrt(np.sum((k - q) ** 2, -1) + COST_EPSILON) * weight[b, i, h]
        scores = -couplings.inverse_temperature[h] * cost
        for term in couplings.scores:
            scores = scores + score(term, h, q, k, lag)
        boltzmann = np.exp(scores - scores.max())
        weights[b, h, i, : i + 1] = boltzmann / boltzmann.sum()
        retrieved[b, i, h] = weights[b, h, i, : i + 1] @ v
        for read_out in couplings.mixing:
            field = sum(read_out.by_lag[h, i - j] * np.outer(v[j], k[j]) for j in range(i + 1))
            retrieved[b, i, h] += field @ q
    return retrieved, weights


def _area(q: np.ndarray, k: np.ndarray) -> float:
    """`‖q ∧ k‖ = sqrt(½ Σ_mn (q_m k_n − q_n k_m)²)`."""
    wedge = np.outer(q, k) - np.outer(k, q)
    return np.sqrt(0.5 * np.sum(wedge**2) + PRODUCT_EPSILON)


def _spinor(q: np.ndarray, k: np.ndarray) -> float:
    """`‖q‖ ‖k‖ cos(θ/2) = sqrt(r (r + ⟨q, k⟩) / 2)`."""
    r = np.sqrt(np.sum(q * q) * np.sum(k * k) + PRODUCT_EPSILON)
    return np.sqrt(r * (r + q @ k) / 2 + PRODUCT_EPSILON)


def score(term: Any, head: int, q: np.ndarray, k: np.ndarray, lag: np.ndarray) -> np.ndarray:
    """What a term of a head adds to the scores of a query `[m]` with keys `[i, m]` at these lags `[i]`."""
    match term:
        case LagPrior(log_prior):
            return log_prior[head, lag]
        case Tensor(gate):
            return gate[head] * k @ q
        case Wedge(area, form):
            return area[head] * np.array([_area(q, x) for x in k]) + k @ form[head].T @ q
        case Spinor(gate):
            return gate[head] * np.array([_spinor(q, x) for x in k])
    raise TypeError(term)


# --- the field -------------------------------------------------------------------------------------------------------


def evidence_site(raw: Evidence, config: ModelConfig) -> EvidenceSite:
    """`Rᵀ` of every head from its Givens matrices, and a positive rate."""
    frames = np.zeros((*raw.angles.shape[:2], config.geometry.whitened_dim, config.geometry.whitened_dim))
    for head in np.ndindex(raw.angles.shape[:2]):
        frames[head] = dense_frame(raw.angles[head], config.geometry.whitened_dim).T
    return EvidenceSite(Site(softplus(raw.rate), Generator(frames, raw.frequency)), raw.pull, raw.bias, raw.gate)


def hermitian(generator: Generator, head: int) -> np.ndarray:
    """`H = R (⊕_j ω_j σ_y) Rᵀ` of the planes `(j, h + j)`."""
    frame, frequency = generator.frame[head], generator.frequency[head]
    inner = np.zeros(frame.shape, complex)
    for j, omega in enumerate(frequency):
        k = len(frequency) + j
        inner[j, k], inner[k, j] = -1j * omega, 1j * omega
    return frame.T @ inner @ frame


def evolve(site: Site, queries, keys, values, pull) -> np.ndarray:
    """`T ← ρ T e^{−iH}`, `T ← T + λ (v − T k̂) k̂ᵀ`, `y = T q̂`, one position after another: `[B, L, H, v]`."""
    read = np.zeros(values.shape)
    for b, h in np.ndindex(values.shape[0], values.shape[2]):
        turn, field = expm(-1j * hermitian(site.generator, h)), np.zeros((values.shape[-1], keys.shape[-1]), complex)
        for i in range(values.shape[1]):
            q, k = (rms_hat(x[b, i, h]) / np.sqrt(keys.shape[-1]) for x in (queries, keys))
            field = np.exp(-site.rate[h]) * field @ turn
            field = field + pull[b, i, h] * np.outer(values[b, i, h] - field @ k, k)
            read[b, i, h] = (field @ q).real
    return read


def project(projector: Projector | None, keys, values):
    """Keys and values with `Tᵀ a` and `T b` of the field `T_t = Σ_{s<t} K(t − s) v_s k_sᵀ` added by their gates; and the share
    of every earlier key that each key was given, `[B, H, t, s]`."""
    if projector is None:
        return keys, values, None
    moved, held = (keys.copy(), values.copy()), np.zeros((len(keys), keys.shape[2], keys.shape[1], keys.shape[1]))
    for b, t, h in np.ndindex(keys.shape[:3]):
        for s in range(t):
            field = projector.by_lag[h, t - s] * np.outer(values[b, s, h], keys[b, s, h])
            moved[0][b, t, h] += projector.key_gate[h] * field.T @ projector.key_probe[h]
            moved[1][b, t, h] += projector.value_gate[h] * field @ projector.value_probe[h]
            held[b, h, t, s] = projector.key_gate[h] * projector.by_lag[h, t - s] * values[b, s, h] @ projector.key_probe[h]
    return *moved, held


# --- the network -----------------------------------------------------------------------------------------------------


def prepare(params: Params, length: int, config: ModelConfig) -> Operators:
    """What the blocks apply: positive, whitened and by lag; the curvature's terms contracted one by one."""
    params = to_numpy(params)
    blocks, (frame, state) = params.blocks, params.carried
    heads = np.ndindex(config.blocks, config.heads)
    axes = [None if frame is None else frame.axes[head] for head in heads]
    heads = np.ndindex(config.blocks, config.heads)
    w = np.stack([whitening(at(blocks.metric, *head), q, config) for head, q in zip(heads, axes, strict=True)])
    w = w.reshape(config.blocks, config.heads, *w.shape[1:])
    scale = np.sqrt(config.geometry.whitened_dim)

    long, mixing, raw, scores, evidence, projector = None, (), blocks.scores, [], None, None
    if "lag_prior" in raw:
        scores.append(LagPrior(log_prior(raw["lag_prior"], np.array(0.5) if state is None else state.order, length)))
    if blocks.long_convolution is not None:
        long = LongKernel(kernel_values(blocks.long_convolution.kernel, length), blocks.long_convolution.gain)
    if blocks.field is not None:
        by_lag = kernel_values(blocks.field.kernel, length)
        mixing = (ReadOut(blocks.field.gate[..., None] * by_lag / scale),)
        evidence = None if blocks.field.evidence is None else evidence_site(blocks.field.evidence, config)
        projector = None if blocks.field.projection is None else Projector(by_lag, *blocks.field.projection)
    for name in config.retrieval.products:
        gates = jax.tree.map(lambda x: x / scale, raw[name])
        scores.append(gates._replace(form=gates.form - np.swapaxes(gates.form, -1, -2)) if name == "wedge" else gates)
    law = blocks.resilience
    if isinstance(law, Curvature):
        square = contraction(np.einsum("...mr,...ns->...mnrs", law.forms, law.forms), config)
        law = Collapsed(np.einsum("bhc,bhcm->bhm", square, law.slope), np.einsum("bhc,bhc->bh", square, law.level))
    return Operators(
        taps=blocks.taps,
        query=w @ blocks.query,
        key=w @ blocks.key,
        value=blocks.value,
        output=blocks.output,
        hamiltonian=Hamiltonian(
            potential_of(blocks.hamiltonian.potential, config.dynamics == "dissipative"),
            softplus(blocks.hamiltonian.inverse_mass),
        ),
        couplings=Couplings(softplus(blocks.inverse_temperature), tuple(scores), mixing),
        long_convolution=long,
        resilience=law,
        evidence=evidence,
        projector=projector,
    )


LEAPS = {"verlet": [1.0], "yoshida4": [1.3512071919596578, -1.7024143839193153, 1.3512071919596578]}
"""Leapfrog steps that a step of each integrator is made of, as Yoshida's paper gives them."""


class Pass(NamedTuple):
    """`logits` `[B, L, V]`; `states` before each block and after the last one; `actions` `[N, H]`, means over positions;
    `moments` `[N, H, n, n]`, `E[zzᵀ]` of the keys `z = B A_k c` in the coordinates that the frame turns."""

    logits: np.ndarray
    states: list[np.ndarray]
    actions: np.ndarray
    moments: np.ndarray


def network(params: Params, tokens: Array, config: ModelConfig) -> Pass:
    """The whole forward pass."""
    params, tokens = to_numpy(params), np.asarray(tokens)
    operators, base = prepare(params, tokens.shape[1], config), np.linalg.cholesky(base_of(config)).T
    s = params.embedding[tokens]
    p, states, actions, moments = np.zeros_like(s), [s], [], []
    for index in range(config.blocks):
        block, law = at(operators, index), at(params.blocks.resilience, index)
        context = context_of(block, rms_hat(s))
        query, key, value = (np.einsum("bld,hmd->blhm", context, chart) for chart in (block.query, block.key, block.value))
        key, value, held = project(block.projector, key, value)
        retrieved, _ = retrieve(query, key, value, resilience(law, query, s, config), block.couplings)
        if block.evidence is not None:
            pull = logistic(np.einsum("bld,hd->blh", context, block.evidence.pull) + block.evidence.bias)
            retrieved = retrieved + block.evidence.gate[:, None] * evolve(block.evidence.site, query, key, value, pull)
        if not config.flow.carry_momentum:
            p = np.zeros_like(s)
        kick = np.einsum("blhv,hvd->bld", retrieved, block.output)
        if config.dynamics == "dissipative":
            before, s = s, relax(block.hamiltonian, s, kick, config)
            acted = action(law, block.query, before, s, config)
        else:
            p, acted = p + kick, 0.0
            for step in LEAPS[config.flow.integrator] * config.flow.steps:
                length = step * config.flow.step_size
                p = p + 0.5 * length * dense_force(block.hamiltonian.potential, s)
                before, s = s, s + length * block.hamiltonian.inverse_mass * p
                p = p + 0.5 * length * dense_force(block.hamiltonian.potential, s)
                acted = acted + action(law, block.query, before, s, config)
        states.append(s)
        actions.append(acted.mean((0, 1)))
        z = np.einsum("mn,hnd,bld->blhm", base, params.blocks.key[index], context)
        z = z if held is None else z + np.einsum("bhts,bshm->bthm", held, z)
        moments.append(np.einsum("blhm,blhn->hmn", z, z) / tokens.size)
    return Pass(rms_hat(s) @ params.readout.T, states, np.array(actions), np.array(moments))


def potential_of(raw: Gated | Hopfield, restrained: bool) -> Gated | Hopfield:
    """The potentials of all blocks. Restrained are gates by `1 + ‖U‖₈ (‖W‖₈ + ‖W‖₈² / 3) / 2`, with norms from the singular
    values; and patterns by `sqrt(1 + ρ² (2 β + 1 / d))`, with `ρ⁸ = Σ ‖w_m‖⁸`."""
    raw = raw._replace(curvature=softplus(raw.curvature))
    if isinstance(raw, Hopfield):
        raw = raw._replace(sharpness=softplus(raw.sharpness))
        square = np.sum(np.linalg.norm(raw.patterns, axis=-1) ** 8, -1) ** 0.25
        share = 1 / np.sqrt(1 + square * (2 * raw.sharpness + 1 / raw.patterns.shape[-1]))
        return raw._replace(patterns=raw.patterns * share[:, None, None]) if restrained else raw
    w, u = (np.sum(np.linalg.svd(x, compute_uv=False) ** 8, -1) ** 0.125 for x in (raw.features, raw.gates))
    return raw._replace(gates=raw.gates / (1 + u * (w + w**2 / 3) / 2)[:, None, None]) if restrained else raw


def relax(hamiltonian: Hamiltonian, s_in: np.ndarray, kick: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Heavy-ball descent, preconditioned by the quadratic part of `½ ‖s − s_in − M⁻¹ f‖²_M + V(s)`, ŝ being soft."""
    mass, kappa = 1 / hamiltonian.inverse_mass, hamiltonian.potential.curvature
    s = s_in + kick / mass
    before = s
    for _ in range(config.relaxation.steps):
        slope = mass * (s - s_in) - kick - dense_force(hamiltonian.potential, s, 1.0)
        step = config.relaxation.momentum * (s - before) - config.relaxation.rate * slope / (mass + kappa)
        before, s = s, s + step
    return s


def context_of(block: Operators, direction: np.ndarray) -> np.ndarray:
    """Taps and long convolution, one lag after another: `Σ_j (κ_j + gain K_h(j)) ⊙ û_{t−j}`, each channel with its head's
    kernel."""
    context, length = np.zeros_like(direction), direction.shape[1]
    for lag in range(length):
        weight = block.taps[lag] if lag < len(block.taps) else 0.0
        if block.long_convolution is not None:
            heads = block.long_convolution.by_lag[:, lag]
            weight = weight + block.long_convolution.gain * np.repeat(heads, direction.shape[-1] // len(heads))
        context[:, lag:] += weight * direction[:, : length - lag]
    return context
