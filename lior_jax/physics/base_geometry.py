"""The base metric `g₀` under the learned metric, and the constants derived from it, as NumPy arrays.

Source: the audit's `build_base_metric` and `precompute_geometry`; docs/design.md section 3.
"""

from typing import NamedTuple

import numpy as np

from lior_jax.errors import UserError


class Geometry(NamedTuple):
    """Constants derived from a base metric `g₀`, `[n, n]` each: `inverse` g₀⁻¹, and `whitening` B with `g₀ = Bᵀ B`."""

    metric: np.ndarray
    inverse: np.ndarray
    whitening: np.ndarray


def base_metric(n: int, matrix: np.ndarray | tuple | None = None) -> np.ndarray:
    """The base metric `g₀` `[n, n]` in float64, validated; the identity by default.

    Raises:
        UserError: the matrix is not symmetric positive definite with `n` rows.
    """
    if matrix is None:
        return np.eye(n)
    if isinstance(matrix, tuple) and len({np.size(row) for row in matrix}) > 1:
        raise UserError(f"The base metric has rows of different lengths; give {n} rows of {n} numbers.")
    g = np.asarray(matrix, np.float64)
    if g.shape != (n, n):
        shape = " x ".join(map(str, g.shape)) or "a number"
        raise UserError(f"The base metric is {shape}, but the charts need {n} x {n}; give {n} rows of {n} numbers.")
    if not np.isfinite(g).all() or np.abs(g - g.T).max() > 1e-6 * np.abs(g).max():
        raise UserError("The base metric must be symmetric and finite; give the same number at (i, j) and (j, i).")
    lowest = np.linalg.eigvalsh(g)[0]
    if lowest <= 1e-6 * np.trace(g) / n:
        raise UserError(
            f"The base metric is not positive definite (its smallest eigenvalue is {lowest:.3g}); add a multiple of the "
            "identity to it."
        )
    return g


def precompute(metric: np.ndarray) -> Geometry:
    """The `Geometry` of a base metric `[n, n]`, in float64."""
    return Geometry(metric=metric, inverse=np.linalg.inv(metric), whitening=np.linalg.cholesky(metric).T)


def contraction_kernel(geometry: Geometry) -> np.ndarray:
    """`K_μνρσ = g₀⁻¹_μρ g₀⁻¹_νσ / n²`, `[n, n, n, n]`, the contraction of a dense curvature tensor (tool: the model
    never builds a tensor of rank 4)."""
    n = geometry.inverse.shape[0]
    return np.einsum("mr,ns->mnrs", geometry.inverse, geometry.inverse) / n**2
