"""The planes of a frame's rotors, as NumPy arrays (a parallel Jacobi ordering: Brent and Luk 1985)."""

from functools import lru_cache

import numpy as np


@lru_cache
def rotor_planes(n: int, layers: int, block: int | None = None) -> np.ndarray:
    """Planes of each rotor layer: `[layers, n // 2, 2]` coordinate pairs, disjoint within a layer.

    A round-robin tournament: after `n − 1` layers (`n` for odd `n`) every pair has occurred exactly once, so the number of
    angles then equals the dimension of SO(n). With an even `block` that divides `n`, each block of coordinates has its own
    tournament, so the frame is block-diagonal.
    """
    size = n if block is None else block
    field = size + size % 2
    order = list(range(field))
    rounds = []
    for _ in range(layers):
        pairs = [(order[i], order[field - 1 - i]) for i in range(field // 2)]
        pairs = [sorted(pair) for pair in pairs if max(pair) < size]
        rounds.append([[i + start, j + start] for start in range(0, n, size) for i, j in pairs])
        order = [order[0], order[-1], *order[1:-1]]
    return np.array(rounds, dtype=np.int32).reshape(layers, n // 2, 2)


def max_rotor_layers(n: int) -> int:
    """Number of layers in which every coordinate plane of `R^n` occurs once."""
    return n - 1 + n % 2
