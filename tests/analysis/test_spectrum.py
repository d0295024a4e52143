import numpy as np
import pytest

from lior_jax.analysis.spectrum import analyse, matrices, of_model, truncate
from tests.oracles import random_params, small_config


def with_singular_values(sigma, rows, columns, seed=0, complex_entries=False):
    """A matrix between random orthonormal bases."""
    rng = np.random.default_rng(seed)

    def basis(n):
        x = rng.standard_normal((n, n)) + (1j * rng.standard_normal((n, n)) if complex_entries else 0)
        return np.linalg.qr(x)[0]

    return (basis(rows)[:, : len(sigma)] * np.asarray(sigma)) @ basis(columns)[: len(sigma)]


@pytest.mark.parametrize("complex_entries", [False, True])
def test_singular_values_are_found(complex_entries):
    sigma = [5.0, 2.0, 0.5, 0.1]
    spectrum = analyse(with_singular_values(sigma, 6, 4, complex_entries=complex_entries))
    np.testing.assert_allclose(spectrum.singular_values, sigma, rtol=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_equal_singular_values_have_their_number_as_rank(rank):
    spectrum = analyse(with_singular_values([2.0] * rank, 8, 9), energy=1.0)
    np.testing.assert_allclose(spectrum.entropy_rank, rank, rtol=1e-6)
    assert spectrum.energy_rank == rank


def test_energy_rank_is_the_least_that_holds_the_share():
    """Squares 16, 4, 1 of 21: one direction holds 0.762, two hold 0.952."""
    matrix = with_singular_values([4.0, 2.0, 1.0], 5, 3)
    for energy, rank in ((0.76, 1), (0.77, 2), (0.95, 2), (0.96, 3), (1.0, 3)):
        assert analyse(matrix, energy).energy_rank == rank


def test_truncation_reaches_its_bound():
    spectrum = analyse(with_singular_values([4.0, 2.0, 1.0, 0.5], 7, 6), energy=0.9)
    assert spectrum.energy_rank == 2
    np.testing.assert_allclose(spectrum.truncation_bound, np.sqrt(1.25 / 21.25), rtol=1e-10)
    np.testing.assert_allclose(spectrum.truncation_error, spectrum.truncation_bound, rtol=1e-10)


def test_verdict_counts_the_numbers_of_the_factors():
    low = analyse(with_singular_values([3.0, 1.0], 40, 30))
    assert low.pays
    np.testing.assert_allclose(low.parameter_ratio, 2 * 70 / 1200)
    assert low.verdict.startswith("compression pays: rank 2 of 30")
    full = analyse(with_singular_values([1.0] * 30, 40, 30))
    assert not full.pays
    assert full.verdict.startswith("compression does not pay: rank 30 of 30")


def test_a_field_is_read_by_its_last_axis():
    rng = np.random.default_rng(1)
    field = rng.standard_normal((3, 4, 5))
    np.testing.assert_allclose(analyse(field).singular_values, analyse(field.reshape(12, 5)).singular_values)


def test_nothing_has_rank_zero():
    spectrum = analyse(np.zeros((3, 4)))
    assert spectrum.energy_rank == spectrum.truncation_error == spectrum.entropy_rank == 0


@pytest.mark.parametrize("complex_entries", [False, True])
def test_truncation_is_the_nearest_matrix_of_its_rank(complex_entries):
    """Its distance is that of the singular values left out, which no matrix of the rank can beat (Eckart–Young)."""
    matrix = with_singular_values([4.0, 2.0, 1.0, 0.5], 7, 6, complex_entries=complex_entries)
    left, right = truncate(matrix, 2)
    assert (left.shape, right.shape) == ((7, 2), (2, 6))
    np.testing.assert_allclose(np.linalg.norm(matrix - left @ right), np.sqrt(1.25), rtol=1e-12)


def test_a_models_matrices_are_what_a_block_applies():
    """Rows of a chart are its heads' rows, one head after another."""
    config = small_config(width=24, geometry__chart_dim=8, geometry__rotor_layers=0, flow__units=20, blocks=2).model
    params = random_params(config)
    found = matrices(params)
    np.testing.assert_array_equal(found["query"][1, 8:], params.blocks.query[1, 1])
    np.testing.assert_array_equal(found["features"][1], params.blocks.hamiltonian.potential.features[1])
    np.testing.assert_array_equal(found["gates"][0], params.blocks.hamiltonian.potential.gates[0])
    spectra = of_model(params, 0.9)
    assert {name: len(kind) for name, kind in spectra.items()} == dict.fromkeys(found, 2)
    sigma = np.linalg.svd(np.asarray(params.blocks.value[1], np.float64).reshape(24, 24), compute_uv=False)
    np.testing.assert_allclose(spectra["value"][1].singular_values, sigma, rtol=1e-10)
    kept = np.cumsum(sigma**2) / np.sum(sigma**2)
    assert kept[spectra["value"][1].energy_rank - 1] >= 0.9 > kept[spectra["value"][1].energy_rank - 2]
