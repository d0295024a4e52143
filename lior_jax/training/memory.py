"""The memory of a training step: whether it can fit, and what would, before anything is compiled."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax

from lior_jax import config as configuration
from lior_jax import model, parallel
from lior_jax.errors import UserError
from lior_jax.model import block, retrieval
from lior_jax.settings import Config

_CGROUP = Path("/sys/fs/cgroup/memory.max")
_SIGNS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")
_MARGIN = 4
"""Compiled steps were measured to take 1.4 to 6 times the bound of `least`; suggestions leave this margin."""


def there() -> int | None:
    """Memory in bytes of the device, or on a CPU of the machine or container; None if unknown."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else _of_the_host()
    return limit or None


def _of_the_host() -> int | None:
    limits = []
    with suppress(AttributeError, OSError, ValueError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):  # no container, or `max`
        limits.append(int(_CGROUP.read_text()))
    return min((limit for limit in limits if limit > 0), default=None)


def least(config: Config) -> int:
    """Lower bound in bytes of a step's memory: parameters, gradient, two moments and average; and of the activations, the
    states between blocks, what is kept of their units, and one block's units, scores and logits, for the sequences that are
    nudged at once. Those of each device, or, on a CPU, of all devices, which share its memory."""
    devices = parallel.chosen(config)
    shapes, batch = config.model, config.training.batch_size // config.training.accumulate // devices.data
    if shapes.vocab_size is None:
        shapes = configuration.replace(config, "model", vocab_size=2).model
    params = jax.eval_shape(lambda key: model.init(key, shapes), jax.random.key(0))
    potential = params.blocks.hamiltonian.potential
    units = sum(getattr(potential, name).shape[-2] for name in potential.MATRICES)  # a product per row, and the state
    kept = 0 if shapes.flow.carry_momentum else shapes.blocks
    position = (kept + 2) * shapes.width
    if config.learning.keep == "units":
        position += kept * len(block.schedule(shapes).kicks) * (units // devices.model + shapes.width)
    tile = retrieval.tile(shapes, shapes.context) or shapes.context
    nudged = (units + shapes.heads * min(tile, shapes.context)) // devices.model
    nudged += shapes.vocabulary
    copies = 4 if config.optimizer.average is None else 5
    nudged_at_once = min(config.learning.chunk or batch, batch) * shapes.context
    cut = devices.model * (devices.data if devices.shard_parameters else 1)
    numbers = copies * model.count(params) // cut + batch * shapes.context * position + nudged_at_once * nudged
    return 4 * numbers * (devices.count // devices.processes if jax.default_backend() == "cpu" else 1)


def check(config: Config) -> None:
    """Raise `UserError`, with a suggestion, if a step needs more memory than available."""
    limit = there()
    if limit is not None and least(config) > limit:
        raise UserError(f"A step needs more than {size(least(config))}, and there are {size(limit)}; {advice(config)}.")


def advice(config: Config) -> str:
    """A suggestion that fits, with a margin."""
    batch, limit = config.training.batch_size, there() or 0
    while batch > 1:
        batch //= 2
        if batch % config.training.accumulate or (config.parallel.data != "auto" and batch % config.parallel.data):
            continue
        # The chunk as well: it must divide the batch.
        changed = configuration.replace(config, "learning", chunk=None)
        if _MARGIN * least(configuration.replace(changed, "training", batch_size=batch)) <= limit:
            chunk = config.learning.chunk
            return f"training.batch_size={batch} should fit" + (
                " (with learning.chunk=null)" if chunk and batch % chunk else ""
            )
    return "take a smaller model.context, model.width or model.blocks; no training.batch_size is small enough"


@contextmanager
def explained(config: Config) -> Iterator[None]:
    """Context manager: turn a failed allocation into a `UserError` with a suggestion."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as problem:
        text = str(problem)
        if isinstance(problem, jax.errors.JaxRuntimeError) and not any(sign in text for sign in _SIGNS):
            raise
        reason = (text.splitlines() or ["no memory left"])[0][:200].rstrip(". ")
        raise UserError(f"There is not enough memory for a step ({reason}); {advice(config)}.") from None


def size(count: int) -> str:
    """A number of bytes in readable units."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
