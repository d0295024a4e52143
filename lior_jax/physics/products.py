"""Geometric products of queries and keys: tensor, wedge and spinor, all from `G = ⟨q, k⟩_g` and the norms.

    tensor  ⟨q, k⟩_g
    wedge   the area ‖q ∧ k‖ = sqrt(⟨q,q⟩⟨k,k⟩ − ⟨q,k⟩²), and the signed `qᵀ Ω k` of a learned 2-form `Ω = A − Aᵀ`
    spinor  ‖q‖ ‖k‖ cos(θ/2), the scalar part of the rotor that turns `q` into `k`, with their lengths

Vectors are whitened, so `⟨·,·⟩_g` is the dot product. As scores of retrieval each has a gate per head.
Source: the audit's `geometric_attention`, and docs/design.md section 3.

Shapes: `H` heads, `m` whitened chart dimensions, `L` positions, `B` sequences.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

PRODUCT_EPSILON = 1e-4


class Gates(NamedTuple):
    """What each product weighs in a head's score, None if it is left out: `tensor`, `area`, `spinor` `[H]`; `form`
    `[H, m, m]`, the raw `A` of the 2-form."""

    tensor: Array | None
    area: Array | None
    form: Array | None
    spinor: Array | None


def area(product: Array, q_squared: Array, k_squared: Array) -> Array:
    """`‖q ∧ k‖ = sqrt(max(⟨q,q⟩⟨k,k⟩ − ⟨q,k⟩², 0) + ε)`: how far `q` and `k` are from parallel."""
    return jnp.sqrt(jnp.maximum(q_squared * k_squared - product**2, 0) + PRODUCT_EPSILON)


def spinor(product: Array, q_squared: Array, k_squared: Array) -> Array:
    """`‖q‖ ‖k‖ cos(θ/2) = sqrt(r max(r + ⟨q,k⟩, 0) / 2 + ε)` with `r = ‖q‖ ‖k‖`, for the angle θ in [0, π] between them."""
    r = _norms(q_squared, k_squared)
    return jnp.sqrt(0.5 * r * jnp.maximum(r + product, 0) + PRODUCT_EPSILON)


def _norms(q_squared: Array, k_squared: Array) -> Array:
    return jnp.sqrt(q_squared * k_squared + PRODUCT_EPSILON)


def two_form(raw: Array) -> Array:
    """The antisymmetric `Ω = A − Aᵀ` of raw `A` `[..., m, m]`."""
    return raw - jnp.swapaxes(raw, -1, -2)


def two_form_adjoint(cotangent: Array) -> Array:
    """Adjoint of `two_form`."""
    return cotangent - jnp.swapaxes(cotangent, -1, -2)


def score(gates: Gates, product: Array, q_squared: Array, k_squared: Array) -> Array:
    """Gated sum of tensor, area and spinor products: `[B, H, L, L]`. The 2-form has a matrix product of its own.

    Args:
        product: `⟨q_i, k_j⟩`, `[B, H, L, L]`.
        q_squared: `‖q_i‖²`, `[B, H, L, 1]`.
        k_squared: `‖k_j‖²`, `[B, H, 1, L]`.
    """
    total = jnp.zeros_like(product)
    if gates.tensor is not None:
        total = total + _gate(gates.tensor) * product
    if gates.area is not None:
        total = total + _gate(gates.area) * area(product, q_squared, k_squared)
    if gates.spinor is not None:
        total = total + _gate(gates.spinor) * spinor(product, q_squared, k_squared)
    return total


def score_adjoint(
    gates: Gates, product: Array, q_squared: Array, k_squared: Array, cotangent: Array
) -> tuple[Gates, Array, Array, Array]:
    """Adjoint of `score`: cotangents of the gates (of the 2-form: None), the product and the squared norms."""
    c_tensor = c_area = c_spinor = None
    c_product, c_squares = jnp.zeros_like(product), jnp.zeros_like(product)  # of ⟨q,k⟩ and of ⟨q,q⟩⟨k,k⟩

    if gates.tensor is not None:
        c_tensor = jnp.sum(cotangent * product, (0, 2, 3))
        c_product = c_product + _gate(gates.tensor) * cotangent
    if gates.area is not None:
        value = area(product, q_squared, k_squared)
        c_area = jnp.sum(cotangent * value, (0, 2, 3))
        c_square = jnp.where(q_squared * k_squared > product**2, _gate(gates.area) * cotangent / (2 * value), 0)
        c_product = c_product - 2 * product * c_square
        c_squares = c_squares + c_square
    if gates.spinor is not None:
        value, r = spinor(product, q_squared, k_squared), _norms(q_squared, k_squared)
        c_spinor = jnp.sum(cotangent * value, (0, 2, 3))
        c_half = jnp.where(r + product > 0, _gate(gates.spinor) * cotangent / (4 * value), 0)
        c_product = c_product + r * c_half
        c_squares = c_squares + (2 * r + product) * c_half / (2 * r)
    c_q_squared = jnp.sum(c_squares * k_squared, -1, keepdims=True)
    c_k_squared = jnp.sum(c_squares * q_squared, -2, keepdims=True)
    return Gates(c_tensor, c_area, None, c_spinor), c_product, c_q_squared, c_k_squared


def _gate(gate: Array) -> Array:
    return gate[None, :, None, None]


# --- rotors, and products contracted with a field ---------------------------------------------------------------------


class Rotor(NamedTuple):
    """Even multivector of one plane: `scalar` `[...]` and `bivector` `[..., m, m]`, antisymmetric."""

    scalar: Array
    bivector: Array


def plane_rotor(angle: Array, plane: Array) -> Rotor:
    """`cos(θ/2) + sin(θ/2) B` for an angle θ `[]` and a unit bivector `plane` `[m, m]`. A turn by 2π gives −1."""
    return Rotor(jnp.cos(angle / 2), jnp.sin(angle / 2) * plane)


def rotor_between(q: Array, k: Array) -> Rotor:
    """The rotor `R` that turns the direction of `q` into that of `k`, both `[..., m]`, the short way: `k̂ = R̃ q̂ R`, θ in [0, π).

    Opposite directions share no plane; the bivector is zero for them, as it is for parallel ones and for a vector of zero.
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
    """`T_ij (q ∧ k)_ij = q_i T_ij k_j − k_i T_ij q_j`: what of the field lies in the plane of `q` and `k`, signed."""
    return contract_tensor(field, q, k) - contract_tensor(field, k, q)


def contract_spinor(field: Array, q: Array, k: Array) -> Array:
    """`‖q‖ ‖k‖ (cos(θ/2) tr(T) / m + sin(θ/2) B_ij T_ij)`: the field seen by the rotor between `q` and `k`."""
    rotor = rotor_between(q, k)
    trace = jnp.trace(field, axis1=-2, axis2=-1) / field.shape[-1]
    lengths = jnp.sqrt(jnp.sum(q * q, -1) * jnp.sum(k * k, -1))
    return lengths * (rotor.scalar * trace + jnp.sum(rotor.bivector * field, (-2, -1)))
