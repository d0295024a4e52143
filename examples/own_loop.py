"""A training loop of one's own: batches, the echo's estimate, any optax optimiser.

python examples/own_loop.py
"""

import jax
import optax

from lior_jax import config, data, learning, model

TEXT = "".join(f"{i * i % 97} is {i % 7} and {i % 5}, " for i in range(2000))
SETTINGS = config.parse("model: {context: 32, width: 32, blocks: 2, heads: 2, flow: {units: 64}}", "here")


def main() -> None:
    alphabet = sorted(set(TEXT))
    tokens = jax.numpy.array([alphabet.index(character) for character in TEXT], "int32")
    shapes = config.replace(SETTINGS, "model", vocab_size=len(alphabet)).model
    params = model.init(jax.random.key(0), shapes)
    optimizer = optax.adamw(5e-3)

    @jax.jit
    def step(params, state, batch):
        gradient, info = learning.estimate(params, batch, shapes, SETTINGS.learning)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)._replace(carried=info.carried)
        return params, state, info

    state = optimizer.init(params)
    for count in range(60):
        params, state, info = step(params, state, data.batch_at(tokens, 0, count, 8, shapes.context))
        if count % 20 == 19:
            print(f"step {count + 1}: loss {info.loss:.3f}, reversibility {info.reversibility.max():.1e}")


if __name__ == "__main__":
    main()
