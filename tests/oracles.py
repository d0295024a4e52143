"""Independent oracles: automatic differentiation, float64, and plain numpy forms written from DESIGN.md.

Nothing here calls the hand-written adjoints. The numpy forms share with `lior_jax` only the parameter structures, the
epsilons and the table of rotor planes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import ndtr

from lior_jax import learning, model
from lior_jax.config import Config, LearningConfig, ModelConfig
from lior_jax.model import Params
from lior_jax.physics.geometry import Metric, rotor_planes
from lior_jax.physics.hamiltonian import Hamiltonian
from lior_jax.physics.numerics import RMS_EPSILON
from lior_jax.physics.retrieval import COST_EPSILON

Batch = tuple[Array, Array]

SMALL: dict[str, Any] = {
    "vocab_size": 11,
    "context": 16,
    "width": 12,
    "heads": 2,
    "chart_dim": 5,
    "metric_rank": 2,
    "rotor_layers": 2,
    "taps": 3,
    "potential_units": 10,
    "blocks": 2,
}

# One cache of compiled programs for all tests: the same configuration and shapes compile once.
estimate = jax.jit(learning.estimate, static_argnames="config")
logits = jax.jit(model.logits, static_argnames="config")
autodiff = jax.jit(jax.value_and_grad(model.loss), static_argnames="config")


def small_config(learning: dict[str, Any] | None = None, **changes: Any) -> Config:
    """A configuration that compiles fast; `changes` go to the model."""
    return Config(model=ModelConfig(**(SMALL | changes)), learning=LearningConfig(**(learning or {})))


def random_batch(config: Config, batch: int = 3, length: int = 7, seed: int = 0) -> Batch:
    tokens = np.random.default_rng(seed).integers(0, config.model.vocab_size, (2, batch, length), dtype=np.int32)
    return jnp.asarray(tokens[0]), jnp.asarray(tokens[1])


def initial(config: ModelConfig, seed: int = 0) -> Params:
    # rbg keys: threefry compiles for seconds at every new shape.
    return model.init(jax.random.key(seed, impl="rbg"), config)


def trained_looking(config: ModelConfig, seed: int = 0, spread: float = 0.2) -> Params:
    """Initial parameters with every leaf disturbed, so that no gradient is zero by symmetry, and a readout large enough for
    a loss that is not flat. float32, in float64 mode too."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(False):
        params = initial(config, seed)
        disturbed = jax.tree.map(lambda x: jnp.asarray(x + spread * rng.standard_normal(x.shape), jnp.float32), params)
        readout = disturbed.readout + 0.4 * rng.standard_normal(disturbed.readout.shape)
        return disturbed._replace(readout=jnp.asarray(readout, jnp.float32))


def random_params(config: ModelConfig, seed: int = 0) -> Params:
    """Normal leaves of the right shapes: nothing is compiled, for tests of maps that hold for any parameters."""
    return random_like(jax.eval_shape(lambda: initial(config)), seed)


def to64(tree: Any) -> Any:
    """`tree` with float64 instead of float32 leaves; only inside float64 mode."""

    def cast(x):
        x = jnp.asarray(x)
        return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)


def to_numpy(tree: Any) -> Any:
    """`tree` with float64 numpy leaves; integers stay."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64 if jnp.issubdtype(x.dtype, jnp.floating) else None), tree)


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Array:
    return jnp.asarray(scale * rng.standard_normal(shape))


def random_metric(n: int, layers: int, rank: int, seed: int = 0, spread: float = 1.0) -> Metric:
    """Raw parameters of a metric with nothing special about them."""
    rng = np.random.default_rng(seed)
    return Metric(
        stiffness=normal(rng, n, scale=spread),
        scale=normal(rng, scale=spread),
        angles=normal(rng, layers, n // 2, scale=2.0),
        low_rank=normal(rng, n, rank),
        low_rank_stiffness=normal(rng, rank, scale=spread),
    )


def random_hamiltonian(d: int, units: int, seed: int = 0) -> Hamiltonian:
    rng = np.random.default_rng(seed)
    return Hamiltonian(
        units=normal(rng, 2, units, d, scale=d**-0.5),
        bias=normal(rng, units, scale=0.5),
        curvature=jnp.asarray(0.3),
        inverse_mass=jnp.asarray(rng.uniform(0.5, 1.5, d)),
    )


# --- comparing trees -----------------------------------------------------------------------------------------------


class Agreement(NamedTuple):
    """Of one leaf with its oracle. `share` is the oracle's norm as a share of the whole tree's."""

    cosine: float
    relative_error: float
    share: float


def named_leaves(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(x, np.float64) for path, x in leaves}


def agreement(actual: Any, expected: Any) -> dict[str, Agreement]:
    """Agreement per leaf. Error and norm of a leaf whose oracle is exactly zero are measured against the whole tree, and its
    cosine counts as 1: it has no direction to agree with, but it must not be large either."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    actual, expected = named_leaves(actual), named_leaves(expected)
    whole = np.sqrt(sum(np.sum(x * x) for x in expected.values()))
    result = {}
    for name, oracle in expected.items():
        assert actual[name].shape == oracle.shape, name
        norm, error = np.linalg.norm(oracle), np.linalg.norm(actual[name] - oracle)
        product = norm * np.linalg.norm(actual[name])
        cosine = float(np.sum(actual[name] * oracle) / product) if product else 1.0 if norm == 0 else 0.0
        result[name] = Agreement(cosine, float(error / (norm or whole or 1.0)), float(norm / (whole or 1.0)))
    return result


def whole_agreement(actual: Any, expected: Any) -> Agreement:
    """Agreement of two trees taken as one long vector each."""
    flat = [np.concatenate([x.ravel() for x in named_leaves(tree).values()]) for tree in (actual, expected)]
    return agreement(*flat)[""]


def assert_trees_close(actual: Any, expected: Any, tol: float) -> None:
    """Relative error of every leaf, in its own norm, below `tol`."""
    wrong = {name: x for name, x in agreement(actual, expected).items() if not x.relative_error <= tol}
    assert not wrong, wrong


def random_like(tree: Any, seed: int = 0) -> Any:
    """Standard normal leaves in the shapes and types of `tree`."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), tree)


def check_adjoint(function, adjoint, args: tuple, tol: float = 1e-6, seed: int = 0) -> None:
    """`adjoint(*args, cotangent)` equals the vjp of `function(*args)` on random cotangents, per leaf, in float64.

    `adjoint` returns a tuple, one cotangent for each of `args`.
    """
    with jax.enable_x64(True):
        args = to64(args)
        cotangent = random_like(jax.eval_shape(function, *args), seed + 1)

        @jax.jit
        def both(args, cotangent):
            return tuple(adjoint(*args, cotangent)), jax.vjp(function, *args)[1](cotangent)

        actual, expected = both(args, cotangent)
    assert_trees_close(actual, expected, tol)


# --- plain numpy forms ---------------------------------------------------------------------------------------------


def softplus(x):
    return np.logaddexp(0.0, x)


def rms_hat(x):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + RMS_EPSILON)


def gelu(z):
    return z * ndtr(z)


def gelu_slope(z):
    return ndtr(z) + z * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)


def givens(n: int, i: int, j: int, angle: float) -> np.ndarray:
    """The rotation of R^n that turns axis `i` towards axis `j`."""
    matrix = np.eye(n)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


def dense_frame(angles: np.ndarray, n: int) -> np.ndarray:
    """`Q`, one Givens matrix after another."""
    q = np.eye(n)
    for layer, planes in zip(angles, rotor_planes(n, len(angles)), strict=True):
        for angle, (i, j) in zip(layer, planes, strict=True):
            q = q @ givens(n, i, j, angle)
    return q


def dense_metric(metric: Metric) -> np.ndarray:
    """`G = Ω² Q Λ Qᵀ + U D Uᵀ`."""
    metric = to_numpy(metric)
    q = dense_frame(metric.angles, len(metric.stiffness))
    rigid = softplus(metric.scale) ** 2 * q @ np.diag(softplus(metric.stiffness)) @ q.T
    return rigid + metric.low_rank @ np.diag(softplus(metric.low_rank_stiffness)) @ metric.low_rank.T


def dense_retrieve(queries, keys, values, couplings, metrics=None) -> tuple[np.ndarray, np.ndarray]:
    """Retrieval with every displacement spelled out, for queries and keys `[B, L, H, m]` measured by `metrics` `[H, m, m]`
    (the identity if they are whitened). Returns what is retrieved `[B, L, H, v]`, and the weights `[B, H, L, L]`."""
    queries, keys, values, couplings = to_numpy((queries, keys, values, couplings))
    batch, length, heads, m = queries.shape
    metrics = np.tile(np.eye(m), (heads, 1, 1)) if metrics is None else metrics
    retrieved, weights = np.zeros(values.shape), np.zeros((batch, heads, length, length))
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                displacement = keys[b, : i + 1, h] - queries[b, i, h]
                cost = np.sqrt(np.einsum("jm,mn,jn->j", displacement, metrics[h], displacement) + COST_EPSILON)
                lag = i - np.arange(i + 1)
                kernel = (1.0 + lag) ** -couplings.lag_order[h] * np.exp(-couplings.lag_rate[h] * lag)
                boltzmann = kernel * np.exp(-couplings.inverse_temperature[h] * (cost - cost.min()))
                weights[b, h, i, : i + 1] = boltzmann / boltzmann.sum()
                retrieved[b, i, h] = weights[b, h, i, : i + 1] @ values[b, : i + 1, h]
    return retrieved, weights


def dense_potential(hamiltonian: Hamiltonian, s: np.ndarray) -> np.ndarray:
    hamiltonian, s_hat = to_numpy(hamiltonian), rms_hat(s)
    features, gates = hamiltonian.units
    gated = gelu(s_hat @ features.T + hamiltonian.bias) * (s_hat @ gates.T)
    return 0.5 * hamiltonian.curvature * np.sum(s * s, -1) - gated.sum(-1)


def dense_force(hamiltonian: Hamiltonian, s: np.ndarray) -> np.ndarray:
    """`−∂V/∂s`, through the matrix `∂ŝ/∂s` of every point."""
    hamiltonian, s_hat = to_numpy(hamiltonian), rms_hat(s)
    features, gates = hamiltonian.units
    z, gate = s_hat @ features.T + hamiltonian.bias, s_hat @ gates.T
    on_direction = (gelu_slope(z) * gate) @ features + gelu(z) @ gates
    d = s.shape[-1]
    jacobian = np.eye(d) - s_hat[..., :, None] * s_hat[..., None, :] / d
    jacobian = jacobian / np.sqrt(np.mean(s * s, axis=-1) + RMS_EPSILON)[..., None, None]
    return np.einsum("...ij,...i->...j", jacobian, on_direction) - hamiltonian.curvature * s


def dense_network(params: Params, tokens: Array, config: ModelConfig) -> tuple[np.ndarray, list[np.ndarray]]:
    """The whole forward pass in float64 numpy, every block with all its half-kicks: the logits `[B, L, V]`, and the state
    before each block and after the last one."""
    params, tokens = to_numpy(params), np.asarray(tokens)
    s = params.embedding[tokens]
    p, states = np.zeros_like(s), [s]
    for index in range(config.blocks):
        block = jax.tree.map(lambda x, index=index: x[index], params.blocks)
        direction = rms_hat(s)
        context = np.zeros_like(s)
        for lag in range(min(config.taps, s.shape[1])):
            context[:, lag:] += block.taps[lag] * direction[:, : s.shape[1] - lag]
        query, key, value = (np.einsum("bld,hmd->blhm", context, chart) for chart in (block.query, block.key, block.value))
        metrics = np.stack([dense_metric(jax.tree.map(lambda x, h=h: x[h], block.metric)) for h in range(config.heads)])
        couplings = jax.tree.map(softplus, block.couplings)
        retrieved, _ = dense_retrieve(query, key, value, couplings, metrics)
        if not config.carry_momentum:
            p = np.zeros_like(s)
        p = p + np.einsum("blhv,hvd->bld", retrieved, block.output)

        hamiltonian = block.hamiltonian._replace(
            curvature=softplus(block.hamiltonian.curvature), inverse_mass=softplus(block.hamiltonian.inverse_mass)
        )
        for _ in range(config.leapfrog_steps):
            p = p + 0.5 * config.step_size * dense_force(hamiltonian, s)
            s = s + config.step_size * hamiltonian.inverse_mass * p
            p = p + 0.5 * config.step_size * dense_force(hamiltonian, s)
        states.append(s)
    return rms_hat(s) @ params.readout.T, states


def dense_action(params: Params, states: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    """Of each block, the mean over positions of the metric length of the move of the chart point `A_q ŝ`, heads added up."""
    blocks = to_numpy(params.blocks)
    actions = []
    for index in range(config.blocks):
        move = rms_hat(states[index + 1]) - rms_hat(states[index])
        action = 0.0
        for h in range(config.heads):
            g = dense_metric(jax.tree.map(lambda x, index=index, h=h: x[index, h], blocks.metric))
            chart_move = move @ blocks.query[index, h].T
            action = action + np.sqrt(np.einsum("blm,mn,bln->bl", chart_move, g, chart_move))
        actions.append(action.mean())
    return np.array(actions)
