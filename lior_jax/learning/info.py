"""Diagnostics returned with a gradient estimate."""

from typing import NamedTuple

from jax import Array

from lior_jax.model.parameters import Carried


class Observed(NamedTuple):
    """Observations of the free phase from which `Info.carried` is computed; means over sequences.

    `action` `[N, H]`, mean LIoR action of each block's flow; `moment` `[N, H, n, n]`, `E[xxᵀ]` of its keys in whitened
    coordinates, None unless the frame is derived.
    """

    action: Array
    moment: Array | None


class Info(NamedTuple):
    """Diagnostics of one estimate."""

    loss: Array
    """`[]`, mean nats per target in the free phase."""
    reversibility: Array
    """`[]`, health of the method. Echo: largest relative distance between a state of the free phase and its reconstruction by
    the echo. Equilibrium: the largest `residual`."""
    residual: Array
    """`[N]`, health of each block. Echo: relative distance of its reconstructed input, zero if no input is stored to compare
    with. Equilibrium: the larger residual of both phases, the relative size of the last update of the states or their slope."""
    nudge: Array
    """`[N]`, mean strength ε of the nudge at the end of each block."""
    gradient_norm: Array
    """`[]`, global norm of the estimate before clipping."""
    action: Array
    """`[N]`, mean LIoR action of each block: metric length of a chart point's path, summed over heads."""
    carried: Carried
    """Running statistics for the next step."""
    observed: Observed | None = None
    """The observations behind `carried`, averaged over micro-batches; None if `carried` does not follow from such means."""
