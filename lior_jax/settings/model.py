"""The model's section: shapes and physics of the network."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lior_jax.errors import UserError
from lior_jax.physics.base_geometry import Geometry, base_metric, precompute
from lior_jax.physics.integrators import stability_limit
from lior_jax.physics.precision import Precision
from lior_jax.physics.rotor_planes import max_rotor_layers
from lior_jax.registry import INTEGRATORS, POTENTIALS, SCORE_TERMS, Dynamics
from lior_jax.settings.sections import Section, off

Rows = tuple[tuple[float, ...], ...]


class GeometryConfig(Section):
    """The charts' metric: distances between queries and keys, and along the flow."""

    chart_dim: int = Field(16, ge=2, le=2**12)
    """Dimension `n` of each head's chart, in which queries and keys are points."""
    metric: Literal["diag_rot", "block_rot"] = "diag_rot"
    """Whether the metric's frame rotates all chart coordinates together, or blocks of them at a lower cost."""
    block: int = Field(2, ge=2, le=2**12)
    """Coordinates in a block of `block_rot`; even, and a divisor of `chart_dim`."""
    rank: int = Field(2, ge=0, le=2**12)
    """Rank `r` of the low-rank part of the metric."""
    base_metric: Rows | None = None
    """The base metric `g₀` under the learned one: `chart_dim` rows of a symmetric positive definite matrix; null for the
    identity."""
    frame: Literal["rotor", "derived", "learned_lowrank"] = "derived"
    """Axes of the metric: a product of learned rotors (`rotor`); `derived` from the running covariance of the keys; or, with
    `learned_lowrank`, the coordinate axes plus the learned low-rank directions."""
    rotor_layers: int = Field(4, ge=0, le=2**12)
    """Layers of Givens planes in the rotor frame of `diag_rot`; 0 keeps the coordinate axes. A block of `block_rot` has all
    its layers."""
    resilience: Literal["unit", "constitutive", "curvature"] = "unit"
    """Weight of geodesic costs and the action: none; from the state's magnitude at the query; or from its scalar curvature."""
    curvature_terms: int = Field(4, ge=1, le=2**8)
    """Terms `C` of the structured curvature tensor."""

    @model_validator(mode="after")
    def _shapes_fit(self):
        if self.rotor_layers > max_rotor_layers(self.chart_dim):
            raise ValueError(
                f"rotor_layers: {max_rotor_layers(self.chart_dim)} layers already turn every plane of a "
                f"{self.chart_dim}-dimensional chart; {self.rotor_layers} is too many"
            )
        if self.metric == "block_rot" and (self.block % 2 or self.chart_dim % self.block):
            raise ValueError(f"block: blocks of {self.block} coordinates must be even and divide chart_dim, {self.chart_dim}")
        if self.frame == "learned_lowrank" and self.rank == 0:
            raise ValueError("rank: the frame learned_lowrank needs directions to learn; give at least 1")
        if self.frame == "learned_lowrank" and self.metric == "block_rot":
            raise ValueError("metric: block_rot has no rotors in the frame learned_lowrank; choose diag_rot")
        try:
            base_metric(self.chart_dim, self.base_metric)
        except UserError as problem:
            raise ValueError(f"base_metric: {problem}") from None
        return self

    @property
    def base(self) -> Geometry:
        """The constants derived from the base metric."""
        return precompute(base_metric(self.chart_dim, self.base_metric))

    @property
    def whitened_dim(self) -> int:
        """Dimension `m = n + r` of whitened chart points."""
        return self.chart_dim + self.rank


class ConvolutionConfig(Section):
    """The context from which queries, keys and values are projected: causal depthwise convolutions."""

    taps: int = Field(8, ge=1, le=2**12)
    """Lags `τ` of the short convolution, including lag 0."""
    long: bool = False
    """Add a convolution with the LIoR kernel over all earlier positions."""


def _tile(value: Any) -> Any:
    """One message for an invalid tile, where a union would give one for each of its types."""
    if value in (None, "auto") or (isinstance(value, int) and value is not True and 1 <= value <= 2**20):
        return value
    raise ValueError(f"{value!r} must be auto, null, or a whole number of positions from 1 to 2^20")


class RetrievalConfig(Section):
    """Retrieval (attention): terms added to the geodesic distance, and how it is computed."""

    lag_prior: bool = True
    """Weight retrieval by a LIoR kernel of the lag (a relative position bias)."""
    adaptive_order: bool = False
    """Let the carried LIoR action shift the fractional order of the lag prior from step to step."""
    fractional_order: float = Field(0.5, gt=0, lt=1)
    """The initial order α for `adaptive_order`; one half leaves the learned order unchanged."""
    products: Annotated[tuple[str, ...], SCORE_TERMS] = ()
    """Geometric products added to the scores, gated per head: `tensor`, `wedge`, `spinor`; or registered score terms."""
    tile: Annotated[int | Literal["auto"] | None, BeforeValidator(_tile)] = "auto"
    """Queries processed at a time, which saves memory and work at long contexts. Null for all; `auto` for a size that was
    measured to be fast on the backend."""
    kernel: Literal["auto", "plain", "interpret"] = "auto"
    """Fused GPU kernels: `auto` uses them if they support the terms above and the GPU is a suitable NVIDIA one, else the
    `plain` form, which is the only one that automatic differentiation supports; `interpret` runs the kernels in Pallas'
    interpreter, slowly, for tests."""

    @model_validator(mode="after")
    def _terms_fit(self):
        if self.adaptive_order and not self.lag_prior:
            raise ValueError("adaptive_order: shifts the order of the lag prior; set lag_prior: true too")
        if len(set(self.terms)) < len(self.terms):
            raise ValueError(f"products: {', '.join(self.terms)} contains one of them twice")
        return self

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of all score terms, in the order of retrieval."""
        return ("lag_prior",) * self.lag_prior + self.products


class FieldConfig(Section):
    """The prompt's field, whose read-out is added to retrieval."""

    evolution: Annotated[Literal["kernel", "master", "off"], BeforeValidator(off)] = "kernel"
    """Evolution of the field from token to token: by the LIoR `kernel` (linear attention with decay); by the `master` equation,
    which adds a site with a unitary turn and a pull to the evidence (the delta rule); or `off`, without a field."""
    project: bool = False
    """Add to every position's keys and values a read-out of the field of earlier positions, by learned probes."""

    @model_validator(mode="after")
    def _has_a_field(self):
        if self.project and self.evolution == "off":
            raise ValueError("project: without a field there is nothing to project; set evolution: kernel or master too")
        return self


class FlowConfig(Section):
    """The block's Hamiltonian flow, in place of a feed-forward layer."""

    potential: Annotated[str, POTENTIALS] = "gated"
    """The potential energy: `gated` units, as in a gated feed-forward layer; the modern `hopfield` energy, whose units are
    patterns that attract states; or a registered potential."""
    units: int = Field(256, ge=1, le=2**20)
    """Units `M` of the potential."""
    integrator: Annotated[str, INTEGRATORS] = "verlet"
    """Integrator of the flow: `verlet`, second order, one force per step; `yoshida4`, fourth order, three forces per step; or a
    registered one."""
    steps: int = Field(1, ge=1, le=2**12)
    """Steps `T` of the integrator in each block."""
    step_size: float = Field(1.0, gt=0)
    """Length `h` of one step, in units of the flow's time; below 2 for `verlet` and 1.57 for `yoshida4`, their stability limits
    at unit frequency."""
    carry_momentum: bool = False
    """Keep the momentum from block to block; then no activations are stored for learning."""

    @model_validator(mode="after")
    def _is_stable(self):
        limit = stability_limit(INTEGRATORS[self.integrator])
        if self.step_size >= limit:
            raise ValueError(
                f"step_size: {self.integrator} is unstable at {self.step_size:g} for unit frequency; give less than "
                f"{limit:.4g}, and more steps"
            )
        return self


class RelaxationConfig(Section):
    """The block's relaxation to a minimum of its energy, in place of the flow, for dissipative dynamics."""

    steps: int = Field(12, ge=1, le=2**12)
    """Steps of each block's relaxation."""
    rate: float = Field(0.85, gt=0, lt=2)
    """Length of a step, in units in which a block without potential converges in one."""
    momentum: float = Field(0.15, ge=0, lt=1)
    """Fraction of the previous step added to each step (heavy ball); 0 for gradient descent."""


DERIVED: dict[str, Any] = {"derived": True}
"""Marks a value derived from others, which is not a key of a configuration."""


class ModelConfig(Section):
    """Shapes and physics of the network (docs/design.md section 2)."""

    vocab_size: int | None = Field(None, ge=2, le=2**20)
    """Vocabulary size `V`; training takes it from the tokenizer, so leave it out."""
    context: int = Field(128, ge=2, le=2**20)
    """Positions `L` of a training window."""
    width: int = Field(128, ge=2, le=2**16)
    """Dimension `d` of the state of a position."""
    blocks: int = Field(4, ge=1, le=2**12)
    """Number of blocks."""
    heads: int = Field(4, ge=1, le=2**12)
    """Retrieval heads `H`; must divide `width`."""
    precision: Precision = "float32"
    """Precision of the matrix products: `float32`, `tf32` (the backend's default) or `bfloat16`; states stay float32."""
    geometry: GeometryConfig = GeometryConfig()
    convolution: ConvolutionConfig = ConvolutionConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    field: FieldConfig = FieldConfig()
    flow: FlowConfig = FlowConfig()
    relaxation: RelaxationConfig = RelaxationConfig()
    dynamics: Dynamics = Field("symplectic", json_schema_extra=DERIVED)
    """The dynamics after a block's kick; derived from `learning.rule`."""

    @property
    def vocabulary(self) -> int:
        """`vocab_size`, which every model with parameters has."""
        assert self.vocab_size is not None, "model.vocab_size follows from the tokenizer, or is given"
        return self.vocab_size

    @model_validator(mode="after")
    def _heads_fit(self):
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} heads do not divide the width {self.width}")
        return self
