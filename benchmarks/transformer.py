"""A GPT-style transformer, the baseline that everyone knows: pre-norm, rotary positions, causal attention, GELU."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.traverse_util import path_aware_map
from jax import Array
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from lior_jax.physics.tiling import Tile, in_tiles

HEADS = 4


class Transformer(nn.Module):
    """Logits `[B, L, V]` of tokens `[B, L]`. `hidden` is the width of the MLPs, `tile` how many positions attend at a time."""

    vocab_size: int
    width: int
    layers: int
    hidden: int
    tile: int | None = None

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        x = nn.Embed(self.vocab_size, self.width, embedding_init=nn.initializers.normal(1.0))(tokens)
        for _ in range(self.layers):
            x = x + self._attention(nn.RMSNorm()(x))
            hidden = nn.gelu(self._dense(self.hidden)(nn.RMSNorm()(x)))
            x = x + self._dense(self.width, self._out_scale())(hidden)
        return self._dense(self.vocab_size)(nn.RMSNorm()(x))

    def _attention(self, x: Array) -> Array:
        q, k, v = jnp.split(self._dense(3 * self.width)(x).reshape(*x.shape[:-1], 3 * HEADS, -1), 3, axis=-2)
        mixed = attend(rotate(q), rotate(k), v, self.tile)
        return self._dense(self.width, self._out_scale())(mixed.reshape(x.shape))

    def _out_scale(self) -> float:
        """What is added to the residual stream starts smaller, the more is added (Radford et al. 2019)."""
        return 1 / (2 * self.layers) ** 0.5

    def _dense(self, features: int, scale: float = 1.0) -> nn.Dense:
        """Outputs have the variance of the inputs, times `scale²`."""
        return nn.Dense(features, use_bias=False, kernel_init=nn.initializers.variance_scaling(scale**2, "fan_in", "normal"))


def attend(q: Array, k: Array, v: Array, tile: int | None) -> Array:
    """Causal attention `[B, L, H, c]`, of all positions at once or of `tile` at a time, which are computed again on the way
    back (what flash attention does, as plain products), by the loops in which retrieval takes its own tiles."""
    if tile is None:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)

    def one_tile(tile: Tile) -> tuple[Array, None, None]:
        @jax.checkpoint
        def of(own, first, keys, values):
            seen = first + jnp.arange(tile.rows)[:, None] >= jnp.arange(tile.stop)[None]
            return jax.nn.dot_product_attention(own, keys, values, mask=seen[None, None])

        return of(tile.own(q, 1), tile.first, k[:, : tile.stop], v[:, : tile.stop]), None, None

    return in_tiles(one_tile, q.shape[1], tile)[0]


def muon(rest: optax.GradientTransformation, ratio: float, momentum: float) -> optax.GradientTransformation:
    """Muon's directions of the layers' kernels, at Adam's size as in `lior_jax.learning.optimizer`, those of queries, keys and
    values together as one matrix; `rest`, times `ratio`, for embedding, readout and norms."""

    def hidden(params):
        readout = f"Dense_{sum(name.startswith('Dense') for name in params['params']) - 1}"
        return path_aware_map(lambda path, x: path[-1] == "kernel" and path[-2] != readout, params)

    def dimensions(params):
        return jax.tree.map(lambda _: MuonDimensionNumbers(), params)

    sized = optax.stateless(lambda updates, _: jax.tree.map(lambda x: 0.2 * max(x.shape) ** 0.5 * x, updates))
    orthogonal = optax.chain(scale_by_muon(beta=momentum, weight_dimension_numbers=dimensions), sized)
    return optax.partition({True: orthogonal, False: optax.chain(rest, optax.scale(ratio))}, hidden)


class GPT(nn.Module):
    """nanoGPT's model: learned positions, LayerNorm, heads and products in `dtype`, attention by a fused implementation of
    `jax.nn.dot_product_attention` if one is named. Logits `[B, L, V]` of tokens `[B, L]`."""

    vocab_size: int
    context: int
    width: int = 384
    layers: int = 6
    heads: int = 6
    dtype: jnp.dtype = jnp.float32
    implementation: str | None = None

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        positions = nn.Embed(self.context, self.width, dtype=self.dtype)(jnp.arange(tokens.shape[1])[None])
        x = nn.Embed(self.vocab_size, self.width, dtype=self.dtype)(tokens) + positions
        for _ in range(self.layers):
            qkv = self._dense(3 * self.width)(self._norm()(x)).reshape(*x.shape[:-1], 3 * self.heads, -1)
            q, k, v = jnp.split(qkv, 3, axis=-2)
            mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=self.implementation)
            x = x + self._dense(self.width)(mixed.reshape(x.shape))
            x = x + self._dense(self.width)(nn.gelu(self._dense(4 * self.width)(self._norm()(x))))
        return self._dense(self.vocab_size)(self._norm()(x)).astype(jnp.float32)

    def _norm(self) -> nn.LayerNorm:
        return nn.LayerNorm(use_bias=False, dtype=self.dtype)

    def _dense(self, features: int) -> nn.Dense:
        return nn.Dense(features, use_bias=False, dtype=self.dtype)


def rotate(x: Array) -> Array:
    """Rotary positions (Su et al. 2021) of `[B, L, H, c]`: scalar products depend on the distance alone."""
    half = x.shape[-1] // 2
    angle = jnp.outer(jnp.arange(x.shape[1]), 10_000.0 ** (-jnp.arange(half) / half))
    cos, sin = (f(angle)[None, :, None] for f in (jnp.cos, jnp.sin))
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def of_size(parameters: int, vocab_size: int, layers: int) -> Transformer:
    """The widest transformer of so many parameters whose MLPs are at least 4 times as wide; their width fills up the rest."""
    width = 2 * HEADS  # rotary positions turn pairs of channels
    while _fit(parameters, vocab_size, layers, width + 2 * HEADS).hidden >= 4 * (width + 2 * HEADS):
        width += 2 * HEADS
    return _fit(parameters, vocab_size, layers, width)


def _fit(parameters: int, vocab_size: int, layers: int, width: int) -> Transformer:
    others = 2 * vocab_size * width + layers * (4 * width**2 + 2 * width) + width
    return Transformer(vocab_size, width, layers, max(1, round((parameters - others) / (2 * width * layers))))
