"""Geometric products of queries and keys: tensor, wedge and spinor, all from `G = ⟨q, k⟩_g` and the norms.

    tensor  ⟨q, k⟩_g
    wedge   the area ‖q ∧ k‖ = sqrt(⟨q,q⟩⟨k,k⟩ − ⟨q,k⟩²), and the signed `qᵀ Ω k` of a learned 2-form `Ω = A − Aᵀ`
    spinor  ‖q‖ ‖k‖ cos(θ/2), the scalar part of the rotor from `q` to `k`, times their lengths

Vectors are whitened, so `⟨·,·⟩_g` is the dot product. `Tensor`, `Wedge` and `Spinor` are score terms of retrieval (`scores`),
with a gate per head. Literature: wedge products and rotors, Doran and Lasenby 2003. Source: the audit's `geometric_attention`,
and docs/design.md section 3.

Shapes: `H` heads, `m` whitened chart dimensions, `L` positions, `B` sequences.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from lior_jax.errors import UserError
from lior_jax.physics.numerics import contract
from lior_jax.physics.pairwise import PairCotangent, Pairs, of_sequence, weights

PRODUCT_EPSILON = 1e-4


def area(product: Array, q_squared: Array, k_squared: Array) -> Array:
    """`‖q ∧ k‖ = sqrt(max(⟨q,q⟩⟨k,k⟩ − ⟨q,k⟩², 0) + ε)`: zero for parallel vectors, up to ε."""
    return jnp.sqrt(jnp.maximum(q_squared * k_squared - product**2, 0) + PRODUCT_EPSILON)


def area_adjoint(product: Array, q_squared: Array, k_squared: Array, cotangent: Array) -> tuple[Array, Array, Array]:
    """Adjoint of `area` of pairs: cotangents of product and squared norms, in the shapes of `pairwise`."""
    c_square = cotangent / (2 * area(product, q_squared, k_squared))
    c_square = jnp.where(q_squared * k_squared > product**2, c_square, 0)
    return -2 * product * c_square, *_squares_adjoint(q_squared, k_squared, c_square)


def spinor(product: Array, q_squared: Array, k_squared: Array) -> Array:
    """`‖q‖ ‖k‖ cos(θ/2) = sqrt(r max(r + ⟨q,k⟩, 0) / 2 + ε)` with `r = ‖q‖ ‖k‖`, for the angle θ in [0, π] between them."""
    r = _norms(q_squared, k_squared)
    return jnp.sqrt(0.5 * r * jnp.maximum(r + product, 0) + PRODUCT_EPSILON)


def spinor_adjoint(product: Array, q_squared: Array, k_squared: Array, cotangent: Array) -> tuple[Array, Array, Array]:
    """Adjoint of `spinor` of pairs: cotangents of product and squared norms, in the shapes of `pairwise`."""
    r = _norms(q_squared, k_squared)
    c_half = jnp.where(r + product > 0, cotangent / (4 * spinor(product, q_squared, k_squared)), 0)
    return r * c_half, *_squares_adjoint(q_squared, k_squared, (2 * r + product) * c_half / (2 * r))


def _squares_adjoint(q_squared: Array, k_squared: Array, cotangent: Array) -> tuple[Array, Array]:
    """Adjoint of `q_squared * k_squared`."""
    return jnp.sum(cotangent * k_squared, -1, keepdims=True), jnp.sum(cotangent * q_squared, -2, keepdims=True)


def _norms(q_squared: Array, k_squared: Array) -> Array:
    return jnp.sqrt(q_squared * k_squared + PRODUCT_EPSILON)


def two_form(raw: Array) -> Array:
    """The antisymmetric `Ω = A − Aᵀ` of raw `A` `[..., m, m]`."""
    return raw - jnp.swapaxes(raw, -1, -2)


def two_form_adjoint(cotangent: Array) -> Array:
    """Adjoint of `two_form`."""
    return cotangent - jnp.swapaxes(cotangent, -1, -2)


# --- score terms of retrieval ----------------------------------------------------------------------------------------


class Tensor(NamedTuple):
    """`gate ⟨q, k⟩_g`, `gate` `[H]`: the score of dot-product attention (Vaswani et al. 2017)."""

    gate: Array

    def score(self, pairs: Pairs) -> Array:
        return _of_heads(self.gate) * pairs.product

    def score_adjoint(self, pairs: Pairs, cotangent: Array) -> tuple["Tensor", PairCotangent]:
        return Tensor(_by_head(cotangent * pairs.product)), pairs.product_adjoint(_of_heads(self.gate) * cotangent)


class Wedge(NamedTuple):
    """`area ‖q ∧ k‖ + qᵀ Ω k`: `area` `[H]`, a gate, and `form` `[H, m, m]`, the antisymmetric 2-form Ω."""

    area: Array
    form: Array

    def score(self, pairs: Pairs) -> Array:
        # Centring the keys shifts each row of scores by a constant, which cancels in the Boltzmann weights.
        turned = contract("bhim,hmn->bhin", pairs.queries, self.form, pairs.precision)
        signed = contract("bhim,bhjm->bhij", turned, pairs.near_keys, pairs.precision)
        return _of_heads(self.area) * area(pairs.product, pairs.q_squared, pairs.k_squared) + signed

    def score_adjoint(self, pairs: Pairs, cotangent: Array) -> tuple["Wedge", PairCotangent]:
        seen = pairs.product, pairs.q_squared, pairs.k_squared
        c_area = _by_head(cotangent * area(*seen))
        product, queries, keys = pairs.products_adjoint(*area_adjoint(*seen, _of_heads(self.area) * cotangent))

        turned = contract("bhim,hmn->bhin", pairs.queries, self.form, pairs.precision)
        c_turned = contract("bhij,bhjm->bhim", cotangent, pairs.near_keys, pairs.precision)
        queries = queries + contract("bhin,hmn->bhim", c_turned, self.form, pairs.precision)
        keys = keys + contract("bhij,bhim->bhjm", cotangent, turned, pairs.precision)
        c_form = contract("bhim,bhin->hmn", pairs.queries, c_turned, pairs.precision)
        return Wedge(c_area, c_form), PairCotangent(product, queries, keys)


class Spinor(NamedTuple):
    """`gate ‖q‖ ‖k‖ cos(θ/2)`, `gate` `[H]`."""

    gate: Array

    def score(self, pairs: Pairs) -> Array:
        return _of_heads(self.gate) * spinor(pairs.product, pairs.q_squared, pairs.k_squared)

    def score_adjoint(self, pairs: Pairs, cotangent: Array) -> tuple["Spinor", PairCotangent]:
        seen = pairs.product, pairs.q_squared, pairs.k_squared
        c_gate = _by_head(cotangent * spinor(*seen))
        return Spinor(c_gate), pairs.products_adjoint(*spinor_adjoint(*seen, _of_heads(self.gate) * cotangent))


def attend(q: Array, k: Array, v: Array, metric: Array, product: str = "wedge") -> Array:
    """Causal attention by a geometric product of metric-weighted queries and keys, `softmax_j(product(q_i, k_j) / √n) v_j`: the
    audit's `geometric_attention`, computed by the score terms of retrieval.

    Args:
        q: `[B, T, H, n]`, of the last `T` positions.
        k, v: `[B, L, H, n]` and `[B, L, H, v]`, of all positions.
        metric: `g` `[H, n, n]`, symmetric positive definite.
        product: `tensor` ⟨q, k⟩_g, `wedge` ‖q ∧ k‖_g, or `spinor` ‖q‖ ‖k‖ cos(θ/2).

    Returns:
        `[B, T, H, v]`.

    Raises:
        UserError: an unknown `product`.
    """
    scale = jnp.full(len(metric), q.shape[-1] ** -0.5, q.dtype)
    terms = {"tensor": Tensor(scale), "wedge": Wedge(scale, jnp.zeros_like(metric)), "spinor": Spinor(scale)}
    if product not in terms:
        raise UserError(f"product is {product!r}, but must be tensor, wedge or spinor.")
    half = jnp.linalg.cholesky(metric)
    queries, keys = (contract("blhn,hnm->bhlm", x, half, "float32") for x in (q, k))
    pairs = of_sequence(queries, keys, "float32")
    weight = weights(terms[product].score(pairs), pairs.places.visible)
    return contract("bhij,bjhv->bihv", weight, v, "float32")


def _of_heads(gate: Array) -> Array:
    return gate[None, :, None, None]


def _by_head(x: Array) -> Array:
    return jnp.sum(x, (0, 2, 3))


# --- rotors, and products contracted with a field ---------------------------------------------------------------------


class Rotor(NamedTuple):
    """Even multivector in one plane: `scalar` `[...]` and `bivector` `[..., m, m]`, antisymmetric."""

    scalar: Array
    bivector: Array


def plane_rotor(angle: Array, plane: Array) -> Rotor:
    """`cos(θ/2) + sin(θ/2) B` for an angle θ `[]` and a unit bivector `plane` `[m, m]`. A rotation by 2π gives −1."""
    return Rotor(jnp.cos(angle / 2), jnp.sin(angle / 2) * plane)


def rotor_between(q: Array, k: Array) -> Rotor:
    """The rotor `R` from the direction of `q` to that of `k`, both `[..., m]`, by the smaller angle: `k̂ = R̃ q̂ R`, θ in [0, π).

    Opposite directions have no unique plane; the bivector is zero for them, for parallel ones and for a zero vector.
    """
    tiny = jnp.finfo(q.dtype).tiny
    q, k = (x / jnp.sqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), tiny)) for x in (q, k))
    scalar = jnp.sqrt(jnp.maximum(1 + jnp.sum(q * k, -1), 0) / 2)
    wedge = q[..., :, None] * k[..., None, :] - k[..., :, None] * q[..., None, :]
    # ‖q ∧ k‖ = sin θ = 2 sin(θ/2) cos(θ/2)
    has_plane = (scalar > jnp.finfo(q.dtype).eps ** 0.5)[..., None, None]
    return Rotor(scalar, jnp.where(has_plane, wedge / jnp.where(has_plane, 2 * scalar[..., None, None], 1), 0))


def contract_tensor(field: Array, q: Array, k: Array) -> Array:
    """`q_i T_ij k_j` of a field `[..., m, m]` and vectors `[..., m]`: `[...]`."""
    return jnp.einsum("...i,...ij,...j->...", q, field, k)


def contract_wedge(field: Array, q: Array, k: Array) -> Array:
    """`T_ij (q ∧ k)_ij = q_i T_ij k_j − k_i T_ij q_j`: the signed component of the field in the plane of `q` and `k`."""
    return contract_tensor(field, q, k) - contract_tensor(field, k, q)


def contract_spinor(field: Array, q: Array, k: Array) -> Array:
    """`‖q‖ ‖k‖ (cos(θ/2) tr(T) / m + sin(θ/2) B_ij T_ij)`: the field contracted with the rotor between `q` and `k`."""
    rotor = rotor_between(q, k)
    trace = jnp.trace(field, axis1=-2, axis2=-1) / field.shape[-1]
    lengths = jnp.sqrt(jnp.sum(q * q, -1) * jnp.sum(k * k, -1))
    return lengths * (rotor.scalar * trace + jnp.sum(rotor.bivector * field, (-2, -1)))
