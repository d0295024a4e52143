"""A potential of one's own, defined outside the package and trained by the Hamiltonian echo.

    V(s) = ½ κ ‖s‖² − Σ_m log cosh(w_m·ŝ),   ŝ = s / rms(s)

is the free energy of a restricted Boltzmann machine. The echo needs its force and its contrast.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lior_jax import config, data, registry
from lior_jax.physics.numerics import RMS_EPSILON, masked, project, project_back, rms_normalize
from lior_jax.physics.pair import Pair, pair
from lior_jax.physics.potential import Potential
from lior_jax.physics.potential.direction import directions, state_force, well
from lior_jax.training.step import initial_state, train_step

KAPPA = 0.01


class Boltzmann(NamedTuple):
    weights: jax.Array  # [M, d]
    MATRICES = ("weights",)


def init(key, width, units, scale):
    return Boltzmann(scale * width**-0.5 * jax.random.normal(key, (units, width)))


def energy(own, s, softness=RMS_EPSILON, mask=None):
    z = project(rms_normalize(s, softness)[0], own.weights, "float32")
    return well(KAPPA, s) - jnp.sum(masked(jnp.log(jnp.cosh(z)), mask), -1)


def force(own, s, precision="float32", softness=RMS_EPSILON, mask=None):
    s_hat, inverse = rms_normalize(s, softness)
    hidden = masked(jnp.tanh(project(s_hat, own.weights, precision)), mask)
    return state_force(KAPPA, s, s_hat, inverse, project_back(hidden, own.weights, precision))


def contrast(own, s, span, precision="float32", softness=RMS_EPSILON, mask=None):
    nudged = directions(s, span, softness)
    z = Pair(*(project(x, own.weights, precision) for x in nudged.pair))
    hidden = pair(*(masked(jnp.tanh(end), mask) for end in z.ends(span)), span)
    on_direction = Pair(*(project_back(x, own.weights, precision) for x in hidden))
    return nudged.forces(KAPPA, on_direction, span), Boltzmann(-nudged.correlate(hidden, precision))


registry.POTENTIALS.register("boltzmann", Potential(init, energy, force, contrast))

if __name__ == "__main__":
    settings = config.parse("model: {context: 32, width: 48, blocks: 2, flow: {potential: boltzmann}}", "the example")
    corpus = data.load(settings)  # English prose of Python's own help
    state = initial_state(jax.random.key(0), settings := data.with_vocabulary(settings, corpus))
    for step in range(60):
        state, report = train_step(state, data.batch_at(corpus.train, 0, step, 16, 32), settings)
        if step % 10 == 9:
            print(f"step {step + 1:3}  loss {report.info.loss:.3f}  reversibility {report.info.reversibility:.0e}")
