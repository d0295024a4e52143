import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lior_jax.physics import geometry, pairwise
from lior_jax.physics.field_state import ReadOut
from lior_jax.physics.products import Spinor, Tensor, Wedge, two_form
from lior_jax.physics.retrieval import Couplings, retrieve, retrieve_and_adjoint, retrieve_window
from lior_jax.physics.scores import LagPrior
from tests import dense, oracles
from tests.oracles import check_adjoint, normal
from tests.parity import ParityBonus

# What a head may weigh by beside the distance.
EACH = ("prior", "resilience", "tensor", "area", "form", "spinor", "field")
NONE, ALL = (), EACH
CASES = {"none": NONE} | {name: (name,) for name in EACH} | {"all": ALL}
each_case = pytest.mark.parametrize("parts", CASES.values(), ids=CASES)


def random_inputs(parts=NONE, batch=2, length=6, heads=2, m=3, v=4, seed=0):
    """Queries, keys, values, resilience, couplings; couplings differ between heads and have both signs."""
    rng = np.random.default_rng(seed)
    points = normal(rng, batch, length, heads, m), normal(rng, batch, length, heads, m), normal(rng, batch, length, heads, v)
    temperature = jnp.asarray(rng.uniform(0.1, 3.0, heads))
    weight = jnp.asarray(rng.uniform(0.3, 2.0, (batch, length, heads)))
    made = {name: normal(rng, heads, scale=0.5) for name in ("tensor", "area", "spinor")}
    made |= {name: normal(rng, heads, length) for name in ("prior", "field")}
    made["form"] = two_form(normal(rng, heads, m, m, scale=0.5))
    wedge = Wedge(*(made[name] if name in parts else 0 * made[name] for name in ("area", "form")))
    terms = {"prior": LagPrior(made["prior"]), "tensor": Tensor(made["tensor"]), "spinor": Spinor(made["spinor"])}
    scores = [term for name, term in terms.items() if name in parts] + [wedge] * bool({"area", "form"} & set(parts))
    couplings = Couplings(temperature, tuple(scores), (ReadOut(made["field"]),) * ("field" in parts))
    return *points, weight if "resilience" in parts else jnp.ones_like(weight), couplings


def of_sequence(queries, keys):
    return pairwise.of_sequence(*map(pairwise.heads_first, (queries, keys)), "float32")


def boltzmann(queries, keys, weight, couplings):
    """The weights themselves: what is retrieved of values that are the unit vectors of the positions."""
    batch, length, heads, _ = keys.shape
    values = jnp.broadcast_to(jnp.eye(length)[None, :, None], (batch, length, heads, length))
    return np.asarray(retrieve(queries, keys, values, weight, couplings)).transpose(0, 2, 1, 3)


@each_case
def test_retrieval_is_its_displacement_form(parts, float64):
    """Displacements, bivectors and fields one by one."""
    inputs = random_inputs(parts)
    expected, _ = dense.retrieve(*inputs)
    np.testing.assert_allclose(retrieve(*inputs), expected, atol=1e-11)


@pytest.mark.parametrize(("length", "heads"), [(1, 1), (9, 3)])
@pytest.mark.parametrize("parts", [NONE, ALL], ids=["none", "all"])
def test_retrieval_of_other_shapes(length, heads, parts, float64):
    inputs = random_inputs(parts, length=length, heads=heads, seed=1)
    np.testing.assert_allclose(retrieve(*inputs), dense.retrieve(*inputs)[0], atol=1e-11)


@each_case
def test_every_part_is_seen(parts, float64):
    """What is there changes the result, by more than any rounding."""
    *inputs, weight, couplings = random_inputs(parts)
    bare = retrieve(*inputs, jnp.ones_like(weight), Couplings(couplings.inverse_temperature))
    changed = np.abs(retrieve(*inputs, weight, couplings) - bare).max()
    assert changed > 0.05 if parts else changed == 0


def test_whitened_distance_is_the_metric_of_the_displacement(float64):
    metric, rng = oracles.random_metric(4, 3, 2), np.random.default_rng(1)
    queries, keys = normal(rng, 1, 5, 1, 4), normal(rng, 1, 5, 1, 4)
    whitened = [geometry.whiten(metric, x[0, :, 0].T).T[None, :, None] for x in (queries, keys)]
    displacement = np.asarray(queries[0, :, None, 0] - keys[0, None, :, 0])
    expected = np.einsum("ijm,mn,ijn->ij", displacement, oracles.dense_metric(metric), displacement)
    np.testing.assert_allclose(of_sequence(*whitened).squared[0, 0], expected, atol=1e-11)


# --- points far from the origin --------------------------------------------------------------------------------------


def test_close_points_far_from_the_origin():
    """In float32, 1000 from the origin and 0.01 apart: expanded about the origin, squares of 1e6 would drown distances of
    1e-4. The inputs are exact; only the arithmetic may err."""
    rng = np.random.default_rng(2)
    points = (1000 + 0.01 * rng.standard_normal((2, 2, 8, 1, 4))).astype(np.float32)
    squared = of_sequence(jnp.asarray(points[0]), jnp.asarray(points[1])).squared
    exact = points.astype(np.float64)
    expected = np.square(exact[0][:, :, None, 0] - exact[1][:, None, :, 0]).sum(-1)
    np.testing.assert_allclose(squared[:, 0], expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("parts", [NONE, ("prior", "resilience"), ("form",)], ids=["none", "prior", "form"])
def test_retrieval_of_near_duplicates_in_float32(parts):
    """300 from the origin and 0.1 apart. The 2-form, too, is exact: of `qᵀ Ω k` it needs only what differs between keys."""
    queries, keys, values, weight, couplings = random_inputs(parts, seed=3)
    close = [(300 + 0.1 * x).astype(jnp.float32) for x in (queries, keys)]
    couplings = couplings._replace(inverse_temperature=jnp.array([20.0, 5.0]))
    weaker = [term._replace(form=0.1 * term.form) if isinstance(term, Wedge) else term for term in couplings.scores]
    couplings = couplings._replace(scores=tuple(weaker))
    expected, _ = dense.retrieve(*close, values, weight, couplings)
    np.testing.assert_allclose(retrieve(*close, values, weight, couplings), expected, atol=1e-4)


@pytest.mark.parametrize("part", ["tensor", "field"])
def test_distances_stay_exact_beside_products(part):
    """A gate of zero requires the uncentred product, which must not make the distance less accurate."""
    queries, keys, values, weight, couplings = random_inputs((part,), seed=3)
    close = [(300 + 0.1 * x).astype(jnp.float32) for x in (queries, keys)]
    silent = jax.tree.map(jnp.zeros_like, couplings)._replace(inverse_temperature=jnp.array([20.0, 5.0]))
    expected, _ = dense.retrieve(*close, values, weight, silent)
    np.testing.assert_allclose(retrieve(*close, values, weight, silent), expected, atol=1e-4)


@pytest.mark.parametrize("parts", [("tensor",), ("area", "spinor"), ("field",)], ids=["tensor", "area", "field"])
def test_products_are_measured_from_the_origin(parts, float64):
    """However distances are centred: moved by 5 along every axis, products are others, and still those of the definition."""
    queries, keys, *rest = random_inputs(parts, seed=4)
    moved = retrieve(queries + 5.0, keys + 5.0, *rest)
    np.testing.assert_allclose(moved, dense.retrieve(queries + 5.0, keys + 5.0, *rest)[0], atol=1e-9)
    assert np.abs(moved - retrieve(queries, keys, *rest)).max() > 0.05


def test_uncentred_product_in_float32():
    """A field of one reads the values times the product itself, 4e5 here: right to float32's last digits."""
    rng = np.random.default_rng(5)
    queries, keys = ((300 + rng.standard_normal((1, 6, 1, 4))).astype(np.float32) for _ in range(2))
    values = jnp.eye(6, dtype=jnp.float32)[None, :, None]
    couplings, ones = Couplings(jnp.ones(1), mixing=(ReadOut(jnp.ones((1, 6))),)), jnp.ones((1, 6, 1))
    read = np.asarray(retrieve(jnp.asarray(queries), jnp.asarray(keys), values, ones, couplings))[0, :, 0]
    expected = np.tril(queries[0, :, 0].astype(np.float64) @ keys[0, :, 0].astype(np.float64).T)
    np.testing.assert_allclose(read, expected, rtol=1e-6, atol=1.0)  # Boltzmann weights add at most one


@pytest.mark.parametrize("parts", [NONE, ("prior", "resilience")], ids=["none", "prior"])
def test_translation_changes_nothing(parts, float64):
    """Of distances."""
    queries, keys, *rest = random_inputs(parts, seed=4)
    np.testing.assert_allclose(retrieve(queries + 5.0, keys + 5.0, *rest), retrieve(queries, keys, *rest), atol=1e-11)


# --- weights ---------------------------------------------------------------------------------------------------------


@each_case
def test_the_past_never_sees_the_future(parts):
    """To the last bit: later queries, keys, values and their resilience change nothing before them."""
    *inputs, couplings = random_inputs(parts, length=6)
    before = retrieve(*inputs, couplings)
    later = [x.at[:, 4:].multiply(-7.0).at[:, 4:].add(3.0) for x in inputs[:3]]
    after = retrieve(*later, inputs[3].at[:, 4:].multiply(3.0), couplings)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (np.asarray(before[:, 4:]) != np.asarray(after[:, 4:])).all()


def test_weights_are_causal_probabilities():
    """Whatever is added to the scores; the field reads beside them."""
    queries, keys, _, weight, couplings = random_inputs(ALL)
    couplings = couplings._replace(inverse_temperature=10 * couplings.inverse_temperature, mixing=())
    weights = boltzmann(30 * queries, 30 * keys, weight, couplings)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    assert (weights >= 0).all()
    above = np.triu(np.ones((6, 6), bool), 1)
    assert (weights[:, :, above] == 0).all()
    assert (weights[:, :, 0, 0] == 1).all()


def test_weights_of_given_scores():
    scores = jnp.log(jnp.array([[1.0, 9.0, 9.0], [3.0, 1.0, 9.0], [1.0, 2.0, 5.0]]))[None, None]
    expected = np.array([[1, 0, 0], [0.75, 0.25, 0], [0.125, 0.25, 0.625]])
    np.testing.assert_allclose(pairwise.weights(scores, pairwise.Causal(3, 3, 3).visible)[0, 0], expected, rtol=1e-6)


def test_colder_and_nearer_weigh_more(float64):
    """Three keys at distances 0, 1, 2 and no prior: weights fall by `e^−βR` per unit of distance (the epsilon aside)."""
    keys = jnp.array([2.0, 1.0, 0.0])[None, :, None, None]
    queries = jnp.zeros_like(keys)
    for beta, resilience in ((0.5, 1.0), (3.0, 1.0), (0.5, 4.0)):
        weight, fall = jnp.full((1, 3, 1), resilience), np.exp(beta * resilience)
        weights = boltzmann(queries, keys, weight, Couplings(jnp.array([beta])))[0, 0, 2]
        np.testing.assert_allclose(weights[1] / weights[0], fall, rtol=1e-3)
        np.testing.assert_allclose(weights[2] / weights[1], fall**0.99, rtol=1e-3)  # sqrt(ε) = 0.01 at zero


def test_prior_weighs_by_lag(float64):
    """Where all points coincide the weights are the prior alone, and lag 0 is the position itself."""
    points, prior = jnp.ones((1, 4, 1, 2)), np.log([[1.0, 0.5, 0.2, 0.3]])
    couplings = Couplings(jnp.ones(1), (LagPrior(jnp.asarray(prior)),))
    weights = boltzmann(points, points, jnp.ones((1, 4, 1)), couplings)[0, 0]
    np.testing.assert_allclose(weights[3], [0.15, 0.1, 0.25, 0.5], rtol=1e-12)
    np.testing.assert_allclose(weights[1], [1 / 3, 2 / 3, 0, 0], rtol=1e-12)


def test_resilience_is_the_querys(float64):
    """A query of great resilience sees only what is near; its own keys are as visible to others as before."""
    queries, keys, values, weight, couplings = random_inputs(("resilience",), seed=9)
    before, after = (retrieve(queries, keys, values, w, couplings) for w in (weight, weight.at[:, 3].multiply(5.0)))
    others = np.array([0, 1, 2, 4, 5])
    np.testing.assert_array_equal(np.asarray(before)[:, others], np.asarray(after)[:, others])
    assert (np.asarray(before)[:, 3] != np.asarray(after)[:, 3]).all()


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("parts", [NONE, ALL], ids=["none", "all"])
def test_coarse_products_stay_close(precision, parts):
    """bfloat16 has 8 bits: each of its products of order one errs by about 1e-2."""
    inputs = random_inputs(parts, seed=5)
    expected = dense.retrieve(*inputs)[0]
    tolerance = 3e-2 if parts == NONE else 1e-2 * np.abs(expected).max()
    np.testing.assert_allclose(retrieve(*inputs, precision), expected, atol=tolerance)


@each_case
@pytest.mark.parametrize("tile", [1, 4, 5, 9, 20])
def test_tiles_retrieve_the_same(parts, tile, float64):
    """Of any size, whether or not it divides the length."""
    inputs = random_inputs(parts, length=9)
    np.testing.assert_allclose(retrieve(*inputs, tile=tile), dense.retrieve(*inputs)[0], atol=1e-11)


def test_loops_over_tiles_are_one_program_however_many(float64):
    inputs = random_inputs(ALL, batch=1, length=19, heads=1)
    np.testing.assert_allclose(retrieve(*inputs, tile=2), dense.retrieve(*inputs)[0], atol=1e-11)

    def size(length):
        inputs = random_inputs(NONE, batch=1, length=length, heads=1)
        traced = jax.make_jaxpr(lambda *inputs: retrieve_and_adjoint(*inputs, inputs[2], tile=2))(*inputs)
        return len(list(oracles.equations(traced.jaxpr)))

    assert size(24) == size(128) < size(16)


@pytest.mark.parametrize("adjoint", [False, True], ids=["forward", "adjoint"])
def test_tiles_make_no_matrix_of_all_pairs(adjoint):
    """Nothing in the program is as large as the square of the length. (Toeplitz rows and their diagonals' sums hold
    `T (L + T)`.)"""
    length, tile = 64, 8
    inputs = random_inputs(ALL, batch=1, length=length, heads=1)

    def run(*inputs):
        return retrieve_and_adjoint(*inputs, inputs[2], tile=tile) if adjoint else retrieve(*inputs, tile=tile)

    traced = oracles.equations(jax.make_jaxpr(run)(*inputs).jaxpr)
    sizes = [x.aval.size for equation in traced for x in equation.outvars]
    assert 0 < max(sizes) <= tile * (length + tile) + length < length**2 / 4


# --- the adjoint -----------------------------------------------------------------------------------------------------


def check(inputs, tile=None):
    check_adjoint(retrieve, lambda *args: retrieve_and_adjoint(*args, tile=tile)[1], inputs, tol=1e-7)


@each_case
def test_retrieve_and_adjoint(parts):
    """Queries, keys, values, resilience and every coupling."""
    check(random_inputs(parts))


@pytest.mark.slow
@settings(max_examples=6)
@given(
    parts=st.sets(st.sampled_from(EACH)),
    length=st.integers(1, 7),
    heads=st.integers(1, 3),
    m=st.integers(1, 4),
    v=st.integers(1, 3),
    seed=st.integers(0, 999),
)
@example(parts=set(ALL), length=1, heads=1, m=1, v=1, seed=0)
@example(parts=set(ALL), length=7, heads=3, m=4, v=2, seed=1)
def test_retrieve_adjoint_on_any_shape(parts, length, heads, m, v, seed):
    check(random_inputs(parts, 2, length, heads, m, v, seed))


@each_case
@pytest.mark.parametrize("tile", [3, 4])
def test_retrieve_adjoint_of_tiles(parts, tile):
    """Against the dense adjoint's oracle, where the tile divides the length and where it does not."""
    check(random_inputs(parts, length=8), tile)


@pytest.mark.parametrize("parts", [NONE, ALL], ids=["none", "all"])
def test_retrieve_adjoint_of_loops_over_tiles(parts):
    """Nine tiles, which are more than are compiled one by one, and a rest."""
    check(random_inputs(parts, length=19), 2)


@pytest.mark.parametrize("parts", [NONE, ("prior", "resilience", "tensor", "form", "field")], ids=["none", "most"])
def test_retrieve_adjoint_with_coincident_points(parts):
    """A query on top of a key: the distance has a kink there without the epsilon, and its gradient is zero with it. (Area and
    spinor have kinks of their own, at parallel and at opposite vectors.)"""
    queries, keys, *rest = random_inputs(parts, seed=6)
    queries = queries.at[:, 3].set(keys[:, 1]).at[:, 2].set(keys[:, 2]).at[:, 0].set(keys[:, 0])
    keys = keys.at[:, 4].set(keys[:, 0])
    check((queries, keys, *rest))


def test_retrieve_adjoint_returns_the_forward_result():
    inputs = random_inputs(ALL, seed=7)
    retrieved, _ = retrieve_and_adjoint(*inputs, jnp.ones_like(inputs[2]))
    np.testing.assert_allclose(retrieved, retrieve(*inputs), rtol=1e-5, atol=1e-5)


def test_forces_between_queries_and_keys_balance(float64):
    """Only displacements matter without products, so the cotangents of all queries and keys of a sequence add up to zero."""
    inputs = random_inputs(("prior", "resilience"), seed=8)
    _, (c_queries, c_keys, *_) = jax.jit(retrieve_and_adjoint)(*inputs, inputs[2] ** 2)
    assert np.abs(c_queries).max() > 0.1
    np.testing.assert_allclose(jnp.sum(c_queries + c_keys, axis=1), 0.0, atol=1e-12)


# --- a window of keys ------------------------------------------------------------------------------------------------


@each_case
def test_a_window_in_any_order_retrieves_the_same(parts, float64):
    """The last queries of a sequence, keys shuffled, some of them later ones and so hidden: what the whole sequence retrieves
    there, but for the field state, which a window does not read."""
    queries, keys, values, weight, couplings = random_inputs(parts, length=8)
    order, last = np.random.default_rng(9).permutation(8), slice(5, 8)
    lag = np.arange(8)[last, None] - order[None]
    visible = jnp.broadcast_to(jnp.asarray(lag >= 0)[None], (2, 3, 8))
    inputs = queries[:, last], keys[:, order], values[:, order], weight[:, last], couplings
    found = retrieve_window(*inputs, jnp.asarray(lag), visible)
    expected, weights = dense.retrieve(queries, keys, values, weight, couplings._replace(mixing=()))
    np.testing.assert_allclose(found.values, expected[:, last], atol=1e-11)
    np.testing.assert_allclose(found.weight, weights[:, :, last][..., order], atol=1e-11)


def test_a_window_of_close_points_far_from_the_origin():
    """In float32, as for whole sequences: 300 from the origin and 0.1 apart."""
    queries, keys, values, weight, couplings = random_inputs(seed=3)
    close = [(300 + 0.1 * x).astype(jnp.float32) for x in (queries, keys)]
    couplings = couplings._replace(inverse_temperature=jnp.array([20.0, 5.0]))
    lag, visible = jnp.arange(5, -1, -1)[None], jnp.ones((2, 1, 6), bool)
    found = retrieve_window(close[0][:, -1:], close[1], values, weight[:, -1:], couplings, lag, visible)
    expected, _ = dense.retrieve(*close, values, weight, couplings)
    np.testing.assert_allclose(found.values, expected[:, -1:], atol=1e-4)


# --- a term of one's own ---------------------------------------------------------------------------------------------


def with_bonus(parts, **shape):
    *inputs, couplings = random_inputs(parts, **shape)
    heads = len(couplings.inverse_temperature)
    bonus = ParityBonus(normal(np.random.default_rng(3), heads))
    return *inputs, couplings._replace(scores=(*couplings.scores, bonus))


@pytest.mark.parametrize("tile", [None, 3])
@pytest.mark.parametrize("parts", [NONE, ALL], ids=["none", "all"])
def test_a_term_from_outside_is_a_term_like_others(parts, tile):
    """Through the whole adjoint against automatic differentiation, alone and among all others."""
    check(with_bonus(parts, length=7), tile)


def test_a_term_from_outside_is_retrieved_by(float64):
    """In both forms: where all points coincide, the weights are the bonus by lag."""
    points, ones, couplings = jnp.ones((1, 4, 1, 2)), jnp.ones((1, 4, 1)), Couplings(jnp.ones(1), (ParityBonus(jnp.ones(1)),))
    raised = np.exp([np.cos(2.0), 0.0, np.cos(2.0), 0.0][::-1])
    np.testing.assert_allclose(boltzmann(points, points, ones, couplings)[0, 0, 3], raised / raised.sum(), rtol=1e-12)
    lag, visible = jnp.arange(3, -1, -1)[None], jnp.ones((1, 1, 4), bool)
    found = retrieve_window(points[:, :1], points, points, ones[:, :1], couplings, lag, visible)
    np.testing.assert_allclose(found.weight[0, 0, 0], raised / raised.sum(), rtol=1e-12)
