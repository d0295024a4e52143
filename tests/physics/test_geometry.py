import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lior_jax.errors import UserError
from lior_jax.physics import base_geometry, geometry
from lior_jax.physics.numerics import softplus_inverse
from lior_jax.physics.rotor_planes import max_rotor_layers
from tests import oracles
from tests.oracles import check_adjoint, normal, random_metric

# One program a shape, instead of one an operation: compiling them is what takes the time.
dense_metric = jax.jit(geometry.dense_metric, static_argnames="block")
quad_form = jax.jit(geometry.quad_form, static_argnames="block")

# n, rotor layers, rank: odd and even n, no rotors, all rotors, no low rank.
SHAPES = [(2, 1, 0), (3, 0, 2), (4, 3, 1), (5, 5, 3), (7, 2, 0), (6, 0, 0)]


@st.composite
def shapes(draw):
    n = draw(st.integers(2, 6))
    return n, draw(st.integers(0, max_rotor_layers(n))), draw(st.integers(0, 3))


@st.composite
def block_shapes(draw):
    """Blocks, their size, rotor layers, rank."""
    block = draw(st.sampled_from([2, 4]))
    return draw(st.integers(1, 3)), block, draw(st.integers(0, block - 1)), draw(st.integers(0, 2))


def random_spd(n, seed=0):
    """Eigenvalues from 0.3 to 3 along random axes, symmetric to the last digit."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((n, n)))[0]
    matrix = axes @ np.diag(np.geomspace(0.3, 3, n)) @ axes.T
    return (matrix + matrix.T) / 2


def random_frame(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def metric_of_frame(metric, q):
    """`G = Ω² Q Λ Qᵀ + U D Uᵀ` for a given `Q`."""
    metric = oracles.to_numpy(metric)
    rigid = oracles.softplus(metric.scale) ** 2 * q @ np.diag(oracles.softplus(metric.stiffness)) @ q.T
    return rigid + metric.low_rank @ np.diag(oracles.softplus(metric.low_rank_stiffness)) @ metric.low_rank.T


def block_diagonal_frame(angles, n, block):
    """`Q` with the frame of each block on its diagonal; a layer's angles are those of the first block, then the next."""
    q, half = np.zeros((n, n)), block // 2
    for index, start in enumerate(range(0, n, block)):
        own = np.asarray(angles)[:, index * half : (index + 1) * half]
        q[start : start + block, start : start + block] = oracles.dense_frame(own, block)
    return q


# --- the base metric -------------------------------------------------------------------------------------------------


def test_base_metric_is_the_identity_by_default():
    np.testing.assert_array_equal(base_geometry.base_metric(3), np.eye(3))


def test_base_metric_is_the_given_one():
    given_one = random_spd(4)
    np.testing.assert_array_equal(base_geometry.base_metric(4, given_one), given_one)
    np.testing.assert_array_equal(base_geometry.base_metric(4, tuple(map(tuple, given_one))), given_one)


def test_a_base_metric_may_be_asymmetric_by_rounding():
    """`Q D Qᵀ` of a rotation is symmetric up to rounding, and rounding is all that is left of an entry that cancels."""
    for seed in range(20):
        axes = random_frame(4, seed)
        matrix = axes @ np.diag([3.0, 3.0, 3.0, 3.0]) @ axes.T
        np.testing.assert_allclose(base_geometry.base_metric(4, matrix), 3 * np.eye(4), atol=1e-14)


NOT_A_METRIC = {
    "too small": (np.eye(2), "2 x 2.*3 x 3"),
    "not square": (np.ones((3, 2)), "3 x 2.*3 x 3"),
    "rank 3": (np.ones((3, 3, 3)), "3 x 3 x 3.*3 x 3"),
    "a vector": ((1.0, 2.0, 3.0), "3 rows of 3 numbers"),
    "a number": (np.float64(2.0), "3 rows of 3 numbers"),
    "empty": ((), "3 rows of 3 numbers"),
    "ragged": (((1.0, 0.0, 0.0), (0.0, 1.0), (0.0, 0.0, 1.0)), "different lengths"),
    "not symmetric": (np.eye(3) + np.diag([0.1, 0.1], 1), "symmetric"),
    "antisymmetric": (np.eye(3) + 0.1 * (np.diag([1, 1], 1) - np.diag([1, 1], -1)), "symmetric"),
    "infinite": (np.diag([1.0, np.inf, 1.0]), "finite"),
    "not a number": (np.full((3, 3), np.nan), "finite"),
    "indefinite": (np.diag([1.0, 1.0, -0.5]), "positive definite.*-0.5"),
    "negative": (-np.eye(3), "positive definite.*-1"),
    "degenerate": (np.diag([1.0, 1.0, 0.0]), "positive definite"),
}


@pytest.mark.parametrize("name", NOT_A_METRIC)
def test_what_is_no_base_metric_is_refused_in_one_sentence(name):
    matrix, words = NOT_A_METRIC[name]
    with pytest.raises(UserError, match=words) as refusal:
        base_geometry.base_metric(3, matrix)
    assert "\n" not in str(refusal.value)
    assert "base metric" in str(refusal.value)


@given(n=st.integers(2, 6), seed=st.integers(0, 999))
def test_precomputed_geometry_is_its_definition(n, seed):
    g = random_spd(n, seed)
    made = base_geometry.precompute(base_geometry.base_metric(n, g))
    np.testing.assert_array_equal(made.metric, g)
    np.testing.assert_allclose(made.inverse @ g, np.eye(n), atol=1e-12)
    np.testing.assert_allclose(made.whitening.T @ made.whitening, g, atol=1e-13)
    inverse = np.linalg.solve(g, np.eye(n))
    kernel = np.zeros((n, n, n, n))
    for m, v, r, s in np.ndindex(n, n, n, n):
        kernel[m, v, r, s] = inverse[m, r] * inverse[v, s] / n**2
    np.testing.assert_allclose(base_geometry.contraction_kernel(made), kernel, atol=1e-13)


def test_points_whitened_by_the_base_are_measured_by_it(float64):
    """With λ = Ω = 1 the learned metric leaves the base alone, so `B x` is as long as `x` is in `g₀`; and any learned metric
    of `B x` is `Bᵀ G B`."""
    n, x = 4, normal(np.random.default_rng(2), 3, 4)
    base = base_geometry.precompute(base_geometry.base_metric(n, random_spd(n, 1)))
    metric, one = random_metric(n, 3, 2, seed=3), jnp.asarray(softplus_inverse(1.0))
    plain = metric._replace(stiffness=jnp.full(n, one), scale=one, low_rank=jnp.zeros((n, 2)))
    whitened = x @ base.whitening.T
    np.testing.assert_allclose(quad_form(plain, whitened), np.einsum("in,nm,im->i", x, base.metric, x), rtol=1e-12)
    g = base.whitening.T @ oracles.dense_metric(metric) @ base.whitening
    np.testing.assert_allclose(quad_form(metric, whitened), np.einsum("in,nm,im->i", x, g, x), rtol=1e-11)


# --- the metric ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "layers", "rank"), SHAPES)
def test_metric_is_its_formula(n, layers, rank, float64):
    metric = random_metric(n, layers, rank, seed=n)
    g = oracles.dense_metric(metric)
    x = normal(np.random.default_rng(1), 2, 3, n)
    np.testing.assert_allclose(dense_metric(metric), g, atol=1e-12)
    np.testing.assert_allclose(quad_form(metric, x), np.einsum("bln,nm,blm->bl", x, g, x), rtol=1e-11)
    assert geometry.whiten(metric, x[0].T).shape == (n + rank, 3)


@pytest.mark.parametrize(("n", "block", "layers", "rank"), [(6, 2, 1, 1), (8, 4, 3, 2), (4, 4, 3, 0)])
def test_metric_in_a_block_frame_is_its_formula(n, block, layers, rank, float64):
    metric = random_metric(n, layers, rank, seed=n)
    g = metric_of_frame(metric, block_diagonal_frame(metric.angles, n, block))
    x = normal(np.random.default_rng(1), 2, 3, n)
    np.testing.assert_allclose(dense_metric(metric, block=block), g, atol=1e-12)
    squared = quad_form(metric, x, block=block)
    np.testing.assert_allclose(squared, np.einsum("bln,nm,blm->bl", x, g, x), rtol=1e-11)


@pytest.mark.parametrize("block", [None, 2])
def test_metric_in_a_given_frame_is_its_formula(block, float64):
    """The metric's own angles, and their blocks, then count for nothing."""
    n, rank = 6, 2
    metric, frame = random_metric(n, 1, rank, seed=n), random_frame(n)
    g = metric_of_frame(metric, frame)
    x = normal(np.random.default_rng(1), 4, n)
    given_frame = jnp.asarray(frame)
    np.testing.assert_allclose(dense_metric(metric, given_frame, block), g, atol=1e-12)
    squared = quad_form(metric, x, given_frame, block)
    np.testing.assert_allclose(squared, np.einsum("in,nm,im->i", x, g, x), rtol=1e-11)


def test_whitening_has_the_axes_first_and_the_low_rank_last(float64):
    """`W = [Ω Λ^½ Qᵀ ; D^½ Uᵀ]` row by row, signs included: more than its square, the metric, can tell."""
    n, rank = 4, 2
    metric, x = random_metric(n, 3, rank, seed=5), normal(np.random.default_rng(6), n, 3)
    raw, positive = oracles.to_numpy(metric), oracles.softplus
    rigid = positive(raw.scale) * np.diag(positive(raw.stiffness) ** 0.5)
    soft = np.diag(positive(raw.low_rank_stiffness) ** 0.5) @ raw.low_rank.T
    for frame, q in ((None, oracles.dense_frame(raw.angles, n)), (jnp.asarray(random_frame(n)), random_frame(n))):
        expected = np.concatenate([rigid @ q.T, soft]) @ np.asarray(x)
        np.testing.assert_allclose(geometry.whiten(metric, x, frame), expected, atol=1e-12)
    np.testing.assert_allclose(geometry.rigidity(metric), np.diag(rigid), rtol=1e-12)


@given(shape=shapes(), seed=st.integers(0, 999), raw=st.floats(-12, 12))
def test_metric_is_positive_definite(shape, seed, raw):
    """`g(x, x) ≥ Ω² min λ ‖x‖²`, for raw parameters far from their usual size. The slack is the rounding of eigenvalues."""
    n, layers, rank = shape
    metric = random_metric(n, layers, rank, seed, spread=4.0)
    metric = metric._replace(scale=jnp.asarray(raw), low_rank=10 * metric.low_rank)
    with jax.enable_x64(True):
        g = np.asarray(dense_metric(oracles.to64(metric)))
    raw64 = oracles.to_numpy(metric)
    bound = oracles.softplus(raw64.scale) ** 2 * oracles.softplus(raw64.stiffness).min()
    eigenvalues = np.linalg.eigvalsh(g)
    np.testing.assert_allclose(g, g.T, rtol=0, atol=1e-15 * eigenvalues[-1])
    assert bound > 0
    assert eigenvalues[0] >= bound * (1 - 1e-9) - 1e-14 * eigenvalues[-1]


@pytest.mark.parametrize("raw", [-40.0, 0.0, 40.0])
def test_extreme_parameters_stay_finite(raw):
    """In float32: no negative distance, no infinity, no NaN, forward or backward."""
    metric = jax.tree.map(lambda x: (jnp.zeros_like(x) + raw).astype(jnp.float32), random_metric(4, 3, 2))
    x = normal(np.random.default_rng(3), 4, 5)
    distance = np.asarray(quad_form(metric, x.T))
    assert np.isfinite(distance).all()
    assert (distance >= 0).all()
    gradient = jax.jit(geometry.whiten_adjoint)(metric, x, jnp.ones((6, 5)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_quad_form_is_quadratic(float64):
    metric, x = random_metric(4, 2, 1), normal(np.random.default_rng(4), 6, 4)
    np.testing.assert_allclose(quad_form(metric, -3 * x), 9 * quad_form(metric, x), rtol=1e-12)
    assert quad_form(metric, 0 * x).max() == 0


# --- adjoints --------------------------------------------------------------------------------------------------------


@given(shape=shapes(), columns=st.integers(1, 4), seed=st.integers(0, 999))
@settings(max_examples=3)
@example(shape=(5, 5, 0), columns=3, seed=0)
@example(shape=(4, 0, 0), columns=1, seed=1)
def test_whiten_adjoint(shape, columns, seed):
    n, layers, rank = shape
    metric, x = random_metric(n, layers, rank, seed), normal(np.random.default_rng(seed + 1), n, columns)
    check_adjoint(geometry.whiten, geometry.whiten_adjoint, (metric, x), tol=1e-9, seed=seed)


@given(shape=block_shapes(), columns=st.integers(1, 3), seed=st.integers(0, 999))
@settings(max_examples=2)
@example(shape=(2, 4, 3, 1), columns=2, seed=0)
def test_whiten_adjoint_in_a_block_frame(shape, columns, seed):
    count, block, layers, rank = shape
    n = count * block
    metric, x = random_metric(n, layers, rank, seed), normal(np.random.default_rng(seed + 1), n, columns)

    def whiten(metric, x):
        return geometry.whiten(metric, x, block=block)

    def adjoint(metric, x, cotangent):
        return geometry.whiten_adjoint(metric, x, cotangent, block=block)

    check_adjoint(whiten, adjoint, (metric, x), tol=1e-9, seed=seed)


@given(shape=shapes(), columns=st.integers(1, 3), seed=st.integers(0, 999))
@settings(max_examples=2)
@example(shape=(4, 3, 2), columns=2, seed=0)
def test_whiten_adjoint_in_a_given_frame(shape, columns, seed):
    """The frame is treated as constant: the metric's angles, which do not determine it, get no gradient."""
    n, layers, rank = shape
    metric, x = random_metric(n, layers, rank, seed), normal(np.random.default_rng(seed + 1), n, columns)
    frame = random_frame(n, seed)

    def whiten(metric, x):
        return geometry.whiten(metric, x, jnp.asarray(frame))

    def adjoint(metric, x, cotangent):
        return geometry.whiten_adjoint(metric, x, cotangent, jnp.asarray(frame))

    check_adjoint(whiten, adjoint, (metric, x), tol=1e-9, seed=seed)
    with jax.enable_x64(True):
        gradient, _ = adjoint(*oracles.to64((metric, x)), jnp.ones((n + rank, columns)))
    np.testing.assert_array_equal(gradient.angles, np.zeros(metric.angles.shape))
