"""The gradient of a relaxed network by the implicit function theorem, in float64: the oracle of equilibrium propagation.

Every block's state is the minimum of an energy written here, found to 1e-12; a Newton step from it, with the state and the
Hessian held constant, stays where it is and has the minimum's derivative by everything that the energy depends on,
`ds/dθ = −H⁻¹ ∂²E/∂s∂θ`. Nothing of `physics/relaxation.py` is used.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.stats import norm

from lior_jax.model import Params, block, network, operators
from lior_jax.model.dropout import KEEP_ALL, Masks
from lior_jax.physics.hamiltonian import Hamiltonian
from lior_jax.physics.potential.hopfield import Hopfield
from lior_jax.settings import Config


def energy(hamiltonian: Hamiltonian, s: Array, s_in: Array, push: Array, mask: Array | float = 1.0) -> Array:
    """Of one position, `[d]` each; `mask` `[M]` of the potential's units."""
    stretch = s - s_in - hamiltonian.inverse_mass * push
    own, s_hat = hamiltonian.potential, s / jnp.sqrt(jnp.mean(s * s) + 1.0)
    if isinstance(own, Hopfield):
        on_direction = -jax.nn.logsumexp(own.sharpness * own.patterns @ s_hat, b=mask) / own.sharpness
    else:
        z = own.features @ s_hat + own.bias
        on_direction = -jnp.sum(mask * z * norm.cdf(z) * (own.gates @ s_hat))
    return jnp.sum(stretch**2 / hamiltonian.inverse_mass) / 2 + own.curvature * jnp.sum(s * s) / 2 + on_direction


def minimum(hamiltonian: Hamiltonian, s_in: Array, push: Array, mask: Array) -> Array:
    """Of one position: plain descent into the basin, then Newton's method to rounding."""
    slope, bend = jax.grad(energy, argnums=1), jax.hessian(energy, argnums=1)
    start = s_in + hamiltonian.inverse_mass * push
    s = lax.fori_loop(0, 200, lambda _, s: s - 0.4 * hamiltonian.inverse_mass * slope(hamiltonian, s, s_in, push, mask), start)
    given = s_in, push, mask
    s = lax.fori_loop(0, 4, lambda _, s: s - jnp.linalg.solve(bend(hamiltonian, s, *given), slope(hamiltonian, s, *given)), s)
    s = lax.stop_gradient(s)
    held = lax.stop_gradient(bend(hamiltonian, s, *given))
    return s - jnp.linalg.solve(held, slope(hamiltonian, s, *given))


def states(
    params: Params, tokens: Array, config: Config, masks: Masks = KEEP_ALL
) -> list[tuple[Array, Array, operators.Operators]]:
    """Of every block: its input, its state at the minimum, and its operators."""
    made = operators.prepare(params, tokens.shape[1], config.model)
    s, found = network.embed(params.embedding, tokens, masks.embedding), []
    for index in range(config.model.blocks):
        own, kept = jax.tree.map(lambda x, index=index: x[index], (made, masks.blocks))
        push, _ = block.kick(own, s, config.model, kept)
        units = jnp.ones((*tokens.shape, config.model.flow.units)) if kept.units is None else kept.units
        over = jax.vmap(jax.vmap(minimum, (None, 0, 0, 0)), (None, 0, 0, 0))
        before, s = s, over(own.hamiltonian, s, push, units)
        found.append((before, s, own))
    return found


def cross_entropy(params: Params, s: Array, targets: Array) -> Array:
    logits = network.readout(params.readout, s, "float32")
    return jnp.mean(network.cross_entropy(logits, targets))


@partial(jax.jit, static_argnums=(3, 4))
def gradient(
    params: Params, tokens: Array, targets: Array, config: Config, cost=cross_entropy, masks: Masks = KEEP_ALL
) -> tuple[Array, Params]:
    """The cost at the minimum, with the weight of the actions in it, and its gradient; carried values are constant."""

    def total(learned: Params) -> Array:
        found = states(learned._replace(carried=params.carried), tokens, config, masks)
        actions = sum(jnp.mean(block.action(own, before, s, config.model), (0, 1)).sum() for before, s, own in found)
        return cost(learned, found[-1][1], targets) + config.learning.action_weight * actions

    return jax.value_and_grad(total)(params)
