"""The memory: a ring buffer of points on the learned manifold and the tokens that followed them.

It predicts the tokens that followed nearby points:

    p_memory(v | x) = Σ_{j: token_j = v} exp(−β sqrt(g(x − x_j, x − x_j) + ε)) / Σ_j exp(−β sqrt(g(x − x_j, x − x_j) + ε))

This is a kNN language model (Khandelwal et al. 2020; a cache of recent hidden states, Grave et al. 2017) with the learned
metric. Filling it changes no parameter. `remembering` reads texts into it and mixes it with the model's own distribution.

Shapes: `N` entries of capacity, `m = H (n + r)` coordinates, `Q` queries, `V` vocabulary.
"""

import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lior_jax import model
from lior_jax.errors import UserError
from lior_jax.model import Params
from lior_jax.physics import bank as physics
from lior_jax.physics.bank import TiledKeys
from lior_jax.settings import ModelConfig
from lior_jax.storage import arrays

MAX_CAPACITY = 2**24


class MemoryBank(NamedTuple):
    """Slots for `N` points, in the layout of `physics.bank`, and `tokens` `[N]`; the oldest entry is overwritten first.
    `written` `[]` is the number of entries ever written: the next one goes to `written mod N`."""

    points: TiledKeys
    tokens: Array
    written: Array

    @property
    def capacity(self) -> int:
        return self.tokens.shape[0]

    @property
    def coordinates(self) -> Array:
        """A copy of the points, `[N, m]`."""
        return self.points.rows[: self.capacity]

    @property
    def present(self) -> Array:
        """Number of entries: `[]`."""
        return jnp.minimum(self.written, self.capacity)


class Recalled(NamedTuple):
    """The entries nearest to each query, nearest first, each `[Q, k]`: `place` in the ring, geodesic `cost`, Boltzmann `weight`
    among all entries, and the `token` that followed.

    Missing entries are −1, ∞, 0 and −1.
    """

    place: Array
    cost: Array
    weight: Array
    token: Array


def observe(params: Params, tokens: Array, config: ModelConfig) -> tuple[Array, Array]:
    """Logits `[B, L, V]` and coordinates `[B, L, m]` of every position of `tokens` `[B, L]`, in one pass."""
    logits, points = model.observe(params, tokens, config)
    return logits, flatten(points)


def coordinates(params: Params, tokens: Array, config: ModelConfig) -> Array:
    """The geometric point of every position, `[B, L, m]`, in which squared Euclidean distance is the learned metric.

    It is the whitened query point of the last block, concatenated over heads. On a text unseen in training it predicts better
    than the direction of the final state, the logits, or the retrieval's kick.
    """
    return observe(params, tokens, config)[1]


def flatten(points: Array) -> Array:
    """Whitened points of all heads `[..., H, n + r]` as coordinates `[..., m]`, whose metric is the sum over heads."""
    return points.reshape(*points.shape[:-2], -1)


def empty(capacity: int, config: ModelConfig) -> MemoryBank:
    """A memory of at most `capacity` entries. Raises `UserError` if that is below 1 or above `MAX_CAPACITY`."""
    if not 1 <= capacity <= MAX_CAPACITY:
        raise UserError(f"The memory's capacity is {capacity}, but must be between 1 and {MAX_CAPACITY}.")
    dimension = config.heads * (config.geometry.whitened_dim)
    return MemoryBank(physics.room(capacity, dimension), jnp.zeros(capacity, jnp.int32), jnp.zeros((), jnp.int32))


def write(bank: MemoryBank, points: Array, tokens: Array, keep: Array | None = None) -> MemoryBank:
    """Write points `[K, m]` and tokens `[K]` in order, only those selected by `keep` `[K]`; all by default."""
    if not len(tokens):
        return bank
    keep = jnp.ones(tokens.shape, bool) if keep is None else keep
    order, count = jnp.cumsum(keep) - 1, jnp.sum(keep)
    # Of more entries than the capacity, only the last are kept; the others are dropped by an index past the end.
    stays = keep & (order >= count - bank.capacity)
    place = jnp.where(stays, (bank.written + order) % bank.capacity, bank.points.squares.size)
    origin = jnp.where(bank.written == 0, points[jnp.argmax(keep)][None], bank.points.origin)
    return MemoryBank(
        physics.put(bank.points._replace(origin=origin), place, points),
        bank.tokens.at[place].set(tokens, mode="drop"),
        bank.written + count.astype(bank.written.dtype),
    )


def read(bank: MemoryBank, queries: Array, inverse_temperature: Array | float, vocab_size: int) -> Array:
    """Log probabilities of the next token from the memory, exact over all entries.

    Args:
        queries: `[Q, m]`, from `coordinates`.
        inverse_temperature: `[]`, β.

    Returns:
        `[Q, V]`, −∞ for tokens without entries; the uniform distribution for an empty memory.
    """
    log_p, _ = physics.retrieve_labels(queries, bank.points, bank.tokens, inverse_temperature, vocab_size, bank.present)
    return jnp.where(bank.present > 0, log_p, -math.log(vocab_size))


def recall(bank: MemoryBank, queries: Array, inverse_temperature: Array | float, count: int) -> Recalled:
    """The `count` entries nearest to each of `queries` `[Q, m]`, and their weights in `read`."""
    found = min(count, bank.capacity)
    place, cost = physics.nearest(queries, bank.points, found, bank.present)
    one = jnp.zeros_like(bank.tokens)  # a single label: only the partition function is needed
    _, log_total = physics.retrieve_labels(queries, bank.points, one, inverse_temperature, 1, bank.present)
    known = place >= 0
    weight = jnp.where(known, jnp.exp(-inverse_temperature * cost - log_total[:, None]), 0)
    recalled = Recalled(place, cost, weight, jnp.where(known, bank.tokens[place], -1))
    missing = ((0, 0), (0, count - found))
    return Recalled(
        *(jnp.pad(x, missing, constant_values=fill) for x, fill in zip(recalled, (-1, jnp.inf, 0, -1), strict=True))
    )


class Mixture(NamedTuple):
    """The mixture of a memory with the model's own distribution: `weight` λ of the memory, `inverse_temperature` β."""

    weight: float
    inverse_temperature: float


def mix(bank: MemoryBank, log_model: Array, log_memory: Array, weight: Array | float) -> Array:
    """`ln((1 − λ) p_model + λ p_memory)` from log probabilities of equal shape; the model's for an empty memory."""
    weight = jnp.where(bank.present > 0, weight, 0)
    return jnp.logaddexp(jnp.log1p(-weight) + log_model, jnp.log(weight) + log_memory)


def share(bank: MemoryBank, log_model: Array, log_memory: Array, weight: Array | float) -> Array:
    """`λ p_memory / ((1 − λ) p_model + λ p_memory)` from log probabilities of equal shape: the memory's share of a token's
    probability in the mixture; 0 for an empty memory."""
    mixed = mix(bank, log_model, log_memory, weight)
    return jnp.where(bank.present > 0, jnp.exp(jnp.log(weight) + log_memory - mixed), 0)


def save(path: str | Path, bank: MemoryBank, params: Params, mixture: Mixture) -> None:
    """Write a memory, its mixture, and the fingerprint of the model that filled it. Raises `UserError` like `arrays.write`."""
    present = int(bank.present)
    relative = bank.points._replace(origin=jnp.zeros_like(bank.points.origin)).rows[:present]
    entries = {"coordinates": np.asarray(relative), "tokens": np.asarray(bank.tokens[:present])}
    numbers = {
        "origin": np.asarray(bank.points.origin),
        "written": np.asarray(bank.written),
        "capacity": np.array(bank.capacity, np.int64),
        "mixture": np.array(mixture, np.float64),
    }
    arrays.write(path, entries | numbers, {"model": arrays.digest(arrays.named(params))})


def load(path: str | Path, params: Params, config: ModelConfig) -> tuple[MemoryBank, Mixture]:
    """Read a saved memory and its mixture.

    Raises:
        UserError: the file is missing or damaged, or holds the memory of another model.
    """
    saved, about = arrays.read(path)
    if about.get("model") != arrays.digest(arrays.named(params)):
        raise UserError(
            f"{path} is the memory of another model, or of this one before further training; move or delete that file, and "
            "let the model read its texts again."
        )
    bank = _fill(empty(int(saved["capacity"]), config), saved["coordinates"], saved["tokens"])
    origin = saved.get("origin", np.zeros_like(bank.points.origin))  # earlier files store absolute points
    return MemoryBank(bank.points._replace(origin=jnp.asarray(origin)), bank.tokens, jnp.asarray(saved["written"])), Mixture(
        *map(float, saved["mixture"])
    )


@partial(jax.jit, donate_argnums=0)
def _fill(bank: MemoryBank, relative: Array, tokens: Array) -> MemoryBank:
    """Fill an empty memory with points relative to their origin, which the caller sets."""
    places = jnp.arange(len(tokens))
    return bank._replace(points=physics.put(bank.points, places, relative), tokens=bank.tokens.at[places].set(tokens))
