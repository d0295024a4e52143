"""Score terms of a model's retrieval: initial parameters, and the terms prepared from them.

A new term is a class (`physics.scores.ScoreTerm`), a `Recipe`, and an entry in `registry.SCORE_TERMS`, after which
`model.retrieval.products` can name it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lior_jax.physics import action, kernel
from lior_jax.physics.action import ActionState
from lior_jax.physics.kernel import Kernel
from lior_jax.physics.numerics import softplus_inverse
from lior_jax.physics.products import Spinor, Tensor, Wedge, two_form, two_form_adjoint
from lior_jax.physics.scores import LagPrior, ScoreTerm
from lior_jax.registry import SCORE_TERMS
from lior_jax.settings import ModelConfig

Normal = Callable[..., Array]
"""`normal(*shape, scale)` draws from the next key."""


class Recipe(NamedTuple):
    """How a score term gets from the configuration to retrieval, for the heads of one block."""

    init: Callable[[ModelConfig, Normal], Any]
    """Raw parameters."""
    prepare: Callable[[Any, ActionState | None, int, ModelConfig], ScoreTerm]
    """The term, from raw parameters, the carried action if any, and the length of the sequences."""
    prepare_adjoint: Callable[[Any, ActionState | None, Any, ModelConfig], Any]
    """Cotangent of the raw parameters, for a cotangent of the term; the carried action is treated as constant."""


def init(config: ModelConfig, normal: Normal) -> dict[str, Any]:
    """Raw parameters of a block's terms."""
    return {name: SCORE_TERMS[name].init(config, normal) for name in config.retrieval.terms}


def prepare(raw: dict[str, Any], state: ActionState | None, length: int, config: ModelConfig) -> tuple[ScoreTerm, ...]:
    """The terms passed to retrieval, for all blocks `[N, …]`."""

    def one(name: str) -> ScoreTerm:
        return jax.vmap(partial(SCORE_TERMS[name].prepare, length=length, config=config))(raw[name], state)

    return tuple(one(name) for name in config.retrieval.terms)


def prepare_adjoint(
    raw: dict[str, Any], state: ActionState | None, cotangent: tuple[ScoreTerm, ...], config: ModelConfig
) -> dict[str, Any]:
    """Adjoint of `prepare` with respect to the raw parameters."""

    def one(name: str, of_term: ScoreTerm) -> Any:
        return jax.vmap(partial(SCORE_TERMS[name].prepare_adjoint, config=config))(raw[name], state, of_term)

    return {name: one(name, of_term) for name, of_term in zip(config.retrieval.terms, cotangent, strict=True)}


# --- the lag prior ---------------------------------------------------------------------------------------------------


def initial_kernel(config: ModelConfig, amplitude: tuple[float, float, float], order: float) -> Kernel:
    """LIoR kernels of the heads, with memory lengths from about two positions to about the whole context."""
    heads = config.heads
    reach = np.geomspace(0.5, 1 / config.context, heads)
    return Kernel(
        amplitude=jnp.tile(jnp.array(amplitude), (heads, 1)),
        rate=jnp.asarray(softplus_inverse(np.stack([4 * reach, reach, reach], -1)), jnp.float32),
        order=jnp.full(heads, np.log(order / (1 - order)), jnp.float32),
        frequency=jnp.asarray(2 * np.pi * reach, jnp.float32),
        phase=jnp.zeros(heads),
    )


def _init_lag_prior(config: ModelConfig, normal: Normal) -> Kernel:
    return initial_kernel(config, amplitude=(-3.0, 0.0, -3.0), order=0.1)


def _prepare_lag_prior(raw: Kernel, state: ActionState | None, length: int, config: ModelConfig) -> LagPrior:
    return LagPrior(kernel.log_prior(raw, _shift(raw, state), length))


def _prepare_lag_prior_adjoint(raw: Kernel, state: ActionState | None, cotangent: LagPrior, config: ModelConfig) -> Kernel:
    return kernel.log_prior_adjoint(raw, _shift(raw, state), cotangent.log_prior)


LAG_PRIOR = Recipe(_init_lag_prior, _prepare_lag_prior, _prepare_lag_prior_adjoint)


def _shift(raw: Kernel, state: ActionState | None) -> Array:
    """The shift of the raw order by the carried action."""
    return jnp.zeros_like(raw.order) if state is None else action.prior_shift(state)


# --- geometric products ----------------------------------------------------------------------------------------------


def products_scale(config: ModelConfig) -> float:
    """Divisor of products of `m`-dimensional points, `sqrt(m)`: they grow so if the points have no common direction."""
    return float(np.sqrt(config.geometry.whitened_dim))


def _init_gate(term: type[Tensor] | type[Spinor], config: ModelConfig, normal: Normal) -> Tensor | Spinor:
    """The gate starts at zero."""
    return term(jnp.zeros(config.heads))


def _init_wedge(config: ModelConfig, normal: Normal) -> Wedge:
    m = config.geometry.whitened_dim
    return Wedge(jnp.zeros(config.heads), normal(config.heads, m, m, scale=0.1 / m))


def _scaled(raw: Any, config: ModelConfig) -> Any:
    return jax.tree.map(lambda x: x / products_scale(config), raw)


def _prepare_gate(raw: Any, state: ActionState | None, length: int, config: ModelConfig) -> Any:
    return _scaled(raw, config)


def _prepare_gate_adjoint(raw: Any, state: ActionState | None, cotangent: Any, config: ModelConfig) -> Any:
    return _scaled(cotangent, config)


def _prepare_wedge(raw: Wedge, state: ActionState | None, length: int, config: ModelConfig) -> Wedge:
    scaled = _scaled(raw, config)
    return scaled._replace(form=two_form(scaled.form))


def _prepare_wedge_adjoint(raw: Wedge, state: ActionState | None, cotangent: Wedge, config: ModelConfig) -> Wedge:
    return _scaled(cotangent._replace(form=two_form_adjoint(cotangent.form)), config)


TENSOR = Recipe(partial(_init_gate, Tensor), _prepare_gate, _prepare_gate_adjoint)
WEDGE = Recipe(_init_wedge, _prepare_wedge, _prepare_wedge_adjoint)
SPINOR = Recipe(partial(_init_gate, Spinor), _prepare_gate, _prepare_gate_adjoint)
