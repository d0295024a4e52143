"""Compression saves what it says, keeps the loss that it says, and is refused where it would not pay."""

import json

import jax
import numpy as np
import pytest

from lior_jax import model
from lior_jax.analysis import compression
from lior_jax.errors import UserError
from lior_jax.inference import Engine
from tests.oracles import random_params, small_config

CONFIG = small_config(width=24, geometry__chart_dim=8, geometry__rotor_layers=0, flow__units=20, blocks=2).model
"""Matrices: query and key [16, 24], value and output [24, 24], features and gates [20, 24]."""
LOW = 3


@pytest.fixture(scope="module")
def whole():
    return random_params(CONFIG)


@pytest.fixture(scope="module")
def low(whole):
    """Every matrix has rank 3, and a little of everything else."""
    rng = np.random.default_rng(0)
    made = {}
    for name, stack in compression.matrices(whole).items():
        left, right = rng.standard_normal((*stack.shape[:2], LOW)), rng.standard_normal((stack.shape[0], LOW, stack.shape[2]))
        made[name] = (left @ right + 1e-3 * rng.standard_normal(stack.shape)).astype(np.float32)
    return compression.with_matrices(whole, made)


def distance_from(params):
    """A loss that is the relative distance from the given parameters: 0 for themselves."""
    reference = compression.matrices(params)

    def loss(other):
        pairs = zip(reference.values(), compression.matrices(other).values(), strict=True)
        return max(float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in pairs)

    return loss


def test_matrices_go_back_where_they_came_from(whole):
    again = compression.with_matrices(whole, compression.matrices(whole))
    jax.tree.map(np.testing.assert_array_equal, whole, again)


def test_matrices_are_what_a_block_applies(whole):
    """Rows of a chart are its heads' rows, one head after another."""
    found = compression.matrices(whole)
    np.testing.assert_array_equal(found["query"][1, 8:], whole.blocks.query[1, 1])
    np.testing.assert_array_equal(found["gates"][0], whole.blocks.hamiltonian.potential.gates[0])


def test_low_rank_is_found_and_pays(low):
    outcome = compression.compress(low, "auto", distance_from(low))
    assert all(rank is not None and rank <= LOW for kind in outcome.ranks.values() for rank in kind)
    assert outcome.loss_before == 0
    assert 0 < outcome.loss_after <= compression.TOLERANCE
    shapes = {
        "query": (16, 24),
        "key": (16, 24),
        "value": (24, 24),
        "output": (24, 24),
        "features": (20, 24),
        "gates": (20, 24),
    }
    saved = sum(a * b - r * (a + b) for name, (a, b) in shapes.items() for r in outcome.ranks[name])
    assert outcome.numbers_before == model.count(low)
    assert outcome.numbers_after == model.count(low) - saved
    for name, stack in compression.matrices(outcome.params).items():
        assert [np.linalg.matrix_rank(x, tol=1e-4 * np.linalg.norm(x)) for x in stack] == outcome.ranks[name]


def test_auto_takes_the_smallest_share_that_keeps_the_loss(low):
    """Whatever the loss, the cheapest try is taken."""
    outcome = compression.compress(low, "auto", lambda params: 1.0)
    for name, kind in outcome.ranks.items():
        for stack, rank in zip(compression.matrices(low)[name], kind, strict=True):
            sigma = np.linalg.svd(stack, compute_uv=False)
            kept = np.cumsum(sigma**2) / np.sum(sigma**2)
            assert kept[rank - 1] >= compression.SHARES[0]
            assert rank == 1 or kept[rank - 2] < compression.SHARES[0]


def test_a_rank_is_taken_where_it_saves(low):
    """Rank 10 saves in [24, 24] and [20, 24], whose limits are 11 and 10, but not in [16, 24], whose limit is 9."""
    outcome = compression.compress(low, 10, distance_from(low))
    assert outcome.ranks["query"] == outcome.ranks["key"] == [None, None]
    assert outcome.ranks["value"] == outcome.ranks["gates"] == [10, 10]
    np.testing.assert_array_equal(outcome.params.blocks.query, low.blocks.query)


def test_a_rank_that_saves_nothing_takes_no_more_either():
    """Two factors of rank 2 of a matrix [4, 4] hold its 16 numbers: nothing is saved, so it stays whole."""
    assert compression._paying(2, (4, 4)) is None
    assert compression._paying(1, (4, 4)) == 1
    assert compression._paying(2, (4, 5)) == 2


def test_a_loss_that_rises_is_refused(whole):
    with pytest.raises(UserError, match=r"would not pay: rank 2 saves \d.*from 0\.0000 to 0\.\d+ .*at most 0\.01.*entropy"):
        compression.compress(whole, 2, distance_from(whole))


def test_a_rank_that_saves_nothing_is_refused(whole):
    with pytest.raises(UserError, match=r"with rank 12 no matrix's factors hold fewer .*up to query 9.*value 11"):
        compression.compress(whole, 12, distance_from(whole))


def test_a_full_spectrum_is_refused(whole):
    with pytest.raises(UserError, match="would not pay"):
        compression.compress(whole, "auto", distance_from(whole))


def test_a_saving_too_small_is_refused(low, monkeypatch):
    monkeypatch.setattr(compression, "LEAST_SAVING", 0.99)
    with pytest.raises(UserError, match=r"must save at least 99% and cost at most 0\.01"):
        compression.compress(low, "auto", lambda params: 1.0)


def test_a_run_is_compressed_into_a_run_of_its_own(finished_run, tmp_path):
    run = tmp_path / "run"
    run.symlink_to(finished_run, target_is_directory=True)
    text = compression.compress_run(run, "2", tolerance=10.0)
    written = tmp_path / "run-compressed"
    assert str(written) in text
    before, after = Engine.from_checkpoint(run), Engine.from_checkpoint(written)
    for stack in compression.matrices(after.params).values():
        assert all(np.linalg.matrix_rank(x, tol=1e-4 * np.linalg.norm(x)) == 2 for x in stack)
    np.testing.assert_array_equal(before.params.embedding, after.params.embedding)
    note = json.loads((written / "compression.json").read_text())
    assert note["ranks"]["query"] == [2, 2]
    assert note["loss_after"] > note["loss_before"]
    assert f"{note['loss_before']:.4f} → {note['loss_after']:.4f}" in text
    with pytest.raises(UserError, match="is there already"):
        compression.compress_run(run, "2")


@pytest.mark.parametrize("rank", ["0", "-1", "2.5", "much", ""])
def test_a_rank_that_is_none_is_refused(rank):
    with pytest.raises(UserError, match="must be a rank"):
        compression.compress_run("nowhere", rank)
