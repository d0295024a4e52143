"""What an estimate tells beside the gradient."""

from typing import NamedTuple

from jax import Array

from lior_jax.model.parameters import Carried


class Observed(NamedTuple):
    """What the free phase shows of a batch, and `Info.carried` follows from; means over sequences.

    `action` `[N, H]`, mean LIoR action of each block's flow; `moment` `[N, H, n, n]`, `E[xxᵀ]` of its keys in whitened
    coordinates, where the frame is derived from it.
    """

    action: Array
    moment: Array | None


class Info(NamedTuple):
    """Diagnostics of one estimate."""

    loss: Array
    """`[]`, mean nats per target in the free phase."""
    reversibility: Array
    """`[]`, the method's health. Echo: largest relative distance between a state of the free phase and the same state rebuilt
    by its echo. Equilibrium: the largest `residual`."""
    residual: Array
    """`[N]`, health of each block. Echo: relative distance of its rebuilt input, zero where nothing is stored to compare it
    with. Equilibrium: of both phases the larger residual, relative size of the last update of the states or of their slope."""
    nudge: Array
    """`[N]`, mean strength ε of the push at the end of each block."""
    gradient_norm: Array
    """`[]`, global norm of the estimate before clipping."""
    action: Array
    """`[N]`, mean LIoR action of each block: metric length of a chart point's path, heads added up."""
    carried: Carried
    """What the parameters carry on to the next step."""
    observed: Observed | None = None
    """What `carried` was made of; None if of nothing, or of nothing that micro-batches could add up."""
