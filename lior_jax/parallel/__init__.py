"""Several devices and processes: one mesh with the axes `data` and `model`, the shardings of parameters, optimiser state and
batches, and what processes agree on."""

from lior_jax.parallel.devices import Devices, chosen
from lior_jax.parallel.pieces import in_pieces, joined, shares
from lior_jax.parallel.processes import ALONE, Processes
from lior_jax.parallel.shardings import DATA, MODEL, by_sequence, gathered, is_active, kept_sharded

__all__ = [
    "ALONE",
    "DATA",
    "MODEL",
    "Devices",
    "Processes",
    "by_sequence",
    "chosen",
    "gathered",
    "in_pieces",
    "is_active",
    "joined",
    "kept_sharded",
    "shares",
]
