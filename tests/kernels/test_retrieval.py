"""The fused kernels, in Pallas' interpreter, against the plain form of retrieval, which has oracles of its own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from lior_jax.kernels import retrieval as fused
from lior_jax.physics import retrieval as plain
from lior_jax.physics.field_state import ReadOut
from lior_jax.physics.retrieval import Couplings
from lior_jax.physics.scores import LagPrior
from tests.oracles import normal

TERMS = ("prior", "field")


def random_inputs(parts=TERMS, batch=2, length=20, heads=2, m=3, v=4, lags=None, seed=0, dtype=np.float64):
    """Queries, keys, values, resilience, couplings, and a cotangent of what is retrieved."""
    rng = np.random.default_rng(seed)
    made = {name: normal(rng, heads, lags or length) for name in TERMS}
    couplings = Couplings(
        jnp.asarray(rng.uniform(0.1, 3.0, heads)),
        (LagPrior(made["prior"]),) * ("prior" in parts),
        (ReadOut(made["field"]),) * ("field" in parts),
    )
    points = [normal(rng, batch, length, heads, size) for size in (m, m, v)]
    inputs = (
        *points,
        jnp.asarray(rng.uniform(0.3, 2.0, (batch, length, heads))),
        couplings,
        normal(rng, batch, length, heads, v),
    )
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x), dtype), inputs)


def results(form, inputs, **options):
    """What is retrieved, by itself and beside the adjoint, and all cotangents, by name."""
    alone = jax.jit(partial(form.retrieve, **options))(*inputs[:-1])
    beside, (*points, couplings) = jax.jit(partial(form.retrieve_and_adjoint, **options))(*inputs)
    found = dict(zip(("alone", "beside", "queries", "keys", "values", "resilience"), (alone, beside, *points), strict=True))
    return found | {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(couplings)}


def check(inputs, tolerance):
    """Every result within the tolerance of the plain form in float64, relative to the largest number of its kind; or, where
    numbers cancel, no worse than three times the plain form in the inputs' own precision."""
    exact = results(plain, jax.tree.map(lambda x: jnp.asarray(np.asarray(x), np.float64), inputs))
    rounded, found = results(plain, inputs), results(fused, inputs, interpret=True)
    assert found.keys() == exact.keys()
    for name, x in exact.items():
        assert found[name].dtype == inputs[0].dtype
        allowed = max(tolerance * np.abs(x).max(), 3 * np.abs(rounded[name] - x).max())
        np.testing.assert_allclose(found[name], x, rtol=0, atol=allowed, err_msg=name)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 16 positions, so that short sequences have several."""
    monkeypatch.setattr(fused, "TILE", 16)


@pytest.mark.parametrize("parts", [(), ("prior",), ("field",), TERMS], ids=["none", "prior", "field", "all"])
def test_kernels_are_the_plain_form(parts, float64, small_tiles):
    check(random_inputs(parts, length=35), 1e-12)


@settings(max_examples=2, deadline=None)
@given(
    parts=st.sets(st.sampled_from(TERMS)),
    batch=st.integers(1, 3),
    length=st.integers(1, 70),
    heads=st.integers(1, 3),
    m=st.integers(1, 40),
    v=st.integers(1, 20),
    seed=st.integers(0, 999),
)
@example(parts=set(TERMS), batch=1, length=64, heads=1, m=16, v=16, seed=0)
@example(parts=set(TERMS), batch=2, length=65, heads=1, m=7, v=17, seed=1)
@example(parts=set(TERMS), batch=1, length=1, heads=2, m=1, v=1, seed=2)
@pytest.mark.slow
def test_kernels_in_float32_on_any_shape(parts, batch, length, heads, m, v, seed):
    """Lengths that are no multiple of a tile, one head, odd dimensions."""
    inputs = random_inputs(parts, batch, length, heads, m, v, seed=seed, dtype=np.float32)
    with jax.enable_x64(True):
        check(inputs, 1e-5)


def test_terms_may_know_more_lags_than_there_are_positions(float64, small_tiles):
    """What they say of the others has no effect, and gets a cotangent of zero."""
    inputs = random_inputs(length=18, lags=24)
    check(inputs, 1e-12)
    found = results(fused, inputs, interpret=True)
    assert (np.asarray(found[".scores[0].log_prior"])[:, 18:] == 0).all()


def test_close_points_far_from_the_origin():
    """In float32, 300 from the origin and 0.1 apart: measured from the first key, distances keep their digits."""
    inputs = random_inputs(("prior",), seed=3, dtype=np.float32)
    close = [(300 + 0.1 * x).astype(jnp.float32) for x in inputs[:2]]
    couplings = inputs[4]._replace(inverse_temperature=jnp.array([20.0, 5.0], jnp.float32))
    inputs = *close, *inputs[2:4], couplings, inputs[5]
    with jax.enable_x64(True):
        check(inputs, 1e-4)


def test_coincident_points(float64, small_tiles):
    """A query on top of a key has no pull; the square of its distance is zero, or what rounding makes of it."""
    queries, keys, *rest = random_inputs(seed=6)
    queries = queries.at[:, 3].set(keys[:, 1]).at[:, 18].set(keys[:, 2]).at[:, 0].set(keys[:, 0])
    check((queries, keys, *rest), 1e-10)


def test_great_scores(float64, small_tiles):
    """Thousands of units from each other: nothing overflows, and the greatest of a later tile takes over."""
    *inputs, couplings, _ = random_inputs(("prior",), length=40)
    couplings = couplings._replace(scores=(LagPrior(3000 * couplings.scores[0].log_prior),))
    expected = plain.retrieve(*inputs, couplings)
    np.testing.assert_allclose(fused.retrieve(*inputs, couplings, interpret=True), expected, atol=1e-11)


def test_coarse_products_stay_close():
    """bfloat16 has 8 bits, so each product of order one errs by about 1e-2: the kernels no more than twice the plain form."""
    inputs = random_inputs(seed=5, dtype=np.float32)
    exact, rounded = results(plain, inputs), results(plain, inputs, precision="bfloat16")
    found = results(fused, inputs, precision="bfloat16", interpret=True)
    for name, x in exact.items():
        error, of_plain = (np.linalg.norm(y[name] - x) / np.linalg.norm(x) for y in (found, rounded))
        assert 1e-4 < error < 2 * of_plain + 5e-3, name


def test_the_past_never_sees_the_future(small_tiles):
    """To the last bit."""
    inputs = random_inputs(length=40, dtype=np.float32)[:-1]
    later = [x.at[:, 21:].multiply(-7.0).at[:, 21:].add(3.0) for x in inputs[:4]]
    before, after = (fused.retrieve(*x, inputs[4], interpret=True) for x in (inputs[:4], later))
    np.testing.assert_array_equal(before[:, :21], after[:, :21])
    assert (np.asarray(before[:, 21:]) != np.asarray(after[:, 21:])).all()


def test_no_matrix_of_all_pairs_is_made():
    """Forward or backward, nothing that the program makes outside the kernels grows with the square of the length."""

    def largest(length):
        inputs = random_inputs(batch=2, length=length, heads=1, dtype=np.float32)
        program = jax.make_jaxpr(partial(fused.retrieve_and_adjoint, interpret=True))(*inputs)
        return max(x.aval.size for x in all_results(program.jaxpr))

    assert largest(1024) == 2 * largest(512)


def all_results(program):
    """What the equations of a program give, but for those of the kernels, whose tiles are small."""
    for equation in program.eqns:
        yield from equation.outvars
        if equation.primitive.name != "pallas_call":
            for inner in jaxprs_in_params(equation.params):
                yield from all_results(inner)
