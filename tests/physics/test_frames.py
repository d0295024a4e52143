from functools import partial
from itertools import combinations
from math import atan, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lior_jax.physics import frames
from lior_jax.physics.rotor_planes import max_rotor_layers, rotor_planes
from tests import oracles
from tests.oracles import check_adjoint, normal, random_metric

# One program a shape, instead of one an operation: compiling them is what takes the time.
rotor_frame = jax.jit(frames.rotor_frame, static_argnames=("n", "block"))
rotate = jax.jit(frames.rotate, static_argnames="block")

# n and the size of the blocks.
BLOCKS = [(2, 2), (6, 2), (8, 4), (12, 6), (6, 6)]


def random_angles(n, layers, seed=0):
    return random_metric(n, layers, 0, seed).angles


def dense_block_frame(angles, n, block):
    """`Q`, one Givens matrix after another, in the planes of a block-diagonal frame."""
    q = np.eye(n)
    for layer, planes in zip(np.asarray(angles), rotor_planes(n, len(angles), block), strict=True):
        for angle, (i, j) in zip(layer, planes, strict=True):
            q = q @ oracles.givens(n, i, j, angle)
    return q


def same_block(n, block):
    return np.kron(np.eye(n // block), np.ones((block, block))) > 0


# --- rotor planes as data --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(2, 12))
def test_every_plane_meets_exactly_once(n):
    layers = max_rotor_layers(n)
    planes = rotor_planes(n, layers)
    met = sorted((int(i), int(j)) for layer in planes for i, j in layer)
    assert met == sorted(combinations(range(n), 2))


@pytest.mark.parametrize(("n", "block"), BLOCKS)
def test_every_plane_within_a_block_meets_exactly_once(n, block):
    planes = rotor_planes(n, max_rotor_layers(block), block)
    met = sorted((int(i), int(j)) for layer in planes for i, j in layer)
    assert met == [(i, j) for i, j in combinations(range(n), 2) if i // block == j // block]


@pytest.mark.parametrize(("n", "block"), [(n, n) for n in range(2, 12)] + BLOCKS)
def test_a_layer_is_half_as_many_disjoint_planes_as_coordinates(n, block):
    """So a layer costs `n / 2` plane rotations whatever the block, and a block has `block − 1` layers."""
    for layers in range(max_rotor_layers(block) + 1):
        planes = rotor_planes(n, layers, block)
        assert len(planes) == layers
        for layer in planes:
            assert len(layer) == n // 2
            assert len(set(layer.ravel().tolist())) == 2 * (n // 2)


def test_more_layers_only_append():
    np.testing.assert_array_equal(rotor_planes(6, 5)[:2], rotor_planes(6, 2))
    np.testing.assert_array_equal(rotor_planes(8, 3, 4)[:2], rotor_planes(8, 2, 4))


# --- rotor frames ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "layers"), [(2, 1), (3, 3), (4, 2), (5, 0), (7, 7), (8, 7)])
def test_rotor_frame_is_the_product_of_givens_matrices(n, layers, float64):
    angles = random_angles(n, layers, seed=n)
    np.testing.assert_allclose(rotor_frame(angles, n), oracles.dense_frame(np.asarray(angles), n), atol=1e-12)


@pytest.mark.parametrize(("n", "block"), [(6, 2), (8, 4)])
def test_block_frame_is_a_block_diagonal_product_of_givens_matrices(n, block, float64):
    angles = random_angles(n, max_rotor_layers(block), seed=n)
    q = np.asarray(rotor_frame(angles, n, block))
    np.testing.assert_allclose(q, dense_block_frame(angles, n, block), atol=1e-12)
    assert (q[~same_block(n, block)] == 0).all()
    assert (np.abs(q[same_block(n, block)]) > 1e-6).all()  # every coordinate of a block reaches every other


@pytest.mark.parametrize(
    ("n", "layers", "block"), [(2, 1, 2), (3, 3, 3), (4, 2, 4), (5, 0, 5), (7, 7, 7), (6, 1, 2), (8, 3, 4)]
)
def test_rotor_frame_is_a_rotation(n, layers, block, float64):
    q = np.asarray(rotor_frame(random_angles(n, layers, seed=1), n, block))
    np.testing.assert_allclose(q.T @ q, np.eye(n), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(q), 1.0, rtol=1e-12)


def test_one_block_of_all_coordinates_is_the_whole_frame(float64):
    angles, x = random_angles(6, 5, seed=3), normal(np.random.default_rng(3), 6, 2)
    np.testing.assert_array_equal(rotate(angles, x, 6), rotate(angles, x))


@pytest.mark.parametrize(("n", "layers", "block"), [(5, 3, None), (6, 3, None), (6, 1, 2), (8, 3, 4)])
def test_rotate_applies_the_transposed_frame(n, layers, block, float64):
    rng, angles = np.random.default_rng(0), random_angles(n, layers)
    x = np.asarray(normal(rng, n, 4))
    expected = dense_block_frame(angles, n, block).T @ x
    np.testing.assert_allclose(rotate(angles, jnp.asarray(x), block), expected, atol=1e-12)


def test_whole_turns_change_nothing(float64):
    angles = random_angles(5, 4, seed=2)
    for turns in (1, -1, 7):
        turned = rotor_frame(angles + 2 * np.pi * turns, 5)
        np.testing.assert_allclose(turned, rotor_frame(angles, 5), atol=1e-12)


def test_wrapped_angles_are_in_the_half_open_interval(float64):
    angles = jnp.array([-np.pi, np.pi, 3 * np.pi, 0.0, 3.0, 4.0, -4.0, 100.0, -100.0])
    wrapped = np.asarray(frames.wrap_angle(angles))
    assert (wrapped >= -np.pi).all()
    assert (wrapped < np.pi).all()
    np.testing.assert_allclose(np.exp(1j * wrapped), np.exp(1j * np.asarray(angles)), atol=1e-12)
    np.testing.assert_allclose(wrapped[:2], -np.pi, rtol=1e-15)


@pytest.mark.parametrize(("n", "layers", "block"), [(2, 1, None), (5, 4, None), (3, 0, None), (6, 1, 2), (8, 3, 4), (4, 0, 2)])
def test_rotate_adjoint(n, layers, block):
    angles, x = random_angles(n, layers), normal(np.random.default_rng(5), n, 3)

    def function(angles, x):
        return frames.rotate(angles, x, block)

    def adjoint(angles, x, cotangent):
        return frames.rotate_adjoint(angles, function(angles, x), cotangent, block)

    check_adjoint(function, adjoint, (angles, x), tol=1e-9)


# --- derived frames --------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames="block")
def follow_path(derived, moments, rate, block=None):
    """The derived frame after each of `moments` `[T, n, n]`."""

    def step(derived, moment):
        derived = frames.follow(derived, moment, rate, block)
        return derived, derived

    return lax.scan(step, derived, moments)[1]


def follow_along(moments, rate=1.0, block=None, start=None):
    moments = jnp.asarray(moments)
    start = frames.initial_derived(moments.shape[-1], moments.dtype) if start is None else start
    path = follow_path(start, moments, rate, block)
    return frames.Derived(*(np.asarray(x) for x in path))


def standing_still(moment, steps):
    return np.broadcast_to(moment, (steps, *moment.shape))


def last(path):
    return frames.Derived(*(jnp.asarray(x[-1]) for x in path))


def random_frame(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def random_moments(n, count, points, seed=0):
    """`E[zzᵀ]` of few points each: `[count, n, n]`, of rank `points`."""
    z = np.random.default_rng(seed).standard_normal((count, points, n))
    return np.einsum("tpi,tpj->tij", z, z) / points


def sorted_eigenvectors(matrix):
    """By falling eigenvalue, in columns."""
    return np.linalg.eigh(matrix)[1][..., ::-1]


def turns(axes):
    """The largest angle by which an axis turns in each step of a path `[T, n, n]`; a change of sign is a turn by π."""
    chord = np.linalg.norm(np.diff(axes, axis=0), axis=-2).max(-1)
    return 2 * np.arcsin(np.minimum(chord / 2, 1))


def turns_of_lines(axes):
    """The same, where an axis and its opposite count as one."""
    cosine = np.abs(np.einsum("tij,tij->tj", axes[1:], axes[:-1]))
    return np.arccos(np.minimum(cosine, 1)).max(-1)


def assert_orthonormal(axes, atol):
    assert np.isfinite(axes).all()
    np.testing.assert_allclose(
        np.einsum("...ij,...ik->...jk", axes, axes), np.broadcast_to(np.eye(axes.shape[-1]), axes.shape), atol=atol
    )


@pytest.mark.parametrize("block", [None, 2])
@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_running_covariance_is_the_exponential_average(rate, block, float64):
    """The oldest part is the identity that it starts from. Entries between blocks are zero."""
    moments = random_moments(4, 6, 3)
    expected = (1 - rate) ** 6 * np.eye(4)
    for age, moment in enumerate(moments[::-1]):
        expected = expected + rate * (1 - rate) ** age * moment
    if block is not None:
        expected = np.where(same_block(4, block), expected, 0)
    np.testing.assert_allclose(follow_along(moments, rate, block).covariance[-1], expected, atol=1e-12)


@pytest.mark.parametrize(("n", "rate"), [(2, 1.0), (5, 0.3), (8, 1.0)])
def test_axes_converge_to_the_eigenvectors_by_falling_eigenvalue(n, rate, float64):
    """Neighbouring eigenvalues have the ratio 0.7, by which the error falls in a step: 0.7¹⁵⁰ is far below 1e-9."""
    frame = random_frame(n, seed=n)
    covariance = frame @ np.diag(0.7 ** np.arange(n)) @ frame.T
    axes = follow_along(standing_still(covariance, 150), rate).axes[-1]
    overlap = axes.T @ sorted_eigenvectors(covariance)
    np.testing.assert_allclose(np.abs(overlap), np.eye(n), atol=1e-9)
    np.testing.assert_allclose(axes.T @ covariance @ axes, np.diag(0.7 ** np.arange(n)), atol=1e-9)


def test_axes_of_blocks_converge_to_the_eigenvectors_of_the_blocks(float64):
    n, block = 6, 3
    covariance = random_moments(n, 1, 20, seed=1)[0]
    path = follow_along(standing_still(covariance, 400), 0.5, block)
    assert_orthonormal(path.axes, atol=1e-12)
    assert (path.axes[:, ~same_block(n, block)] == 0).all()
    for start in range(0, n, block):
        part = slice(start, start + block)
        overlap = path.axes[-1, part, part].T @ sorted_eigenvectors(covariance[part, part])
        np.testing.assert_allclose(np.abs(overlap), np.eye(block), atol=1e-9)


def test_axes_are_orthonormal_at_every_step():
    """In float32, while moments of rank 1 come and go; the slack is the rounding of the factorisation."""
    for rate in (0.02, 0.5):
        path = follow_along(random_moments(6, 200, 1, seed=2).astype(np.float32), rate)
        assert path.axes.dtype == np.float32
        assert_orthonormal(path.axes, atol=1e-5)


def test_axes_turn_with_the_covariance_and_never_flip(float64):
    """The covariance turns by π in a plane, back to where it was. Its axes turn with it, so two of them end as their own
    opposites: that is what continuity demands, and a fresh eigendecomposition would not know. Eigenvalues of ratio 4
    leave an axis behind by a third of a step's turn."""
    n, steps = 4, 400
    frame, values = random_frame(n, seed=3), np.array([8.0, 2.0, 0.5, 0.125])
    covariance = frame @ np.diag(values) @ frame.T
    start = last(follow_along(standing_still(covariance, 100)))
    plane = np.outer(frame[:, 1], frame[:, 0]) - np.outer(frame[:, 0], frame[:, 1])
    flat = np.outer(frame[:, 0], frame[:, 0]) + np.outer(frame[:, 1], frame[:, 1])
    angles = np.pi * np.arange(1, steps + 1) / steps
    rotations = np.array([np.eye(n) + (np.cos(a) - 1) * flat + np.sin(a) * plane for a in angles])
    axes = follow_along(rotations @ covariance @ rotations.transpose(0, 2, 1), start=start).axes
    np.testing.assert_allclose(axes, rotations @ np.asarray(start.axes), atol=0.5 * np.pi / steps)
    np.testing.assert_allclose(axes[-1], np.asarray(start.axes) * [-1, -1, 1, 1], atol=0.5 * np.pi / steps)
    assert turns(axes).max() < 1.1 * np.pi / steps


def test_axes_do_not_jump_where_eigenvalues_cross(float64):
    """Two eigenvalues cross, with a trace of noise. The eigenvectors of each covariance by itself change places at once;
    the axes change places too, but no step of theirs can be larger than `arctan √ρ − arctan 1/√ρ`, with `ρ` the largest
    ratio of the two eigenvalues: the largest turn that multiplying one component of a vector by `ρ` can make."""
    n, rng = 4, np.random.default_rng(4)
    frame, lead = random_frame(n, seed=4), np.concatenate([np.linspace(0.1, -0.1, 101), np.full(400, -0.1)])
    values = np.stack([1 + lead, 1 - lead, np.full_like(lead, 0.3), np.full_like(lead, 0.1)], -1)
    noise = 1e-6 * rng.standard_normal((len(lead), n, n))
    path = np.einsum("ij,tj,kj->tik", frame, values, frame) + noise + noise.transpose(0, 2, 1)
    ratio = 1.1 / 0.9

    eigenvectors = sorted_eigenvectors(path)
    assert turns_of_lines(eigenvectors).max() > 1  # about π / 2

    start = last(follow_along(standing_still(path[0], 200)))
    axes = follow_along(path, start=start).axes
    np.testing.assert_allclose(np.abs(np.asarray(start.axes).T @ eigenvectors[0]), np.eye(n), atol=1e-4)
    np.testing.assert_allclose(np.abs(axes[-1].T @ eigenvectors[-1]), np.eye(n), atol=1e-4)
    assert turns(axes).max() < 1.01 * (atan(sqrt(ratio)) - atan(1 / sqrt(ratio)))


def test_axes_do_not_jump_where_eigenvalues_meet(float64):
    """All eigenvalues meet, up to a noise of norm `δ`: eigenvectors then point anywhere. Orthogonal iteration turns the
    axes by the noise's lower triangle minus its transpose, whose norm is at most `δ`, up to terms of the order `δ²`."""
    n, rng, size = 4, np.random.default_rng(5), 1e-3
    noise = rng.standard_normal((60, n, n))
    noise = noise + noise.transpose(0, 2, 1)
    noise *= size / np.linalg.norm(noise, axis=(1, 2), keepdims=True)
    path = np.eye(n) + noise
    assert turns_of_lines(sorted_eigenvectors(path)).max() > 1
    start = frames.Derived(jnp.eye(n), jnp.asarray(random_frame(n, seed=6)))
    assert turns(follow_along(path, start=start).axes).max() < 1.01 * size


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_axes_survive_moments_without_full_rank(rank):
    """For so long that float32 forgets all that the covariance ever was. What it knows of, the axes still point along."""
    n, rng = 5, np.random.default_rng(7)
    z = rng.standard_normal((rank, n)) * 3.0 ** np.arange(rank)[:, None]
    moment = (z.T @ z).astype(np.float32)
    path = follow_along(standing_still(moment, 300), 0.5)
    assert np.isfinite(path.covariance).all()
    assert_orthonormal(path.axes, atol=1e-5)
    np.testing.assert_allclose(np.abs(path.axes[-1].T @ sorted_eigenvectors(moment))[:rank], np.eye(n)[:rank], atol=1e-4)


@pytest.mark.parametrize(("dtype", "limit"), [(np.float32, 0.2), (np.float64, 1e-6)])
def test_axes_along_which_nothing_moves_keep_their_place(dtype, limit, float64):
    """The points have only ever moved along two of six directions, so that rounding alone could turn the other axes, or turn
    them round. The ridge of 1e-6 holds them, up to the share of a rounding in it: 0.06 times a few, or 1e-10 times a few."""
    moment = random_moments(6, 1, 2, seed=9)[0].astype(dtype)
    path = follow_along(standing_still(moment, 600), 0.5)
    assert turns(path.axes[300:]).max() < limit


def test_a_zero_moment_leaves_the_axes_where_they_are(float64):
    """It says nothing about directions."""
    frame = random_frame(3, seed=8)
    before = last(follow_along(standing_still(frame @ np.diag([4.0, 2.0, 1.0]) @ frame.T, 100)))
    path = follow_along(np.zeros((20, 3, 3)), 0.5, start=before)
    np.testing.assert_allclose(path.axes, np.broadcast_to(before.axes, path.axes.shape), atol=1e-9)
