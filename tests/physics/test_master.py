"""The master equation's site against the equation itself, written out token by token with the matrices that it has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from lior_jax.physics import delta, master, turn
from lior_jax.physics.master import Site
from lior_jax.physics.turn import Generator
from tests.oracles import check_adjoint, normal

SHAPES = [{}, {"batch": 1, "length": 1, "heads": 3, "m": 2, "v": 1}]


evolve = jax.jit(master.evolve)
evolve_step = jax.jit(master.evolve_step)


def random_inputs(batch=2, length=7, heads=2, m=5, v=3, seed=0):
    """A site, queries, keys, values, and a pull in (0, 1)."""
    rng = np.random.default_rng(seed)
    frame = jnp.asarray(np.linalg.qr(rng.standard_normal((heads, m, m)))[0])
    site = Site(jnp.asarray(rng.uniform(0.01, 0.9, heads)), Generator(frame, normal(rng, heads, m // 2)))
    points = normal(rng, batch, length, heads, m), normal(rng, batch, length, heads, m), normal(rng, batch, length, heads, v)
    return site, *points, jnp.asarray(rng.uniform(0, 1, (batch, length, heads)))


def equation(site, queries, keys, values, pull):
    """`T ← ρ T e^{−iH}`, `T ← T + λ (v − T k̂) k̂ᵀ`, `y = T q̂`: what is read `[B, L, H, v]`, and the last `T` `[B, H, v, m]`."""
    queries, keys, values, pull = (np.asarray(x) for x in (queries, keys, values, pull))
    batch, length, heads, m = queries.shape
    read, fields = np.zeros(values.shape), np.zeros((batch, heads, values.shape[-1], m))
    for b, h in np.ndindex(batch, heads):
        u = expm(-1j * np.asarray(turn.hermitian(site.generator))[h])
        np.testing.assert_allclose(u.imag, 0, atol=1e-12)
        t = fields[b, h]
        for i in range(length):
            q, k = (x[b, i, h] / np.linalg.norm(x[b, i, h]) for x in (queries, keys))
            t = np.exp(-site.rate[h]) * t @ u.real
            t = t + pull[b, i, h] * np.outer(values[b, i, h] - t @ k, k)
            read[b, i, h] = t @ q
        fields[b, h] = t
    return read, fields


def in_coordinates(site, field):
    """The field `[B, H, m, v]` in the generator's frame as `T` `[B, H, v, m]`."""
    return np.einsum("bhmv,hmn->bhvn", field, site.generator.frame)


@pytest.mark.parametrize("shape", SHAPES)
def test_parallel_form_is_the_equation(shape, float64):
    """But for the ε under the norm of a point."""
    inputs = random_inputs(**shape)
    np.testing.assert_allclose(evolve(*inputs), equation(*inputs)[0], atol=1e-5)


def test_all_forms_agree(float64):
    """Chunks of any size, positions one by one, and pieces that go on from a field: read and field, to rounding."""
    site, *inputs = random_inputs(length=9)
    parallel = np.asarray(evolve(site, *inputs))
    field = jnp.zeros((2, 2, 5, 3))
    for i in range(9):
        field, read = evolve_step(site, field, *(x[:, i] for x in inputs))
        np.testing.assert_allclose(read, parallel[:, i], atol=1e-12)
    np.testing.assert_allclose(in_coordinates(site, field), equation(site, *inputs)[1], atol=1e-5)

    pieces = jnp.zeros((2, 2, 5, 3))
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        lengths = jnp.full(2, stop - start)
        pieces, read = master.evolve_more(site, pieces, *(x[:, start:stop] for x in inputs), lengths)
        np.testing.assert_allclose(read, parallel[:, start:stop], atol=1e-12)
    np.testing.assert_allclose(pieces, field, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 4, 9, 32])
def test_chunks_of_any_size_read_the_same(chunk, float64):
    site, *inputs = random_inputs(length=9)
    expected = delta.delta(*inputs, site.rate, chunk=3)
    np.testing.assert_allclose(delta.delta(*inputs, site.rate, chunk=chunk), expected, atol=1e-12)


def test_positions_past_a_sequences_length_leave_no_trace(float64):
    site, *inputs = random_inputs(length=6)
    start = normal(np.random.default_rng(3), 2, 2, 5, 3)
    ragged, _ = master.evolve_more(site, start, *inputs, jnp.array([4, 0]))
    alone, _ = master.evolve_more(site, start, *(x[:, :4] for x in inputs), jnp.array([4, 4]))
    np.testing.assert_allclose(ragged[0], alone[0], atol=1e-12)
    np.testing.assert_allclose(ragged[1], start[1], atol=1e-12)


def test_float32_forms_agree():
    """Over more positions than a chunk has."""
    site, *inputs = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), random_inputs(length=40))
    field, parallel = jnp.zeros((2, 2, 5, 3), jnp.float32), evolve(site, *inputs)
    for i in range(40):
        field, read = evolve_step(site, field, *(x[:, i] for x in inputs))
        np.testing.assert_allclose(read, parallel[:, i], atol=1e-4)


# --- adjoints --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_evolve_adjoint(shape):
    """Cotangents of rate, frame, frequency, points and pull; and the fused pass reads the same."""
    args = random_inputs(**shape)

    def adjoint(*args):
        return master.evolve_and_adjoint(*args)[1]

    check_adjoint(master.evolve, adjoint, args)


@pytest.mark.parametrize("chunk", [1, 4])
def test_delta_adjoint_over_several_chunks(chunk):
    site, *points = random_inputs(length=10)

    def adjoint(*args):
        return delta.delta_and_adjoint(*args, chunk=chunk)[1]

    check_adjoint(lambda *args: delta.delta(*args, chunk=chunk), adjoint, (*points, site.rate))


def test_fused_passes_read_what_the_forward_passes_read(float64):
    site, *inputs = random_inputs(length=10)
    cotangent = jnp.ones_like(inputs[2])
    np.testing.assert_allclose(master.evolve_and_adjoint(site, *inputs, cotangent)[0], evolve(site, *inputs), atol=1e-13)


# --- limits of the equation ------------------------------------------------------------------------------------------


def test_generator_is_hermitian_and_its_turn_keeps_the_norm(float64):
    """Without source and memory: `‖T‖` stands still while `T` moves, and turns by `e^{−iH}`."""
    site, query, key, value, _ = random_inputs(length=1)
    site = site._replace(rate=jnp.zeros(2))
    h = np.asarray(turn.hermitian(site.generator))
    np.testing.assert_allclose(h, np.conj(np.swapaxes(h, -1, -2)), atol=1e-14)
    values = np.sort(np.linalg.eigvalsh(h[0]))
    frequency = np.abs(site.generator.frequency[0])
    np.testing.assert_allclose(values, np.sort([*frequency, *-frequency, 0.0]), atol=1e-12)

    field = start = normal(np.random.default_rng(1), 2, 2, 5, 3)
    for _ in range(50):
        field, _ = evolve_step(site, field, query[:, 0], key[:, 0], value[:, 0], jnp.zeros((2, 2)))
    np.testing.assert_allclose(jnp.linalg.norm(field, axis=(2, 3)), jnp.linalg.norm(start, axis=(2, 3)), rtol=1e-12)
    assert np.abs(field - start).max() > 0.1
    turned = np.einsum("bhvm,hmn->bhvn", in_coordinates(site, start), np.array([expm(-50j * x) for x in h]).real)
    np.testing.assert_allclose(in_coordinates(site, field), turned, atol=1e-10)


def test_memory_fades_the_norm_by_its_rate(float64):
    site, query, key, value, _ = random_inputs(length=1)
    start = normal(np.random.default_rng(1), 2, 2, 5, 3)
    field, _ = evolve_step(site, start, query[:, 0], key[:, 0], value[:, 0], jnp.zeros((2, 2)))
    faded = np.exp(-site.rate)[None] * jnp.linalg.norm(start, axis=(2, 3))
    np.testing.assert_allclose(jnp.linalg.norm(field, axis=(2, 3)), faded, rtol=1e-12)


def test_no_pull_reads_nothing(float64):
    site, *points, pull = random_inputs()
    np.testing.assert_array_equal(evolve(site, *points, 0 * pull), 0 * points[2])


def test_certain_evidence_is_returned_exactly(float64):
    """`T k̂ = v` after one write with λ = 1, whatever the field held; and pairs at right angles do not disturb each other."""
    rng = np.random.default_rng(0)
    keys = jnp.asarray(np.linalg.qr(rng.standard_normal((4, 4)))[0])[None, :, None]
    values, one = normal(rng, 1, 4, 1, 3), jnp.ones((1, 1))
    field = normal(rng, 1, 1, 4, 3)
    for i in range(4):
        field, read = delta.delta_step(jnp.zeros(1), field, keys[:, i], keys[:, i], values[:, i], one)
        np.testing.assert_allclose(read, values[:, i], atol=1e-14)
    np.testing.assert_allclose(jnp.einsum("bhmv,bihm->bihv", field, keys), values, atol=1e-13)

    again = delta.delta(keys, jnp.tile(keys[:, :1], (1, 4, 1, 1)), values, jnp.ones((1, 4, 1)), jnp.zeros(1))
    np.testing.assert_allclose(again[:, 0], values[:, 0], atol=1e-14)
    over = delta.delta(
        jnp.tile(keys[:, :1], (1, 4, 1, 1)), jnp.tile(keys[:, :1], (1, 4, 1, 1)), values, jnp.ones((1, 4, 1)), jnp.zeros(1)
    )
    np.testing.assert_allclose(over, values, atol=1e-13)  # the newest value of a key, not the sum of all


@pytest.mark.parametrize("strength", [0.1, 0.6, 1.0])
def test_pull_contracts_to_the_evidence(strength, float64):
    """Along the key, `T k̂ − v` shrinks by `1 − λ`; across it the field stands still, so `‖T − E‖` never grows."""
    rng = np.random.default_rng(1)
    key = jnp.asarray(np.linalg.qr(rng.standard_normal((4, 4)))[0])[None, :1]
    value, field = normal(rng, 1, 1, 3), normal(rng, 1, 1, 4, 3)
    evidence = key[..., None] * value[..., None, :]
    for _ in range(3):
        after, _ = delta.delta_step(jnp.zeros(1), field, key, key, value, jnp.full((1, 1), strength))
        missed, before = (jnp.einsum("bhmv,bhm->bhv", x, key) - value for x in (after, field))
        np.testing.assert_allclose(missed, (1 - strength) * before, atol=1e-14)
        across = np.eye(4) - np.outer(key, key)
        np.testing.assert_allclose(across @ after[0, 0], across @ field[0, 0], atol=1e-14)
        assert jnp.linalg.norm(after - evidence) <= jnp.linalg.norm(field - evidence)
        field = after


def test_future_leaves_no_trace_in_the_past(float64):
    site, *inputs = random_inputs(length=8)
    changed = [x.at[:, 5].add(1.0) for x in inputs]
    np.testing.assert_array_equal(evolve(site, *inputs)[:, :5], evolve(site, *changed)[:, :5])
