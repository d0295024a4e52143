from math import cos, pi, sin

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lior_jax.errors import UserError
from lior_jax.physics import geometry, products
from lior_jax.physics.pairwise import heads_first, of_sequence
from lior_jax.physics.products import PRODUCT_EPSILON, Spinor, Tensor, Wedge
from lior_jax.physics.retrieval import Couplings, retrieve
from tests import oracles
from tests.oracles import check_adjoint, normal

B, H, L, M = 2, 3, 4, 4
TERMS = ["tensor", "wedge", "spinor"]
ANGLES = [0.0, 0.3, pi / 3, pi / 2, 2.0, 3.0, pi]


def random_axes(m=M, seed=0):
    """Orthonormal vectors in columns."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((m, m)))[0]


def pair_at(angle, q_length=1.0, k_length=1.0, seed=0):
    """Two vectors with the angle between them, in a random plane."""
    a, b = random_axes(seed=seed)[:, :2].T
    return q_length * a, k_length * (cos(angle) * a + sin(angle) * b)


def from_vectors(function, q, k):
    """A product of all pairs of `q`, `k` `[..., m]`, from `⟨q,k⟩` and the squared norms."""
    q, k = jnp.asarray(q), jnp.asarray(k)
    return np.asarray(function(jnp.sum(q * k, -1), jnp.sum(q * q, -1), jnp.sum(k * k, -1)))


def pairs(q, k):
    """`⟨q_i, k_j⟩` and the squared norms, in the shapes of `pairwise`, of `q`, `k` `[B, H, L, m]`."""
    q, k = jnp.asarray(q), jnp.asarray(k)
    return jnp.einsum("bhim,bhjm->bhij", q, k), jnp.sum(q * q, -1)[..., None], jnp.sum(k * k, -1)[:, :, None]


def random_vectors(seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return scale * rng.standard_normal((2, B, H, L, M))


def random_term(name, seed=1):
    """Of both signs, different in every head."""
    rng = np.random.default_rng(seed)
    gate, form = normal(rng, H), products.two_form(normal(rng, H, M, M))
    return {"tensor": Tensor(gate), "wedge": Wedge(gate, form), "spinor": Spinor(gate)}[name]


# --- tensor, area and spinor of two vectors --------------------------------------------------------------------------


def test_area_is_the_norm_of_the_wedge_product(float64):
    """`area² − ε` is the sum of the squared 2 x 2 minors of `q` and `k`."""
    q, k = random_vectors()
    minors = sum((q[..., i] * k[..., j] - q[..., j] * k[..., i]) ** 2 for i in range(M) for j in range(i))
    np.testing.assert_allclose(from_vectors(products.area, q, k) ** 2 - PRODUCT_EPSILON, minors, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("factor", [1.0, 2.5, -1.0, -0.4, 0.0])
def test_area_of_parallel_vectors_is_zero_to_the_root_of_epsilon(factor, float64):
    q = random_vectors()[0]
    np.testing.assert_allclose(from_vectors(products.area, q, factor * q), PRODUCT_EPSILON**0.5, rtol=1e-9)


def test_area_of_orthogonal_unit_vectors_is_one(float64):
    """Up to `ε / 2`."""
    q, k = pair_at(pi / 2)
    np.testing.assert_allclose(from_vectors(products.area, q, k), 1, atol=0.6 * PRODUCT_EPSILON)


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("lengths", [(1.0, 1.0), (0.5, 3.0)])
def test_spinor_is_the_cosine_of_half_the_angle(angle, lengths, float64):
    """1, `√½`, 0 for unit vectors at 0, π/2, π. The root's `ε`, and half of that inside the lengths, add at most `1.75 ε`
    to the square; and never less than nothing, so the spinor is positive."""
    value = from_vectors(products.spinor, *pair_at(angle, *lengths))
    exact = lengths[0] * lengths[1] * cos(angle / 2)
    assert value > 0
    assert 0 < value**2 - exact**2 < 1.76 * PRODUCT_EPSILON


def test_products_do_not_change_when_both_vectors_turn(float64):
    q, k = random_vectors()
    turn = random_axes(seed=3)
    for function in (products.area, products.spinor, lambda product, *_: product):
        np.testing.assert_allclose(from_vectors(function, q @ turn, k @ turn), from_vectors(function, q, k), rtol=1e-9)


@pytest.mark.parametrize("length", [0.0, 1e-6, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("factor", [1.0, -1.0, -0.7, 0.0])
def test_products_of_parallel_and_zero_vectors_are_finite(length, factor):
    """In float32, where rounding can take what is under a root below zero; and so is the adjoint."""
    q = length * random_vectors(seed=5)[0]
    seen = [x.astype(jnp.float32) for x in pairs(q, factor * q)]
    for value, adjoint in ((products.area, products.area_adjoint), (products.spinor, products.spinor_adjoint)):
        assert np.isfinite(jax.jit(value)(*seen)).all()
        gradient = jax.jit(adjoint)(*seen, jnp.ones_like(seen[0]))
        assert all(np.isfinite(x).all() for x in gradient)


@pytest.mark.parametrize("factor", [-0.7, -1.0, -3.0])
def test_spinor_of_large_opposite_vectors_is_small_beside_their_lengths(factor):
    """In float32, at lengths of about 60: `r (r + ⟨q,k⟩) / 2` cancels to `r²` times a few roundings of 6e-8."""
    q = np.asarray(random_vectors(seed=6, scale=30.0)[0], np.float32)
    value = from_vectors(products.spinor, q, np.float32(factor) * q)
    lengths = np.abs(factor) * np.sum(q * q, -1)
    assert (value >= 0).all()
    assert (value < 2e-3 * lengths + 0.02).all()


# --- adjoints, and terms of scores -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["area", "spinor"])
def test_adjoint_of_products_and_squares(name):
    """To the product and the squared norms; among the products some larger than the lengths allow, as rounding makes them for
    parallel and opposite vectors, where neither area nor spinor has a slope or an imaginary value."""
    product, q_squared, k_squared = pairs(*random_vectors(seed=2))
    row, beyond = jnp.arange(L)[None, None, :, None], 1.1 * jnp.sqrt(q_squared * k_squared)
    product = jnp.where(row == 1, beyond, jnp.where(row == 2, -beyond, product))
    args = product, q_squared, k_squared
    check_adjoint(getattr(products, name), getattr(products, f"{name}_adjoint"), args, tol=1e-9)


@pytest.mark.parametrize("name", TERMS)
def test_score_is_the_gated_product_of_all_pairs(name, float64):
    """The 2-form, of which only differences between keys count, measures keys from the first."""
    q, k = random_vectors()
    term = random_term(name)
    expected = np.zeros((B, H, L, L))
    for b, h, i, j in np.ndindex(expected.shape):
        x, y = q[b, h, i], k[b, h, j]
        lengths = np.sqrt(x @ x * (y @ y) + PRODUCT_EPSILON)
        gate = np.asarray(term[0])[h]
        expected[b, h, i, j] = {
            "tensor": gate * (x @ y),
            "wedge": gate * np.sqrt(np.sum((np.outer(x, y) - np.outer(y, x)) ** 2) / 2 + PRODUCT_EPSILON),
            "spinor": gate * np.sqrt(lengths * (lengths + x @ y) / 2 + PRODUCT_EPSILON),
        }[name]
        if name == "wedge":
            expected[b, h, i, j] += x @ np.asarray(term.form)[h] @ (y - k[b, h, 0])
    score = term.score(of_sequence(jnp.asarray(q), jnp.asarray(k), "float32"))
    np.testing.assert_allclose(score, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", TERMS)
def test_score_adjoint(name):
    """To the term and to both points, as Boltzmann weights see a score: what a whole row has in common counts for nothing, and
    the cotangents of a row add up to nothing."""

    def score(term, q, k):
        return centred(term.score(of_sequence(q, k, "float32")))

    def adjoint(term, q, k, cotangent):
        seen = of_sequence(q, k, "float32")
        c_term, c_pairs = term.score_adjoint(seen, centred(cotangent))
        return c_term, *map(heads_first, seen.points_adjoint([c_pairs]))

    def centred(x):
        return x - jnp.mean(x, -1, keepdims=True)

    check_adjoint(score, adjoint, (random_term(name), *map(jnp.asarray, random_vectors(seed=2))), tol=1e-9)


# --- attention by a product --------------------------------------------------------------------------------------------


def metric_weighted(name, g, q, k):
    """The product of two vectors under a metric `g`, from all components of the bivector, or from lengths and angle."""
    q_length, k_length = np.sqrt(q @ g @ q), np.sqrt(k @ g @ k)
    if name == "tensor":
        return q @ g @ k
    if name == "wedge":
        wedge = np.outer(q, k) - np.outer(k, q)
        return np.sqrt(0.5 * np.einsum("ab,ac,bd,cd", wedge, g, g, wedge))
    return q_length * k_length * cos(np.arccos(q @ g @ k / (q_length * k_length)) / 2)


@pytest.mark.parametrize("name", TERMS)
def test_attend_weighs_by_the_products_under_the_metric(name, float64):
    """Causal, and normalised; ε moves a product by little."""
    rng = np.random.default_rng(3)
    q, k, v = rng.standard_normal((3, B, L, H, M))
    metric = np.stack([a @ a.T + 0.3 * np.eye(M) for a in rng.standard_normal((H, M, M))])
    found = products.attend(*(jnp.asarray(x) for x in (q[:, 1:], k, v, metric)), name)
    for b, i, h in np.ndindex(B, L - 1, H):
        scores = [metric_weighted(name, metric[h], q[b, i + 1, h], k[b, j, h]) / np.sqrt(M) for j in range(i + 2)]
        weight = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(found[b, i, h], weight @ v[b, : i + 2, h], atol=1e-3)


@pytest.mark.parametrize("name", TERMS)
def test_attend_is_the_models_retrieval_by_that_score_alone(name, float64):
    """Retrieval of a distance that weighs nothing, with the model's whitening of its metric and the term at the same gate."""
    rng = np.random.default_rng(4)
    metric = oracles.random_metric(M, 2, 2)
    dense = np.tile(oracles.dense_metric(metric), (2, 1, 1))
    q, k = (normal(rng, B, L, 2, M) for _ in range(2))
    v, white = normal(rng, B, L, 2, 3), geometry.whiten(oracles.to64(metric), jnp.eye(M))
    gate = jnp.full(2, M**-0.5)
    term = {"tensor": Tensor(gate), "wedge": Wedge(gate, jnp.zeros((2, M + 2, M + 2))), "spinor": Spinor(gate)}[name]
    seen = (jnp.einsum("blhn,mn->blhm", x, white) for x in (q, k))
    retrieved = retrieve(*seen, v, jnp.ones((B, L, 2)), Couplings(jnp.zeros(2), (term,)))
    np.testing.assert_allclose(products.attend(q, k, v, jnp.asarray(dense), name), retrieved, atol=1e-9)


def test_attend_refuses_other_products():
    points = jnp.ones((1, 2, 1, 3))
    with pytest.raises(UserError, match="must be tensor, wedge or spinor"):
        products.attend(points, points, points, jnp.eye(3)[None], "cross")


# --- the signed 2-form -----------------------------------------------------------------------------------------------


def test_two_form_is_antisymmetric_and_bilinear(float64):
    """`qᵀ Ω k = −kᵀ Ω q`, so `qᵀ Ω q = 0`; and linear in each vector."""
    rng = np.random.default_rng(4)
    omega = np.asarray(products.two_form(normal(rng, H, M, M)))

    def form(q, k):
        return np.einsum("i,hij,j->h", q, omega, k)

    q, p, k = rng.standard_normal((3, M))
    assert (np.abs(form(q, k)) > 1e-2).all()
    np.testing.assert_allclose(omega, -omega.transpose(0, 2, 1), rtol=0)
    np.testing.assert_allclose(form(q, k), -form(k, q), rtol=1e-12)
    np.testing.assert_allclose(form(q, q), 0, atol=1e-13)
    np.testing.assert_allclose(form(2 * q - 3 * p, k), 2 * form(q, k) - 3 * form(p, k), rtol=1e-11)


def test_two_form_of_a_coordinate_plane_is_the_signed_area_there(float64):
    """`A = e₀ e₁ᵀ` gives `q₀ k₁ − q₁ k₀`: positive if `k` lies on the side of `q` that axis 1 lies on from axis 0."""
    omega = np.asarray(products.two_form(jnp.zeros((M, M)).at[0, 1].set(1.0)))
    q, k = np.random.default_rng(5).standard_normal((2, M))
    np.testing.assert_allclose(q @ omega @ k, q[0] * k[1] - q[1] * k[0], rtol=1e-12)


def test_two_form_adjoint():
    raw = normal(np.random.default_rng(6), H, M, M)
    check_adjoint(products.two_form, lambda _, cotangent: (products.two_form_adjoint(cotangent),), (raw,), tol=1e-12)


# --- rotors ----------------------------------------------------------------------------------------------------------


def clifford_basis():
    """Four matrices with `γ_i γ_j + γ_j γ_i = 2 δ_ij`: a faithful picture of the geometric algebra of R⁴."""
    x, y, z, one = np.array([[0, 1], [1, 0]]), np.array([[0, -1j], [1j, 0]]), np.diag([1, -1]), np.eye(2)
    return np.stack([np.kron(x, one), np.kron(y, one), np.kron(z, x), np.kron(z, y)])


GAMMA = clifford_basis()


def turn_by(rotor, vector):
    """`R̃ v R` for `R = scalar + Σ_{i<j} B_ij e_i e_j` and its reverse `R̃`: the sandwich in which `cos(θ/2) + sin(θ/2) a ∧ b`
    turns `a` towards `b`."""
    bivector = np.einsum("ij,iab,jbc->ac", np.triu(np.asarray(rotor.bivector), 1), GAMMA, GAMMA)
    scalar = float(rotor.scalar) * np.eye(4)
    turned = (scalar - bivector) @ np.einsum("i,iab->ab", vector, GAMMA) @ (scalar + bivector)
    return np.einsum("iab,ba->i", GAMMA, turned).real / 4


def plane_of(a, b):
    return np.outer(a, b) - np.outer(b, a)


def dense_rotation(a, b, angle):
    """The matrix that turns `a` towards `b`, orthonormal, by the angle, and leaves what is orthogonal to both."""
    flat = np.outer(a, a) + np.outer(b, b)
    return np.eye(len(a)) + (cos(angle) - 1) * flat - sin(angle) * plane_of(a, b)


def squared_norm(rotor):
    return np.asarray(rotor.scalar) ** 2 + np.sum(np.triu(np.asarray(rotor.bivector), 1) ** 2, (-2, -1))


@pytest.mark.parametrize("angle", [0.0, 0.4, pi / 2, pi, 4.0, 2 * pi, 9.0, 4 * pi])
def test_plane_rotor_turns_vectors_by_its_angle(angle, float64):
    a, b = random_axes(seed=7)[:, :2].T
    rotor = products.plane_rotor(jnp.asarray(angle), jnp.asarray(plane_of(a, b)))
    np.testing.assert_allclose(squared_norm(rotor), 1, rtol=1e-12)
    for vector in (a, b, np.random.default_rng(8).standard_normal(4)):
        np.testing.assert_allclose(turn_by(rotor, vector), dense_rotation(a, b, angle) @ vector, atol=1e-12)


def test_a_rotor_needs_two_whole_turns_to_come_back(float64):
    """A turn by 2π gives −1 and by 4π gives +1, while every vector is back at 2π already."""
    a, b = random_axes(seed=7)[:, :2].T
    plane, vector = jnp.asarray(plane_of(a, b)), np.random.default_rng(8).standard_normal(4)
    for turns, sign in ((1, -1), (2, 1), (3, -1)):
        rotor = products.plane_rotor(jnp.asarray(2 * pi * turns), plane)
        np.testing.assert_allclose(rotor.scalar, sign, atol=1e-12)
        np.testing.assert_allclose(rotor.bivector, np.zeros((4, 4)), atol=1e-12)
        np.testing.assert_allclose(turn_by(rotor, vector), vector, atol=1e-12)
    half_way = products.plane_rotor(jnp.asarray(pi), plane)
    np.testing.assert_allclose(turn_by(half_way, a), -a, atol=1e-12)


@pytest.mark.parametrize("angle", ANGLES[:-1])
def test_rotor_between_two_vectors_is_the_plane_rotor_of_their_angle(angle, float64):
    """Whatever their lengths; in their plane, from the first to the second."""
    a, b = random_axes()[:, :2].T
    q, k = pair_at(angle, 0.5, 3.0)
    rotor = products.rotor_between(jnp.asarray(q), jnp.asarray(k))
    expected = products.plane_rotor(jnp.asarray(angle), jnp.asarray(plane_of(a, b)))
    np.testing.assert_allclose(rotor.scalar, expected.scalar, atol=1e-12)
    np.testing.assert_allclose(rotor.bivector, expected.bivector, atol=1e-12)


def test_rotor_between_turns_one_direction_into_the_other(float64):
    q, k = random_vectors(seed=9)[:, 0, 0]
    rotors = products.rotor_between(jnp.asarray(q), jnp.asarray(k))
    np.testing.assert_allclose(squared_norm(rotors), 1, rtol=1e-12)
    np.testing.assert_allclose(rotors.bivector, -np.swapaxes(rotors.bivector, -1, -2), rtol=0)
    for i in range(L):
        rotor = products.Rotor(rotors.scalar[i], rotors.bivector[i])
        turned = turn_by(rotor, q[i] / np.linalg.norm(q[i]))
        np.testing.assert_allclose(turned, k[i] / np.linalg.norm(k[i]), atol=1e-12)


def test_rotor_between_parallel_vectors_is_one(float64):
    q = random_vectors()[0]
    rotor = products.rotor_between(jnp.asarray(q), jnp.asarray(2.5 * q))
    np.testing.assert_allclose(rotor.scalar, 1, rtol=1e-12)
    np.testing.assert_allclose(rotor.bivector, 0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rotor_between_opposite_vectors_has_no_plane(dtype, float64):
    """Both parts are zero, or what rounding leaves of them: the root of a rounding."""
    q = np.random.default_rng(10).standard_normal((200, M)).astype(dtype)
    k = (-np.random.default_rng(11).uniform(0.3, 3.0, (200, 1)) * q).astype(dtype)
    rotor = products.rotor_between(jnp.asarray(q), jnp.asarray(k))
    small = 4 * np.finfo(dtype).eps ** 0.5
    assert np.abs(rotor.scalar).max() <= small
    assert np.abs(rotor.bivector).max() <= small


# --- products contracted with a field --------------------------------------------------------------------------------


def random_field(seed=12):
    return np.random.default_rng(seed).standard_normal((B, M, M))


def field_vectors(seed=13):
    return np.random.default_rng(seed).standard_normal((2, B, M))


def contracted(function, field, q, k):
    return np.asarray(function(*(jnp.asarray(x) for x in (field, q, k))))


def test_contracted_tensor_and_wedge_are_their_sums(float64):
    field, (q, k) = random_field(), field_vectors()
    tensor, wedge = np.zeros(B), np.zeros(B)
    for b, i, j in np.ndindex(field.shape):
        tensor[b] += q[b, i] * field[b, i, j] * k[b, j]
        wedge[b] += field[b, i, j] * (q[b, i] * k[b, j] - k[b, i] * q[b, j])
    np.testing.assert_allclose(contracted(products.contract_tensor, field, q, k), tensor, rtol=1e-12)
    np.testing.assert_allclose(contracted(products.contract_wedge, field, q, k), wedge, rtol=1e-12)


def test_contracted_spinor_is_its_sum(float64):
    """`‖q‖‖k‖ (cos(θ/2) tr(T) / m + sin(θ/2) B_ij T_ij)`, with `B = a bᵀ − b aᵀ` and `b` what `k` has orthogonal to `a = q̂`."""
    field, (q, k) = random_field(), field_vectors()
    expected = np.zeros(B)
    for n in range(B):
        a = q[n] / np.linalg.norm(q[n])
        b = k[n] - (k[n] @ a) * a
        b = b / np.linalg.norm(b)
        half = np.arctan2(k[n] @ b, k[n] @ a) / 2
        plane = sum((a[i] * b[j] - b[i] * a[j]) * field[n, i, j] for i in range(M) for j in range(M))
        trace = sum(field[n, i, i] for i in range(M)) / M
        expected[n] = np.linalg.norm(q[n]) * np.linalg.norm(k[n]) * (cos(half) * trace + sin(half) * plane)
    np.testing.assert_allclose(contracted(products.contract_spinor, field, q, k), expected, rtol=1e-11)


@pytest.mark.parametrize("angle", ANGLES)
def test_contracted_spinor_of_an_even_field_is_the_spinor_product(angle, float64):
    q, k = pair_at(angle, 0.5, 3.0)
    value = contracted(products.contract_spinor, np.eye(M), q, k)
    np.testing.assert_allclose(value, 1.5 * cos(angle / 2), atol=1e-7)  # at π it is the root of a rounding


def test_contracted_wedge_sees_orientation_alone(float64):
    """It changes sign with the order of the vectors, and vanishes for parallel ones and for a symmetric field."""
    field, (q, k) = random_field(), field_vectors()
    wedge = contracted(products.contract_wedge, field, q, k)
    assert (np.abs(wedge) > 1e-2).all()
    np.testing.assert_allclose(contracted(products.contract_wedge, field, k, q), -wedge, rtol=1e-12)
    np.testing.assert_allclose(contracted(products.contract_wedge, field, q, -2.5 * q), 0, atol=1e-12)
    symmetric = field + field.transpose(0, 2, 1)
    np.testing.assert_allclose(contracted(products.contract_wedge, symmetric, q, k), 0, atol=1e-12)


@pytest.mark.parametrize("function", [products.contract_tensor, products.contract_wedge])
def test_contracted_products_are_linear_in_each_argument(function, float64):
    (field, other_field), (q, k), p = (random_field(), random_field(14)), field_vectors(), field_vectors(15)[0]
    whole = contracted(function, field, q, k)
    several = contracted(function, field, 2 * q - 3 * p, k)
    np.testing.assert_allclose(several, 2 * whole - 3 * contracted(function, field, p, k), rtol=1e-10)
    several = contracted(function, field, q, 2 * k - 3 * p)
    np.testing.assert_allclose(several, 2 * whole - 3 * contracted(function, field, q, p), rtol=1e-10)
    several = contracted(function, 2 * field - 3 * other_field, q, k)
    np.testing.assert_allclose(several, 2 * whole - 3 * contracted(function, other_field, q, k), rtol=1e-10)


def test_contracted_products_do_not_change_when_everything_turns(float64):
    """`T → O T Oᵀ`, `q → O q`, `k → O k`."""
    field, (q, k), turn = random_field(), field_vectors(), random_axes(seed=16)
    for function in (products.contract_tensor, products.contract_wedge, products.contract_spinor):
        turned = contracted(function, turn @ field @ turn.T, q @ turn.T, k @ turn.T)
        np.testing.assert_allclose(turned, contracted(function, field, q, k), rtol=1e-10)
