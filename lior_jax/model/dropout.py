"""Dropout (Srivastava et al. 2014): masks of zeros and `1 / (1 − rate)`, independent per position, from a key per sequence.

Masks multiply the channels of the embedded states, and in every block the channels of the kick and the units of the potential.
A block's masks are constant along its flow (as across time steps in Gal and Ghahramani 2016), which therefore remains the flow
of one Hamiltonian. Masks are not stored: the same keys give the same masks in the free and the nudged phases, for the whole
batch or a chunk of it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lior_jax.errors import UserError
from lior_jax.registry import POTENTIALS
from lior_jax.settings import ModelConfig

LEVELS = 1 << 16
"""Levels of the rate, which is rounded to a multiple of 1 / LEVELS, excluding 0 and 1: two masks cost one random word."""


class BlockMasks(NamedTuple):
    """Masks of one block: of its `kick` `[B, L, d]` and of its potential's `units` `[B, L, M]`. None keeps all."""

    kick: Array | None = None
    units: Array | None = None


class Masks(NamedTuple):
    """Masks of the network: of the `embedding` `[B, L, d]`, and of all `blocks`, stacked. None keeps all."""

    embedding: Array | None = None
    blocks: BlockMasks = BlockMasks()


KEEP_BLOCK, KEEP_ALL = BlockMasks(), Masks()


class Keys(NamedTuple):
    """Keys of the masks, one per sequence: for the `embedding` `[B]`, for `blocks` `[N, B]`. None for no dropout."""

    embedding: Array | None = None
    blocks: Array | None = None


NO_KEYS = Keys()


def keys(rate: float, key: Array | None, blocks: int, sequences: int) -> Keys:
    """Keys of all masks of a step, from one key or from those of `split`; None for a rate of zero.

    Raises:
        UserError: dropout is on, but no key is given.
    """
    below = split(rate, key, blocks, sequences)
    return NO_KEYS if below is None else Keys(below[0], below[1:])


def split(rate: float, key: Array | None, blocks: int, sequences: int) -> Array | None:
    """A key for the embedding and for each block of each sequence, `[1 + N, B]`, by the sequence's place in the whole batch;
    such keys are given back. None for a rate of zero. Raises as `keys` does."""
    if not rate:
        return None
    if key is None:
        raise UserError(
            f"learning.dropout: {rate} draws its masks from a key; give `learning.estimate` one, such as "
            "key=jax.random.key(step), or set learning.dropout: 0."
        )
    return key if key.ndim == 2 else jax.random.split(key, (1 + blocks, sequences))


def embedding_mask(keys: Array | None, length: int, rate: float, config: ModelConfig) -> Array | None:
    """The mask of embedded states `[B, L, d]`, from the keys `[B]` of their sequences."""
    return None if keys is None else _mask(keys, length, config.width, rate)


def block_masks(keys: Array | None, length: int, rate: float, config: ModelConfig) -> BlockMasks:
    """The masks of one block, from the keys `[B]` of its sequences."""
    if keys is None:
        return BlockMasks()
    units = POTENTIALS[config.flow.potential].mask_size(config.flow.units)
    both = _mask(keys, length, config.width + units, rate)
    return BlockMasks(both[..., : config.width], both[..., config.width :])


def _mask(keys: Array, length: int, channels: int, rate: float) -> Array:
    """`[B, L, channels]`, float32."""
    dropped = min(max(round(rate * LEVELS), 1), LEVELS - 1)
    words = jax.vmap(lambda key: jax.random.bits(key, (length, -(-channels // 2)), jnp.uint32))(keys)
    halves = lax.bitcast_convert_type(words, jnp.uint16).reshape(*words.shape[:2], -1)[..., :channels]
    return jnp.where(halves < dropped, 0.0, LEVELS / (LEVELS - dropped)).astype(jnp.float32)
