"""The network: embedding, scanned blocks, readout, cross-entropy."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from lior_jax.model import block, operators
from lior_jax.model.charts import see
from lior_jax.model.dropout import KEEP_ALL, Masks
from lior_jax.model.parameters import Params
from lior_jax.physics.numerics import Precision, correlate, masked, project, project_back, rms_normalize, rms_normalize_adjoint
from lior_jax.settings import ModelConfig


def embed(embedding: Array, tokens: Array, mask: Array | None = None) -> Array:
    """The point `E[token]` of every position, times an optional mask: `[B, L, d]`."""
    return masked(embedding[tokens], mask)


def embed_adjoint(embedding: Array, tokens: Array, cotangent: Array, mask: Array | None = None) -> Array:
    """Adjoint of `embed`: each token's row sums the cotangents of its positions."""
    return jnp.zeros_like(embedding).at[tokens].add(masked(cotangent, mask))


def readout(weights: Array, s: Array, precision: Precision) -> Array:
    """`logits = rms(s) W_outᵀ`: `[B, L, V]`."""
    return project(rms_normalize(s)[0], weights, precision)


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Cross-entropy in nats of every target `[B, L]`."""
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def readout_loss_and_adjoint(weights: Array, s: Array, targets: Array, precision: Precision) -> tuple[Array, Array, Array]:
    """Mean cross-entropy of the readout, and its adjoint.

    The force on the state is the target's point minus the Boltzmann mean of all points (docs/design.md section 2.7); the
    cotangent is its negative.

    Returns:
        The loss `[]`, and the cotangents of `weights` `[V, d]` and `s` `[B, L, d]`.
    """
    direction, inverse = rms_normalize(s)
    logits = project(direction, weights, precision)
    one_hot = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    c_logits = (jax.nn.softmax(logits) - one_hot) / targets.size
    c_direction = project_back(c_logits, weights, precision)
    c_weights = correlate(c_logits, direction, precision)
    loss = jnp.mean(cross_entropy(logits, targets))
    return loss, c_weights, rms_normalize_adjoint(direction, inverse, c_direction)


def run(params: Params, tokens: Array, config: ModelConfig, masks: Masks = KEEP_ALL) -> tuple[Array, block.Observation]:
    """The state after the last block, `[B, L, d]`, and the observations of each block, `[N, …]`."""
    s = embed(params.embedding, tokens, masks.embedding)
    (s, _), observed = _scan(operators.prepare(params, tokens.shape[1], config), s, jnp.zeros_like(s), config, masks)
    return s, observed


def _scan(stacked: operators.Operators, s: Array, p: Array, config: ModelConfig, masks: Masks = KEEP_ALL):
    def step(state, scanned):
        applied, own = scanned
        s, p = state
        return block.apply(applied, s, p, config, own)

    return lax.scan(step, (s, p), (stacked, masks.blocks))


def logits(params: Params, tokens: Array, config: ModelConfig) -> Array:
    """Unnormalised log probabilities of the token after each position.

    Args:
        params: from `init`.
        tokens: `[B, L]` integers below `config.vocab_size`.
        config: static.

    Returns:
        `[B, L, V]`.
    """
    s, _ = run(params, tokens, config)
    return readout(params.readout, s, config.precision)


def observe(params: Params, tokens: Array, config: ModelConfig) -> tuple[Array, Array]:
    """The logits, and each position's coordinates on the last block's manifolds: its whitened query points.

    Returns:
        `[B, L, V]`, and `[B, L, H, n + r]`, in which squared Euclidean distance is the learned metric of each head.
    """
    prepared = operators.prepare(params, tokens.shape[1], config)
    earlier, last = (jax.tree.map(lambda x, part=part: x[part], prepared) for part in (slice(-1), -1))
    s = embed(params.embedding, tokens)
    (s, p), _ = _scan(earlier, s, jnp.zeros_like(s), config)
    points = see(last, s, config).query
    (s, _), _ = block.apply(last, s, p, config)
    return readout(params.readout, s, config.precision), points


def token_losses(params: Params, tokens: Array, targets: Array, config: ModelConfig) -> Array:
    """Cross-entropy in nats of each of `targets` `[B, L]`, given `tokens` up to its position: `[B, L]`."""
    return cross_entropy(logits(params, tokens, config), targets)


def actions(params: Params, tokens: Array, config: ModelConfig) -> Array:
    """Mean LIoR action of each block's flow, summed over heads: `[N]`."""
    _, observed = run(params, tokens, config)
    return jnp.sum(observed.action, -1)


def loss(params: Params, tokens: Array, targets: Array, config: ModelConfig) -> Array:
    """Mean nats per target, `[]`; plain forward code, which a test oracle can differentiate."""
    return jnp.mean(token_losses(params, tokens, targets, config))
