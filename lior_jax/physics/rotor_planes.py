"""Which planes the rotors of a frame turn in, as plain numbers."""

from functools import lru_cache

import numpy as np


@lru_cache
def rotor_planes(n: int, layers: int, block: int | None = None) -> np.ndarray:
    """Planes of each rotor layer: `[layers, n // 2, 2]` coordinate pairs, disjoint within a layer.

    The round-robin tournament: after `n − 1` layers (`n` for odd `n`) every pair has met exactly once, so the
    angles then have the dimension of SO(n). With an even `block`, which divides `n`, each block of as many coordinates
    plays its own tournament, so that the frame is block-diagonal.
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
    """Number of layers after which every plane of `R^n` has had its rotor."""
    return n - 1 + n % 2
