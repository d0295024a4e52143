"""Low-rank compression of a trained model's charts and potentials: measure first, compress second, validate always.

The matrices of a block are its charts, all heads stacked (`query`, `key` `[H n, d]`, `value`, `output` `[H v, d]`), and its
potential's own (`physics.potential`). Each is truncated in its singular value decomposition, where its two factors
then hold fewer numbers than it does; elsewhere it stays whole. Source: Eckart & Young (1936), and docs/design.md section 3.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from lior_jax import config, data, learning, model
from lior_jax.analysis.spectrum import Spectrum, analyse, truncate
from lior_jax.errors import UserError
from lior_jax.inference import Engine, scoring
from lior_jax.model import Params
from lior_jax.storage import checkpoint, files
from lior_jax.training import run_folder

TOLERANCE = 0.01
"""Nats per token by which the validation loss may rise for a compression to pay."""
LEAST_SAVING = 0.02
"""Share of the model's numbers that must be saved for a compression to pay."""
SHARES = (0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
"""Shares of the energy `Σσ²` of each matrix that `auto` tries to keep, the smallest first."""
_CHARTS = ("query", "key", "value", "output")

Ranks = dict[str, list[int | None]]
"""Ranks of each kind of matrix, one for every block; None where it stays whole."""


class Compression(NamedTuple):
    """A compression that pays."""

    params: Params
    """Dense again: each truncated matrix multiplied out."""
    ranks: Ranks
    loss_before: float
    """Mean nats per token."""
    loss_after: float
    numbers_before: int
    """Numbers of the whole model."""
    numbers_after: int
    """The same, a truncated matrix counted as its two factors."""


def matrices(params: Params) -> dict[str, np.ndarray]:
    """The matrices of all blocks by kind, `[N, a, b]`."""
    charts = {name: np.asarray(getattr(params.blocks, name)) for name in _CHARTS}
    stacked = {name: x.reshape(x.shape[0], -1, x.shape[-1]) for name, x in charts.items()}
    potential = params.blocks.hamiltonian.potential
    return stacked | {name: np.asarray(getattr(potential, name)) for name in potential.MATRICES}


def with_matrices(params: Params, changed: dict[str, np.ndarray]) -> Params:
    """The parameters with the matrices put back in."""
    blocks, hamiltonian = params.blocks, params.blocks.hamiltonian
    arrays = {name: jnp.asarray(x) for name, x in changed.items()}
    charts = {name: arrays.pop(name).reshape(getattr(blocks, name).shape) for name in _CHARTS}
    hamiltonian = hamiltonian._replace(potential=hamiltonian.potential._replace(**arrays))
    return params._replace(blocks=blocks._replace(**charts, hamiltonian=hamiltonian))


def spectra(params: Params, energy: float = 0.99) -> dict[str, list[Spectrum]]:
    """Spectrum of every matrix by kind, one for every block."""
    return {name: [analyse(matrix, energy) for matrix in stack] for name, stack in matrices(params).items()}


def compress(
    params: Params, rank: int | Literal["auto"], loss: Callable[[Params], float], tolerance: float = TOLERANCE
) -> Compression:
    """Truncate to a rank, or to the smallest ranks that keep one of `SHARES` of each matrix's energy and the loss.

    Args:
        loss: mean nats per token of parameters, on text that they were not trained on.
        tolerance: by how many nats it may rise.

    Raises:
        UserError: it would not pay, with what was measured.
    """
    stacks, before = matrices(params), loss(params)
    found = spectra(params, SHARES[-1])
    if rank == "auto":
        candidates = [
            ({name: [_energy_rank(x, share) for x in kind] for name, kind in found.items()}, share) for share in SHARES
        ]
    else:
        candidates = [({name: [rank] * len(kind) for name, kind in found.items()}, None)]
    tried = []
    for asked, share in candidates:
        ranks = {name: [_paying(r, x.shape) for r, x in zip(asked[name], stacks[name], strict=True)] for name in stacks}
        if not any(r for kind in ranks.values() for r in kind):
            continue
        compressed = with_matrices(params, {name: _truncated(stacks[name], ranks[name]) for name in stacks})
        numbers = model.count(params)
        outcome = Compression(compressed, ranks, before, loss(compressed), numbers, numbers - _saved(stacks, ranks))
        if _rise(outcome) <= tolerance and _saving(outcome) >= LEAST_SAVING:
            return outcome
        tried.append((outcome, share))
    raise UserError(_refusal(rank, tried, found, stacks, tolerance))


def compress_run(run: str | Path, rank: str, step: int | None = None, tolerance: float = TOLERANCE) -> str:
    """Compress a run's best checkpoint, or that of a step, into a run of its own beside it, `RUN-compressed`.

    The loss is that of the run's own validation windows (`training.eval_windows`), so its corpus must be there. What is
    written is dense, with the ranks noted in `compression.json`.

    Args:
        rank: a whole number, or `auto`.
        tolerance: nats per token by which that loss may rise.

    Returns:
        What was done, to be read.

    Raises:
        UserError: no such run, no corpus, a rank that is none, a folder in use, or it would not pay.
    """
    if rank != "auto" and not (rank.isascii() and rank.isdigit() and int(rank) > 0):
        raise UserError(f"--compress is {rank!r}, but must be a rank, 1 or more, or auto.")
    engine = Engine.from_checkpoint(run, step)
    with checkpoint.open_run(run) as checkpoints:
        step = checkpoints.best if step is None else step
        metadata = checkpoints.metadata(step)
    source = config.validate(metadata.config, f"The configuration saved in {run}")
    settings = config.replace(source, "run", directory=f"{Path(run)}-compressed")
    folder = Path(settings.run.directory)
    if folder.exists():
        raise UserError(f"{folder} is there already; move or remove it to compress {run} again.")
    corpus, training = data.load(source, metadata), source.training
    windows = scoring.cover(corpus.validation, source.model.context, training.eval_stride, training.eval_windows)
    outcome = compress(
        engine.params,
        "auto" if rank == "auto" else int(rank),
        lambda params: scoring.mean_nats(params, windows, source.model),
        tolerance,
    )
    run_folder.make_folder(folder)
    run_folder.write_record(folder, settings)
    with checkpoint.Checkpoints(folder, keep=1) as checkpoints:
        optimizer = learning.make_optimizer(settings.optimizer, settings.training.steps, settings.learning).init(outcome.params)
        metadata = metadata._replace(config=settings.model_dump())
        checkpoints.save(step, outcome.params, optimizer, metadata, outcome.loss_after)
        checkpoints.wait()
        for sentence in checkpoints.complaints():
            raise UserError(sentence)
    note = {"from": str(run), "step": step, "tolerance": tolerance} | outcome._asdict()
    note.pop("params")
    files.write_atomically(folder / "compression.json", json.dumps(note, indent=2) + "\n")
    return _describe(outcome, folder, tolerance)


def _energy_rank(spectrum: Spectrum, share: float) -> int:
    kept = np.cumsum(spectrum.singular_values**2)
    return int(np.searchsorted(kept, share * kept[-1] * (1 - 1e-12))) + 1


def _largest_paying(shape: tuple[int, ...]) -> int:
    """The largest rank whose two factors hold fewer numbers than the matrix `[a, b]`."""
    return (shape[0] * shape[1] - 1) // (shape[0] + shape[1])


def _paying(rank: int, shape: tuple[int, ...]) -> int | None:
    return rank if rank <= _largest_paying(shape) else None


def _truncated(stack: np.ndarray, ranks: list[int | None]) -> np.ndarray:
    return np.stack([x if r is None else np.matmul(*truncate(x, r)) for x, r in zip(stack, ranks, strict=True)]).astype(
        stack.dtype
    )


def _saved(stacks: dict[str, np.ndarray], ranks: Ranks) -> int:
    pairs = [(x.shape, r) for name in stacks for x, r in zip(stacks[name], ranks[name], strict=True)]
    return sum(a * b - r * (a + b) for (a, b), r in pairs if r)


def _refusal(rank, tried: list, found: dict[str, list[Spectrum]], stacks: dict[str, np.ndarray], tolerance: float) -> str:
    """Why it would not pay, as measured."""
    if not tried:
        limits = ", ".join(f"{name} {_largest_paying(x.shape[1:])}" for name, x in stacks.items())
        asked = f"{SHARES[0]:g} of the energy" if rank == "auto" else f"rank {rank}"
        return f"Compressing would not pay: with {asked} no matrix's factors hold fewer numbers than it does (up to {limits})."
    within = [one for one in tried if _rise(one[0]) <= tolerance]
    # The try that saves most of those that keep the loss, or the one that comes nearest to it.
    outcome, share = max(within, key=lambda one: _saving(one[0])) if within else min(tried, key=lambda one: _rise(one[0]))
    asked = f"rank {rank}" if share is None else f"{share:g} of the energy of each matrix"
    middle = ", ".join(f"{name} {np.median([x.entropy_rank for x in kind]):.0f}" for name, kind in found.items())
    limit = f"must save at least {LEAST_SAVING:.0%} and" if within else "may"
    return (
        f"Compressing would not pay: {asked} saves {_saving(outcome):.1%} of the model's numbers and takes the validation loss "
        f"from {outcome.loss_before:.4f} to {outcome.loss_after:.4f} nats per token; it {limit} cost at most {tolerance:g} "
        f"(effective ranks by entropy: {middle})."
    )


def _rise(outcome: Compression) -> float:
    return outcome.loss_after - outcome.loss_before


def _saving(outcome: Compression) -> float:
    return 1 - outcome.numbers_after / outcome.numbers_before


def _describe(outcome: Compression, folder: Path, tolerance: float) -> str:
    lines = [
        f"  {name:9} " + ", ".join("whole" if rank is None else str(rank) for rank in ranks)
        for name, ranks in outcome.ranks.items()
    ]
    return "\n".join(
        [
            f"validation loss  {outcome.loss_before:.4f} → {outcome.loss_after:.4f} nats per token "
            f"(allowed: {tolerance:g} more)",
            f"numbers          {outcome.numbers_before:,} → {outcome.numbers_after:,} as factors "
            f"({outcome.numbers_after / outcome.numbers_before:.2f})",
            "ranks, block by block",
            *lines,
            f"{folder} holds the truncated weights, multiplied out: they load like any checkpoint, and take as much space and "
            "time. The numbers are saved where the factors themselves are stored.",
        ]
    )
