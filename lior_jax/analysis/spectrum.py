"""Spectral analysis of a matrix or field: whether a low-rank approximation suffices. Measure, then compress, then validate.

A diagnostic that runs only on request. Literature: truncation errors, Eckart and Young 1936; effective rank, Roy and Vetterli
2007. Source: docs/design.md section 3, and part 1 of the audit.

The matrices of a model's block are its charts, all heads stacked (`query`, `key` `[H n, d]`, `value`, `output` `[H v, d]`), and
its potential's own (`physics.potential`).
"""

from typing import NamedTuple

import numpy as np

from lior_jax.model import Params

_CHARTS = ("query", "key", "value", "output")


class Spectrum(NamedTuple):
    """The spectrum of one matrix `[a, b]`."""

    singular_values: np.ndarray
    """`[min(a, b)]`, decreasing."""
    entropy_rank: float
    """`exp(−Σ p ln p)` with `p = σ / Σσ`: the effective rank (Roy and Vetterli 2007)."""
    energy_rank: int
    """Least `r` with `σ_1² + … + σ_r²` at least the requested fraction of `Σσ²`."""
    truncation_error: float
    """`‖T − T_r‖` relative to `‖T‖`, Frobenius, at `r = energy_rank`, measured on the truncated matrix."""
    truncation_bound: float
    """`sqrt(Σ_{i>r} σ_i²)` relative to `‖T‖`: the least error of any matrix of rank `r` (Eckart and Young 1936)."""
    parameter_ratio: float
    """Ratio of the numbers of entries of the two factors of rank `r` and of the matrix: `r (a + b) / (a b)`."""

    @property
    def pays(self) -> bool:
        """Whether two factors of the energy rank have fewer entries than the matrix."""
        return self.parameter_ratio < 1

    @property
    def verdict(self) -> str:
        """The finding in one sentence."""
        r, full = self.energy_rank, len(self.singular_values)
        share = f"{self.truncation_error:.2g} of the norm in {self.parameter_ratio:.2f} of the numbers"
        cost = f"rank {r} of {full} keeps all but {share}"
        return f"compression pays: {cost}" if self.pays else f"compression does not pay: {cost}"


def analyse(matrix: np.ndarray, energy: float = 0.99) -> Spectrum:
    """Measure the spectrum of a real or complex matrix `[a, b]`; further leading axes are merged into the rows.

    Args:
        energy: fraction of `Σσ²` to keep, in (0, 1].
    """
    matrix = np.asarray(matrix)
    matrix = matrix.reshape(-1, matrix.shape[-1]).astype(np.result_type(matrix, np.float64))
    sigma = np.linalg.svd(matrix, compute_uv=False)
    norm = np.linalg.norm(matrix)
    if norm == 0:
        return Spectrum(sigma, 0.0, 0, 0.0, 0.0, 0.0)
    share = sigma[sigma > 0] / sigma.sum()
    kept = np.cumsum(sigma**2) / np.sum(sigma**2)
    rank = min(int(np.searchsorted(kept, energy * (1 - 1e-12))) + 1, len(sigma))
    truncated = np.matmul(*truncate(matrix, rank))
    return Spectrum(
        singular_values=sigma,
        entropy_rank=float(np.exp(-np.sum(share * np.log(share)))),
        energy_rank=rank,
        truncation_error=float(np.linalg.norm(matrix - truncated) / norm),
        truncation_bound=float(np.sqrt(np.sum(sigma[rank:] ** 2)) / norm),
        parameter_ratio=rank * sum(matrix.shape) / matrix.size,
    )


def truncate(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors `[a, r]` and `[r, b]` whose product is the nearest matrix of rank `r` to `matrix` `[a, b]`."""
    left, sigma, right = np.linalg.svd(np.asarray(matrix, np.result_type(matrix, np.float64)), full_matrices=False)
    root = np.sqrt(sigma[:rank])
    return left[:, :rank] * root, root[:, None] * right[:rank]


def matrices(params: Params) -> dict[str, np.ndarray]:
    """The matrices of all blocks by kind, `[N, a, b]`."""
    charts = {name: np.asarray(getattr(params.blocks, name)) for name in _CHARTS}
    stacked = {name: x.reshape(x.shape[0], -1, x.shape[-1]) for name, x in charts.items()}
    potential = params.blocks.hamiltonian.potential
    return stacked | {name: np.asarray(getattr(potential, name)) for name in potential.MATRICES}


def of_model(params: Params, energy: float = 0.99) -> dict[str, list[Spectrum]]:
    """Spectra of the matrices by kind, one per block."""
    return {name: [analyse(matrix, energy) for matrix in stack] for name, stack in matrices(params).items()}
