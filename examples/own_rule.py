"""A learning rule of one's own: weight perturbation, which uses the loss only.

All parameters are moved a little along a random direction and against it; the difference of the two losses, divided by the
distance, is the slope along that direction, and the slope times the direction is an unbiased estimate of the gradient (Spall
1992). It is far noisier than the echo, as the losses show.

    python examples/own_rule.py
"""

import jax
import jax.numpy as jnp
import optax

from lior_jax import config, learning, model
from lior_jax.registry import RULES, Rule

SIZE = 1e-3


def estimate(params, batch, shapes, settings, key):
    """The estimate `(gradient, info)` of a learning rule."""
    learned = params._replace(carried=None)
    keys = iter(jax.random.split(key, len(jax.tree.leaves(learned))))
    direction = jax.tree.map(lambda x: jax.random.rademacher(next(keys), x.shape, x.dtype), learned)

    def loss(sign):
        moved = jax.tree.map(lambda x, v: x + sign * SIZE * v, learned, direction)
        return model.loss(moved._replace(carried=params.carried), *batch, shapes)

    plus, minus = loss(1), loss(-1)
    slope = (plus - minus) / (2 * SIZE)
    gradient = jax.tree.map(lambda v: slope * v, direction)
    zero, none = jnp.zeros(()), jnp.zeros(shapes.blocks)
    norm = optax.tree.norm(gradient)
    info = learning.Info((plus + minus) / 2, zero, none, none, norm, none, params.carried)
    return gradient._replace(carried=jax.tree.map(jnp.zeros_like, params.carried)), info


RULES.register("perturbation", Rule("perturbation", "weight perturbation", "symplectic", 1.0, estimate))

if __name__ == "__main__":
    text = "the quick brown fox jumps over the lazy dog. " * 40
    tokens = jnp.array([sorted(set(text)).index(character) for character in text])
    starts = jnp.arange(16)[:, None] * 97 + jnp.arange(33)[None]
    batch = tokens[starts][:, :-1], tokens[starts][:, 1:]
    for rule, rate in (("echo", 3e-3), ("perturbation", 1e-3)):
        chosen = config.parse("model: {vocab_size: 28, width: 32, context: 32, blocks: 1}", "here", [f"learning.rule={rule}"])
        step = jax.jit(learning.estimate, static_argnums=(2, 3))
        params, optimizer = model.init(jax.random.key(0), chosen.model), optax.adam(rate)
        state = optimizer.init(params)
        for index in range(81):
            gradient, info = step(params, batch, chosen.model, chosen.learning, jax.random.key(index))
            updates, state = optimizer.update(gradient, state)
            params = optax.apply_updates(params, updates)._replace(carried=info.carried)
            if index % 40 == 0:
                print(f"{RULES[rule].title:20} step {index:4}   loss {info.loss:.3f}")
