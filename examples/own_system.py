"""A system other than a language model, learned by its echo: a chain of pendulums on springs, fitted to a trajectory.

H(s, p) = Σ_i [g l_i (1 − cos s_i) + p_i² / 2 l_i²] + ½ Σ_i k_i (s_{i+1} − s_i)²,   θ = lengths l and couplings k
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lior_jax.learning import echo_gradient, separable_system
from lior_jax.physics.flow import flow
from lior_jax.physics.integrators import VELOCITY_VERLET, schedule

jax.config.update("jax_enable_x64", True)
GRAVITY, TIMES = 9.81, schedule(VELOCITY_VERLET, steps=60, step_size=0.05)
START = jnp.array([0.9, -0.4, 0.0, 0.6, -1.1]), jnp.zeros(5)


def chain(theta):
    def force(theta, s):
        pull = theta["coupling"] * jnp.diff(s)
        return -GRAVITY * theta["length"] * jnp.sin(s) + jnp.pad(pull, (0, 1)) - jnp.pad(pull, (1, 0))

    def velocity(theta, p):
        return p / theta["length"] ** 2

    def by_potential(theta, s):
        return {"length": GRAVITY * (1 - jnp.cos(s)), "coupling": 0.5 * jnp.diff(s) ** 2}

    def by_kinetic(theta, p):
        return {"length": -(p**2) / theta["length"] ** 3, "coupling": jnp.zeros_like(theta["coupling"])}

    return separable_system(theta, force, velocity, by_potential, by_kinetic)


def miss(before, after, seen):
    """Half the squared distance from the trajectory at one time, and what it pulls with."""
    return 0.5 * jnp.sum((after - seen) ** 2), (jnp.zeros_like(before), after - seen)


def by_tick(state, _):
    end = flow(chain(TRUTH), *state, schedule(VELOCITY_VERLET, 1, 0.05))[:2]
    return end, end[0]


TRUTH = {"length": jnp.array([1.0, 0.8, 1.2, 0.9, 1.1]), "coupling": jnp.array([2.0, 1.0, 3.0, 1.5])}
SEEN = jax.lax.scan(by_tick, START, length=60)[1]
by_echo = jax.jit(lambda theta: echo_gradient(chain(theta), *START, TIMES, path_cost=miss, along=(SEEN,), nudge_size=1e-4))
exact = jax.jit(jax.grad(lambda theta: flow(chain(theta), *START, TIMES, lambda *at: miss(*at)[0], (SEEN,))[2]))
theta, optimizer = {"length": jnp.full(5, 1.05), "coupling": jnp.full(4, 1.7)}, optax.adam(0.05)
state = optimizer.init(theta)
for step in range(401):
    found = by_echo(theta)
    if step % 50 == 0:
        error = jax.tree.map(lambda x, y: np.linalg.norm(x - y) / np.linalg.norm(y), found.gradient, exact(theta))
        lengths = np.round(theta["length"], 2)
        print(f"step {step:3}   loss {found.cost:.6f}   lengths {lengths}   relative error {max(error.values()):.0e}")
    updates, state = optimizer.update(found.gradient, state)
    theta = optax.apply_updates(theta, updates)
