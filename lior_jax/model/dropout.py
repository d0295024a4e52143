"""Dropout: masks of zeros and `1 / (1 − rate)`, drawn anew for every position from a key of its sequence.

Masks multiply the embedded states' channels, and in every block the kick's channels and the potential's units. A block's masks
hold for all of its flow, which so remains the flow of one Hamiltonian. None is stored: the same keys give the same masks, in
the free phase and in the nudged ones, of all sequences at once or of a few.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lior_jax.errors import UserError
from lior_jax.registry import POTENTIALS
from lior_jax.settings import ModelConfig

LEVELS = 1 << 16
"""Levels of the rate, which is rounded to a multiple of 1 / LEVELS between the first and the last: two masks cost one random
word."""


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
    """What masks are drawn from, one key a sequence: of the `embedding` `[B]`, of `blocks` `[N, B]`. None drops nothing."""

    embedding: Array | None = None
    blocks: Array | None = None


NO_KEYS = Keys()


def keys(rate: float, key: Array | None, blocks: int, sequences: int) -> Keys:
    """Keys of all masks of a step, from one key, or from those that `split` makes of it; none for a rate of zero.

    Raises:
        UserError: something is to be dropped, and there is no key.
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
