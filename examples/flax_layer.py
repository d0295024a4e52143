"""A Hamiltonian block as a layer of a flax network: your own layers by back-propagation, the block by its echo.

python examples/flax_layer.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lior_jax import data, model
from lior_jax.config import parse
from lior_jax.learning import layer

CONFIG = parse("model: {context: 32, width: 32, blocks: 1, heads: 2, vocab_size: 2, flow: {units: 64}}", "this example")
SHAPE, WINDOWS = CONFIG.model, (8, CONFIG.model.context)


def plain(params, s):
    return layer.apply(params._replace(carried=jax.lax.stop_gradient(params.carried)), s, SHAPE)


echoed = jax.custom_vjp(lambda params, s: layer.apply(params, s, SHAPE))
echoed.defvjp(
    lambda params, s: (layer.apply(params, s, SHAPE), (params, s)),
    lambda saved, cotangent: layer.apply_adjoint(*saved, cotangent, SHAPE, CONFIG.learning),
)


class Network(nnx.Module):
    def __init__(self, vocab_size, rngs):
        self.embed = nnx.Embed(vocab_size, SHAPE.width, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)
        leaves, self.structure = jax.tree.flatten(model.init(rngs.params(), SHAPE))
        self.block = nnx.List(map(nnx.Param, leaves))
        self.readout = nnx.Linear(SHAPE.width, vocab_size, rngs=rngs)

    def loss(self, block, tokens, targets):
        params = jax.tree.unflatten(self.structure, [leaf.get_value() for leaf in self.block])
        s = block(params, self.embed(tokens))
        logits = self.readout(s / jnp.sqrt(jnp.mean(s * s, -1, keepdims=True) + 1e-6))
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


loss_and_gradient = nnx.jit(nnx.value_and_grad(Network.loss), static_argnums=1)
corpus = data.load(CONFIG)
network = Network(corpus.tokenizer.vocab_size, nnx.Rngs(0))
optimizer = nnx.Optimizer(network, optax.adam(1e-2), wrt=nnx.Param)
for step in range(101):
    batch = data.batch_at(corpus.train, 0, step, *WINDOWS)
    loss, gradient = loss_and_gradient(network, echoed, *batch)
    if step % 50 == 0:
        by_echo, exact = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
            for tree in (gradient, loss_and_gradient(network, plain, *batch)[1])
        )
        error = np.linalg.norm(by_echo - exact) / np.linalg.norm(exact)
        print(f"step {step:3}   {loss:.3f} nats/char   relative error of the gradient with the echo {error:.0e}")
    optimizer.update(network, gradient)
