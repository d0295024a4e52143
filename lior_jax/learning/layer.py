"""The blocks as a layer of another network: states in and out, with the Hamiltonian echo as the backward pass.

Embedding and readout parameters are unused; dropout and an action term in the cost are not supported.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from lior_jax.learning import echo
from lior_jax.learning.chunks import in_chunks
from lior_jax.model import block
from lior_jax.model.operators import prepare, prepare_adjoint
from lior_jax.model.parameters import Params
from lior_jax.settings import LearningConfig, ModelConfig


def apply(params: Params, s: Array, model: ModelConfig) -> Array:
    """States `[B, L, d]` after all blocks."""
    return _forward(params, s, model)[0][0]


def apply_adjoint(
    params: Params, s: Array, cotangent: Array, model: ModelConfig, learning: LearningConfig
) -> tuple[Params, Array]:
    """Cotangents of the parameters and of `s`, by an echo of every block (docs/design.md section 4).

    Args:
        params: from `model.init`.
        s: `[B, L, d]`, input states of the first block.
        cotangent: `[B, L, d]`, of the output states of the last one.
    """
    (s_out, p_out), (operators, stored) = _forward(params, s, model)

    def back(end: echo.PhasePoint, scanned):
        own, kept = scanned
        if kept.s_in is not None:
            end = end._replace(p=kept.p_out, c_p=jnp.zeros_like(end.p))
        run = partial(echo.echo_block, own, c_action=0.0, model=model, learning=learning)
        start, gradient, _ = in_chunks(run, learning.chunk, end, kept, None)
        return start, gradient

    end = echo.PhasePoint(s_out, p_out, cotangent, jnp.zeros_like(cotangent))
    start, c_operators = lax.scan(back, end, (operators, stored), reverse=True)
    zeros = jax.tree.map(jnp.zeros_like, params)
    return zeros._replace(blocks=prepare_adjoint(params, c_operators, model)), start.c_s


def _forward(params: Params, s: Array, model: ModelConfig):
    """States and momenta after all blocks, with the blocks' operators and the data that their echoes need."""
    operators = prepare(params, s.shape[1], model)

    def step(state: tuple[Array, Array], own):
        after, _ = block.apply(own, *state, model)
        return after, echo.kept(state[0], after[1], model)

    end, stored = lax.scan(step, (s, jnp.zeros_like(s)), operators)
    return end, (operators, stored)
