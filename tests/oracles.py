"""Independent oracles: automatic differentiation, float64, and plain numpy forms written from docs/design.md.

Nothing here calls the hand-written adjoints. The numpy forms, those of the whole network in `tests/dense.py` among them,
share with `lior_jax` only the parameter structures, the epsilons and the table of rotor planes.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import Array
from jax.extend.core import jaxprs_in_params
from scipy.special import logsumexp, ndtr, softmax

from lior_jax import config as configuration
from lior_jax import learning, model
from lior_jax.model import Params, dropout, network
from lior_jax.model.dropout import KEEP_ALL, Masks
from lior_jax.model.parameters import Carried
from lior_jax.physics.action import ActionState
from lior_jax.physics.frames import Derived
from lior_jax.physics.geometry import Metric
from lior_jax.physics.hamiltonian import Hamiltonian
from lior_jax.physics.numerics import RMS_EPSILON
from lior_jax.physics.potential import Potential
from lior_jax.physics.potential.gated import GATED, Gated
from lior_jax.physics.potential.hopfield import HOPFIELD, Hopfield
from lior_jax.physics.rotor_planes import max_rotor_layers, rotor_planes
from lior_jax.settings import Config, LearningConfig, ModelConfig

Batch = tuple[Array, Array]

SMALL: dict[str, Any] = {
    "vocab_size": 11,
    "context": 16,
    "width": 12,
    "heads": 2,
    "geometry__chart_dim": 5,
    "geometry__rank": 2,
    "geometry__rotor_layers": 2,
    "convolution__taps": 3,
    "flow__units": 10,
    "blocks": 2,
    # Every part is switched on by name.
    "geometry__frame": "rotor",
    "convolution__long": False,
    "field__evolution": "off",
}


def base_metric(n: int) -> tuple[tuple[float, ...], ...]:
    """A base metric `g₀ = Bᵀ B` for charts of `n` dimensions. `B` has few binary digits, so that it is exact in float32."""
    b = np.diag(np.resize([1.5, 0.75, 1.25, 1.0], n)) + np.diag(np.resize([0.25, -0.5], n - 1), 1)
    return tuple(map(tuple, (b.T @ b).tolist()))


PRODUCTS = ("tensor", "wedge", "spinor")

# Every part of the physics by itself, as changes of `SMALL`.
PARTS: dict[str, dict[str, Any]] = {
    "base_metric": {"geometry__base_metric": base_metric(5)},
    "block_rot": {"geometry__metric": "block_rot", "geometry__chart_dim": 4},
    "blocks_of_4": {"geometry__metric": "block_rot", "geometry__chart_dim": 8, "geometry__block": 4},
    "derived": {"geometry__frame": "derived"},
    "derived_blocks": {"geometry__frame": "derived", "geometry__metric": "block_rot", "geometry__chart_dim": 4},
    "learned_lowrank": {"geometry__frame": "learned_lowrank"},
    "constitutive": {"geometry__resilience": "constitutive"},
    "curvature": {"geometry__resilience": "curvature", "geometry__curvature_terms": 3},
    "long_convolution": {"convolution__long": True},
    "no_prior": {"retrieval__lag_prior": False},
    "adaptive_order": {"retrieval__adaptive_order": True, "retrieval__fractional_order": 0.7},
    "tensor": {"retrieval__products": ("tensor",)},
    "wedge": {"retrieval__products": ("wedge",)},
    "spinor": {"retrieval__products": ("spinor",)},
    "field": {"field__evolution": "kernel"},
    "master": {"field__evolution": "master"},
    "project": {"field__evolution": "kernel", "field__project": True},
    "hopfield": {"flow__potential": "hopfield"},
    "yoshida4": {"flow__integrator": "yoshida4", "flow__step_size": 0.8},
}

# All parts at once, twice: laws of resilience, frames and ways with the momentum exclude each other.
_EVERYWHERE: dict[str, Any] = {
    "convolution__long": True,
    "retrieval__adaptive_order": True,
    "retrieval__products": PRODUCTS,
    "field__evolution": "master",
    "field__project": True,
}
EVERYTHING: dict[str, dict[str, Any]] = {
    "rotor_curvature_carry": _EVERYWHERE
    | {"geometry__base_metric": base_metric(5), "geometry__resilience": "curvature", "flow__carry_momentum": True}
    | {"flow__steps": 2, "flow__step_size": 0.6},
    "derived_blocks_constitutive": _EVERYWHERE
    | {"geometry__base_metric": base_metric(4), "geometry__resilience": "constitutive", "geometry__chart_dim": 4}
    | {"geometry__frame": "derived", "geometry__metric": "block_rot"},
}


def relaxing(changes: dict[str, Any]) -> dict[str, Any]:
    """The changes without what a relaxation does not have."""
    kept = "flow__units", "flow__potential"
    return {key: value for key, value in changes.items() if not key.startswith("flow__") or key in kept}


# One cache of compiled programs for all tests: the same configuration and shapes compile once.
_estimate = jax.jit(learning.estimate, static_argnums=(2, 3))
logits = jax.jit(model.logits, static_argnames="config")


def autodiff(params: Params, tokens: Array, targets: Array, config: Config, masks: Masks = KEEP_ALL) -> tuple[Array, Params]:
    """The loss, and the gradient of the cost: the loss, plus the action's weight times the sum of the blocks' actions.

    What is carried is treated as constant: it is not learned, and its part of the gradient is zero.
    """
    return _autodiff(params, tokens, targets, config.model, config.learning.action_weight, masks)


@partial(jax.jit, static_argnums=(3, 4))
def _autodiff(
    params: Params, tokens: Array, targets: Array, config: ModelConfig, weight: float, masks: Masks
) -> tuple[Array, Params]:
    def cost(learned: Params) -> tuple[Array, Array]:
        # `model.loss` and `model.actions`, from one run: the oracle compiles in half the time.
        s, observed = network.run(learned._replace(carried=params.carried), tokens, config, masks)
        loss = jnp.mean(network.cross_entropy(network.readout(learned.readout, s, config.precision), targets))
        return (loss + weight * jnp.sum(observed.action), loss) if weight else (loss, loss)

    (_, loss), gradient = jax.value_and_grad(cost, has_aux=True)(params)
    return loss, gradient


def dropout_masks(key: Array, tokens: Array, config: Config) -> Masks:
    """All masks of a step, of every sequence at once."""
    rate, length = config.learning.dropout, tokens.shape[1]
    keys = dropout.keys(rate, key, config.model.blocks, len(tokens))
    blocks = [dropout.block_masks(own, length, rate, config.model) for own in keys.blocks]
    return Masks(
        dropout.embedding_mask(keys.embedding, length, rate, config.model), jax.tree.map(lambda *x: jnp.stack(x), *blocks)
    )


def small_config(learning: dict[str, Any] | None = None, **changes: Any) -> Config:
    """A configuration that compiles fast; `changes` go to the model."""
    return Config(model=model_config(**(SMALL | changes)), learning=LearningConfig(**(learning or {})))


def model_config(**values: Any) -> ModelConfig:
    """The model's section, with `group__key` for a key of one of its groups."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *group, key = name.split("__")
        (nested.setdefault(group[0], {}) if group else nested)[key] = value
    return ModelConfig.model_validate(nested)


TINY = Config(  # which fills in the model's dynamics
    model=model_config(
        vocab_size=7,
        context=6,
        width=8,
        blocks=2,
        heads=2,
        geometry__chart_dim=4,
        geometry__rotor_layers=1,
        geometry__rank=1,
        convolution__taps=2,
        flow__units=8,
    )
).model
"""For tests of what is done with a model, whatever it is."""


def changed(config: ModelConfig, **changes: Any) -> ModelConfig:
    """A model's section with some values changed, named as in `model_config`."""
    flat = {key.replace(".", "__"): value for key, value in configuration.flat(config).items()}
    return model_config(**(flat | {"dynamics": config.dynamics} | changes))


def estimate(params: Params, batch: Batch, config: Config, key: Array | None = None) -> tuple[Params, learning.Info]:
    """`learning.estimate` for a whole configuration."""
    return _estimate(params, batch, config.model, config.learning, key)


def cases(values: Mapping[str, Any], *slow: str) -> list[Any]:
    """Parameters of a test by name, with the mark of the slow ones."""
    assert set(slow) <= set(values)
    return [pytest.param(value, id=name, marks=[pytest.mark.slow] if name in slow else []) for name, value in values.items()]


def random_batch(config: Config, batch: int = 3, length: int = 7, seed: int = 0) -> Batch:
    tokens = np.random.default_rng(seed).integers(0, config.model.vocab_size, (2, batch, length), dtype=np.int32)
    return jnp.asarray(tokens[0]), jnp.asarray(tokens[1])


def initial(config: ModelConfig, seed: int = 0) -> Params:
    # rbg keys: threefry compiles for seconds at every new shape.
    return _initial(jax.random.key(seed, impl="rbg"), config)


_initial = jax.jit(model.init, static_argnums=1)
"""One program, which is found again, and not dozens."""


def trained_looking(config: ModelConfig, seed: int = 0, spread: float = 0.2) -> Params:
    """Initial parameters with every leaf disturbed, so that no gradient is zero by symmetry, and a readout large enough for
    a loss that is not flat; carried as after some steps. float32, in float64 mode too."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(False):
        # By numpy, which compiles nothing.
        params = jax.tree.map(lambda x: np.asarray(x) + spread * rng.standard_normal(x.shape), initial(config, seed))
        params = params._replace(readout=params.readout + 0.4 * rng.standard_normal(params.readout.shape))
        params = jax.tree.map(lambda x: jnp.asarray(x.astype(np.float32)), params)
        return params._replace(carried=random_carried(config, seed))


def random_params(config: ModelConfig, seed: int = 0, scale: float = 1.0) -> Params:
    """Normal leaves of the right shapes: nothing is compiled, for tests of maps that hold for any parameters."""
    params = random_like(jax.eval_shape(lambda: initial(config)), seed)
    return jax.tree.map(lambda x: scale * x, params)._replace(carried=random_carried(config, seed))


@st.composite
def model_changes(draw) -> dict[str, Any]:
    """Changes of `SMALL`: all parts, laws and frames in all shapes."""
    heads, n = draw(st.integers(1, 3)), draw(st.integers(2, 6))
    metric = draw(st.sampled_from(["diag_rot", "block_rot"] if n % 2 == 0 else ["diag_rot"]))
    frame = draw(st.sampled_from(["rotor", "derived"] + ["learned_lowrank"] * (metric == "diag_rot")))
    lag_prior, evolution = draw(st.booleans()), draw(st.sampled_from(["kernel", "master", "off"]))
    return {
        "heads": heads,
        "width": heads * draw(st.integers(2, 4)),
        "geometry__chart_dim": n,
        "geometry__metric": metric,
        "geometry__frame": frame,
        "geometry__block": n if n == 4 and draw(st.booleans()) else 2,
        "geometry__rank": draw(st.integers(1 if frame == "learned_lowrank" else 0, 3)),
        "geometry__base_metric": base_metric(n) if draw(st.booleans()) else None,
        "geometry__rotor_layers": draw(st.integers(0, min(max_rotor_layers(n), 3))),
        "geometry__resilience": draw(st.sampled_from(["unit", "constitutive", "curvature"])),
        "geometry__curvature_terms": draw(st.integers(1, 3)),
        "convolution__taps": draw(st.integers(1, 9)),
        "convolution__long": draw(st.booleans()),
        "retrieval__lag_prior": lag_prior,
        "retrieval__adaptive_order": lag_prior and draw(st.booleans()),
        "retrieval__products": tuple(draw(st.lists(st.sampled_from(PRODUCTS), unique=True))),
        "field__evolution": evolution,
        "field__project": evolution != "off" and draw(st.booleans()),
        "flow__potential": draw(st.sampled_from(sorted(POTENTIALS))),
        "flow__units": draw(st.integers(1, 9)),
        "blocks": draw(st.integers(1, 3)),
    }


def random_carried(config: ModelConfig, seed: int = 0) -> Carried:
    """What may have been carried on for a while: axes and covariance that have nothing to do with each other, both
    block-diagonal where the frame is; orders in (0, 1). float32."""
    rng, shape, n = np.random.default_rng(seed), (config.blocks, config.heads), config.geometry.chart_dim
    frame = action = None
    if config.geometry.frame == "derived":
        size = config.geometry.block if config.geometry.metric == "block_rot" else n
        axes, covariance = np.zeros((2, *shape, n, n))
        for start in range(0, n, size):
            own = (..., slice(start, start + size), slice(start, start + size))
            axes[own] = np.linalg.qr(rng.standard_normal((*shape, size, size)))[0]
            root = rng.standard_normal((*shape, size, size))
            covariance[own] = root @ np.swapaxes(root, -1, -2) / size
        frame = Derived(jnp.asarray(covariance, jnp.float32), jnp.asarray(axes, jnp.float32))
    if config.retrieval.adaptive_order:
        ranges = {"integral": (20.0, 60.0), "elapsed": (10.0, 30.0), "order": (0.1, 0.9)}
        action = ActionState(**{name: jnp.asarray(rng.uniform(*ends, shape), jnp.float32) for name, ends in ranges.items()})
    return Carried(frame, action)


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr, those inside of loops and calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


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


POTENTIALS: dict[str, Potential] = {"gated": GATED, "hopfield": HOPFIELD}


def random_hamiltonian(d: int, units: int, seed: int = 0, potential: str = "gated") -> Hamiltonian:
    """What is applied, with nothing special about it."""
    rng = np.random.default_rng(seed)
    if potential == "hopfield":
        own = Hopfield(normal(rng, units, d), jnp.asarray(0.8), jnp.asarray(0.3))
    else:
        features, gates = normal(rng, 2, units, d, scale=d**-0.5)
        own = Gated(features, gates, normal(rng, units, scale=0.5), jnp.asarray(0.3))
    return Hamiltonian(own, jnp.asarray(rng.uniform(0.5, 1.5, d)))


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
    """Relative error of every leaf, in its own norm, below `tol`, or no larger than the rounding of the whole tree."""
    found = agreement(actual, expected)
    wrong = {name: x for name, x in found.items() if not (x.relative_error <= tol or x.relative_error * x.share <= 1e-14)}
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


def rms_hat(x, epsilon=RMS_EPSILON):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon)


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


def dense_potential(
    potential: Gated | Hopfield, s: np.ndarray, epsilon: float = RMS_EPSILON, mask: np.ndarray | float = 1.0
) -> np.ndarray:
    """`V(s)` of every point `[..., d]`; `mask` `[..., M]` multiplies every unit's term of the sum."""
    own, s_hat = to_numpy(potential), rms_hat(s, epsilon)
    well = 0.5 * own.curvature * np.sum(s * s, -1)
    if isinstance(potential, Hopfield):
        terms = own.sharpness * s_hat @ own.patterns.T
        return well - logsumexp(terms, -1, np.broadcast_to(mask, terms.shape)) / own.sharpness
    return well - np.sum(mask * gelu(s_hat @ own.features.T + own.bias) * (s_hat @ own.gates.T), -1)


def dense_force(potential: Gated | Hopfield, s: np.ndarray, epsilon: float = RMS_EPSILON) -> np.ndarray:
    """`−∂V/∂s`, through the matrix `∂ŝ/∂s` of every point."""
    own, s_hat = to_numpy(potential), rms_hat(s, epsilon)
    if isinstance(potential, Hopfield):
        on_direction = softmax(own.sharpness * s_hat @ own.patterns.T, -1) @ own.patterns
    else:
        z, gate = s_hat @ own.features.T + own.bias, s_hat @ own.gates.T
        on_direction = (gelu_slope(z) * gate) @ own.features + gelu(z) @ own.gates
    d = s.shape[-1]
    jacobian = np.eye(d) - s_hat[..., :, None] * s_hat[..., None, :] / d
    jacobian = jacobian / np.sqrt(np.mean(s * s, axis=-1) + epsilon)[..., None, None]
    return np.einsum("...ij,...i->...j", jacobian, on_direction) - own.curvature * s
