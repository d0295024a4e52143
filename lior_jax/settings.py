"""The sections of a configuration: every key with its default, its range and its meaning.

Every section is immutable and hashable, so it can be a static argument of `jax.jit`. `config` reads them from YAML.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lior_jax.errors import UserError
from lior_jax.physics.base_geometry import Geometry, base_metric, precompute
from lior_jax.physics.integrators import stability_limit
from lior_jax.physics.precision import Precision
from lior_jax.physics.rotor_planes import max_rotor_layers
from lior_jax.registry import INTEGRATORS, POTENTIALS, RULES, SCORE_TERMS, Dynamics
from lior_jax.sections import PathText, Section


def _off(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


Rows = tuple[tuple[float, ...], ...]


class RunConfig(Section):
    """Where a run lives and what makes it repeatable."""

    directory: PathText = Field("runs/default", min_length=1)
    """Folder of the run: checkpoints, metrics, samples, figures."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the initial parameters, the order of the data and the samples."""


class DataConfig(Section):
    """What is read, and how it becomes tokens."""

    path: PathText | None = Field(None, min_length=1)
    """UTF-8 file, folder or glob; null for the embedded corpus, `pydoc_data.topics`; `required` for a configuration that has to
    be given one."""
    tokenizer: str = "char"
    """`byte`, `char`, or `bpe:N` with N the size of the vocabulary."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the text, from its end, that is never trained on."""

    @model_validator(mode="after")
    def _tokenizer_is_known(self):
        if not re.fullmatch(r"byte|char|bpe:[1-9][0-9]{0,8}", self.tokenizer):
            raise ValueError(f"tokenizer: {self.tokenizer!r} is none of byte, char, bpe:N (for example bpe:2048)")
        if self.tokenizer.startswith("bpe:") and not 257 <= int(self.tokenizer[4:]) <= 2**20:
            raise ValueError(f"tokenizer: {self.tokenizer!r} must have room for the 256 bytes, and at most {2**20} tokens")
        return self


class GeometryConfig(Section):
    """The charts' metric: how distances between queries and keys, and along the flow, are measured."""

    chart_dim: int = Field(16, ge=2, le=2**12)
    """Dimension `n` of each head's chart, in which queries and keys are points."""
    metric: Literal["diag_rot", "block_rot"] = "diag_rot"
    """Whether the metric's frame turns all chart coordinates together, or blocks of them, which costs less."""
    block: int = Field(2, ge=2, le=2**12)
    """Coordinates in a block of `block_rot`; even, and divides `chart_dim`."""
    rank: int = Field(2, ge=0, le=2**12)
    """Rank `r` of the low-rank part of the metric."""
    base_metric: Rows | None = None
    """The metric `g₀` that the learned one is measured in: `chart_dim` rows of a symmetric positive definite matrix; null for
    the identity."""
    frame: Literal["rotor", "derived", "learned_lowrank"] = "derived"
    """Axes of the metric: learned `rotor` angles; `derived` from the running covariance of the keys; or the coordinate axes,
    with `learned_lowrank` directions as the only ones that are not axes."""
    rotor_layers: int = Field(4, ge=0, le=2**12)
    """Layers of Givens planes in the rotor frame of `diag_rot`; 0 keeps the coordinate axes. A block of `block_rot` has all
    its layers."""
    resilience: Literal["unit", "constitutive", "curvature"] = "unit"
    """What weighs geodesic costs and the action: nothing; the state's magnitude at the query; or its scalar curvature."""
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
            raise ValueError("metric: block_rot has nothing to turn in the frame learned_lowrank; choose diag_rot")
        try:
            base_metric(self.chart_dim, self.base_metric)
        except UserError as problem:
            raise ValueError(f"base_metric: {problem}") from None
        return self

    @property
    def base(self) -> Geometry:
        """What follows from the base metric."""
        return precompute(base_metric(self.chart_dim, self.base_metric))

    @property
    def whitened_dim(self) -> int:
        """Dimension `m = n + r` of whitened chart points."""
        return self.chart_dim + self.rank


class ConvolutionConfig(Section):
    """What a position's queries, keys and values are made of, beside itself: causal depthwise convolutions."""

    taps: int = Field(8, ge=1, le=2**12)
    """Lags `τ` of the short convolution, the position itself included."""
    long: bool = False
    """Add the LIoR kernel's convolution over all earlier positions."""


class RetrievalConfig(Section):
    """What scores of retrieval (attention) are made of, beside the geodesic distance."""

    lag_prior: bool = True
    """Weigh retrieval by a LIoR kernel of the lag."""
    adaptive_order: bool = False
    """Let the carried LIoR action move the fractional order of the lag prior from step to step."""
    fractional_order: float = Field(0.5, gt=0, lt=1)
    """The order α that `adaptive_order` starts from; one half leaves the learned order as it is."""
    products: Annotated[tuple[str, ...], SCORE_TERMS] = ()
    """Geometric products added to the scores, gated per head: `tensor`, `wedge`, `spinor`; or score terms that were
    registered."""
    tile: int | None = Field(128, ge=1, le=2**20)
    """Positions that retrieve at a time, from the keys before them; less memory and work at long contexts. Null for all."""

    @model_validator(mode="after")
    def _terms_fit(self):
        if self.adaptive_order and not self.lag_prior:
            raise ValueError("adaptive_order: it moves the order of the lag prior; set lag_prior: true too")
        if len(set(self.terms)) < len(self.terms):
            raise ValueError(f"products: {', '.join(self.terms)} names one of them twice")
        return self

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of all score terms, in the order in which retrieval has them."""
        return ("lag_prior",) * self.lag_prior + self.products


class FieldConfig(Section):
    """The prompt's field state, read beside retrieval (linear attention with decay)."""

    evolution: Annotated[Literal["kernel", "off"], BeforeValidator(_off)] = "kernel"
    """How the field moves on from token to token: as the LIoR `kernel` propagates it; or `off`, without a field."""


class FlowConfig(Section):
    """The block's Hamiltonian flow, which takes the place of a feed-forward layer."""

    potential: Annotated[str, POTENTIALS] = "gated"
    """What shapes the states: `gated` units, as of a gated feed-forward layer; the modern `hopfield` energy, whose units are
    patterns that states are drawn to; or a potential that was registered."""
    units: int = Field(256, ge=1, le=2**20)
    """Units `M` of the potential."""
    integrator: Annotated[str, INTEGRATORS] = "verlet"
    """How the flow is followed: by `verlet`, second order, one force a step; by `yoshida4`, fourth order, three forces a step;
    or by an integrator that was registered."""
    steps: int = Field(1, ge=1, le=2**12)
    """Steps `T` of the integrator in each block."""
    step_size: float = Field(1.0, gt=0)
    """Length `h` of one step, in units of the flow's time; below 2 for `verlet` and 1.57 for `yoshida4`, which become unstable
    there at unit frequency."""
    carry_momentum: bool = False
    """Keep the momentum from block to block; then no activation at all is stored for learning."""

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
    """The block's relaxation to a minimum of its energy, which the dissipative dynamics have in the flow's place."""

    steps: int = Field(12, ge=1, le=2**12)
    """Steps of each block's relaxation."""
    rate: float = Field(0.85, gt=0, lt=2)
    """Length of a step, in units where a block without potential settles in one."""
    momentum: float = Field(0.15, ge=0, lt=1)
    """Share of the last step that a step goes on with (heavy ball); 0 for gradient flow."""


DERIVED: dict[str, Any] = {"derived": True}
"""Marks a value that follows from others and is no key of a configuration."""


class ModelConfig(Section):
    """Shapes and physics of the network (docs/design.md section 2)."""

    vocab_size: int | None = Field(None, ge=2, le=2**20)
    """Vocabulary `V`; training takes it from the tokenizer, so leave it out."""
    context: int = Field(128, ge=2, le=2**20)
    """Positions `L` of a training window."""
    width: int = Field(128, ge=2, le=2**16)
    """Dimension `d` of the state of a position."""
    blocks: int = Field(4, ge=1, le=2**12)
    """Number of blocks."""
    heads: int = Field(4, ge=1, le=2**12)
    """Retrieval heads `H`; must divide `width`."""
    precision: Precision = "float32"
    """Of the matrix products: `float32`, `tf32` (the backend's default) or `bfloat16`; states stay float32."""
    geometry: GeometryConfig = GeometryConfig()
    convolution: ConvolutionConfig = ConvolutionConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    field: FieldConfig = FieldConfig()
    flow: FlowConfig = FlowConfig()
    relaxation: RelaxationConfig = RelaxationConfig()
    dynamics: Dynamics = Field("symplectic", json_schema_extra=DERIVED)
    """What follows a block's kick. It is that of `learning.rule`, and not set by hand."""

    @model_validator(mode="after")
    def _heads_fit(self):
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} heads do not divide the width {self.width}")
        return self


class LearningConfig(Section):
    """How parameters learn from two phases (docs/design.md section 4)."""

    rule: Annotated[str, RULES] = "echo"
    """`echo`: the Hamiltonian echo, of symplectic dynamics; `equilibrium`: free and nudged relaxation, of dissipative dynamics;
    or a rule that was registered. The model's dynamics follow from it."""
    nudge: Literal["centred", "one_sided", "random_sign"] = "centred"
    """`centred`: two runs pushed to both sides; `one_sided`: one pushed run against the free one, bias O(ε); `random_sign`
    (equilibrium): one pushed run, to a side drawn for each sequence, so that the bias averages out over sequences."""
    nudge_size: float = Field(1e-3, gt=0, le=0.3)
    """Size ε₀ of the push relative to the state. It need not follow the precision: products see mean and slope of the
    two runs, so their rounding is not amplified by 1 / ε."""
    nudged_steps: int | None = Field(None, ge=1, le=2**12)
    """Steps of a nudged relaxation (equilibrium); null for as many as the free one, `model.relaxation.steps`."""
    pull: Annotated[Literal["cross_entropy", "force", "target_embedding", "off"], BeforeValidator(_off)] = "cross_entropy"
    """What pulls on the last block's nudged state: the loss's force on its free state; that force anew at every step of the
    relaxation (equilibrium); the target's embedding (equilibrium); or nothing, and then nothing changes (equilibrium)."""
    update: Literal["all", "geometry"] = "all"
    """What learns: all parameters; or (equilibrium) the metrics and their rotors alone, from the difference of the LIoR action
    between the nudged phases."""
    action_weight: float = Field(0.0, ge=0)
    """Weight of the blocks' mean LIoR actions in the cost, beside the loss."""
    chunk: int | None = Field(None, ge=1)
    """Sequences whose nudged runs go at once; fewer need less memory and fit a CPU's cache. By default all."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of embedded channels, of kicks' channels and of potentials' units that a training step leaves out, at every
    position others, the same in both phases; what is kept is divided by one minus it."""
    residual_limit: float | None = Field(None, gt=0)
    """A step whose residual (the echo's reversibility, a relaxation's largest) is above this is not applied; null for
    the rule's own limit."""

    @model_validator(mode="after")
    def _keys_mean_something(self):
        rule = RULES[self.rule]
        default = LearningConfig.model_fields
        unknown = [key for key in rule.ignores if getattr(self, key) != default[key].default]
        unknown += ["nudge"] if self.nudge not in rule.nudges else []
        for key in unknown:
            raise ValueError(f"{key}: {getattr(self, key)} is nothing for {rule.name}; set learning.rule: equilibrium too")
        return self

    @property
    def learns_all(self) -> bool:
        """Whether anything but geometry changes."""
        return self.update == "all" and self.pull != "off"


class OptimizerConfig(Section):
    """AdamW after clipping, with linear warm-up and cosine decay."""

    learning_rate: float = Field(3e-3, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(100, ge=0)
    """Steps of linear warm-up."""
    final_fraction: float = Field(0.05, ge=0, le=1)
    """Learning rate of the last step, as a share of the peak."""
    weight_decay: float = Field(0.05, ge=0)
    """Decoupled decay of matrices; biases, scalars and metric parameters have none."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest global norm of the gradient estimate."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """Decay of the second moment."""


class SampleConfig(Section):
    """The text that training shows at every evaluation."""

    prompt: str | None = Field(None, min_length=1)
    """Beginning of the sample; null for the first characters of the text."""
    tokens: int = Field(160, ge=0)
    """Length of the sample; 0 for none."""
    temperature: float = Field(0.8, ge=0)
    """Boltzmann temperature; 0 takes the most probable token."""


class TrainingConfig(Section):
    """Length and rhythm of a run."""

    steps: int = Field(1000, ge=1, le=10**9)
    """Optimiser steps."""
    batch_size: int = Field(16, ge=1, le=2**16)
    """Windows per step."""
    eval_every: int = Field(250, ge=1)
    """Steps between evaluations."""
    eval_windows: int | None = Field(64, ge=1)
    """Windows, evenly spaced over the validation text, of an evaluation; null for all of them."""
    eval_stride: int | None = Field(None, ge=1)
    """Targets scored per validation window, the rest of it being history; null scores the whole window."""
    log_every: int = Field(10, ge=1)
    """Steps between lines of metrics."""
    save_every: int = Field(250, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(2, ge=1)
    """Latest checkpoints to keep, beside the best."""
    keep_every: int | None = Field(None, ge=1)
    """Keep the checkpoints of steps that this divides, too; null for none."""
    patience: int = Field(5, ge=1)
    """Steps in a row with bad numbers, none of which is applied, after which the run stops."""


class Config(Section):
    """A whole run."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    learning: LearningConfig = LearningConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    sample: SampleConfig = SampleConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="before")
    @classmethod
    def _dynamics_follow_the_rule(cls, values: Any) -> Any:
        """The model's section stands by itself, so it is told what the learning rule needs."""
        if not isinstance(values, dict):
            return values
        model, learning = values.get("model", {}), values.get("learning", {})
        rule = learning.get("rule", "echo") if isinstance(learning, dict) else getattr(learning, "rule", None)
        if not isinstance(rule, str) or rule not in RULES:
            return values  # which the rule's own section complains of
        dynamics = RULES[rule].dynamics
        if isinstance(model, dict):
            if model.get("dynamics", dynamics) != dynamics:
                raise ValueError(
                    f"model.dynamics: it follows from learning.rule: {rule} has {dynamics} ones; leave the key out"
                )
            return values | {"model": model | {"dynamics": dynamics}}
        if isinstance(model, ModelConfig):
            return values | {"model": model.model_copy(update={"dynamics": dynamics})}
        return values

    @model_validator(mode="after")
    def _model_and_rule_fit(self):
        flow, learning = self.model.flow, self.learning
        if self.model.dynamics == "dissipative":
            for key in ("carry_momentum", "steps", "integrator"):
                if getattr(flow, key) != FlowConfig.model_fields[key].default:
                    raise ValueError(f"model.flow.{key}: a relaxation has no momentum and no integrator; leave the key out")
            if learning.action_weight and not learning.learns_all:
                raise ValueError(
                    "learning.action_weight: it has no say unless learning.update is all and learning.pull is not off"
                )
        return self

    @model_validator(mode="after")
    def _sections_fit(self):
        chunk = self.learning.chunk
        if chunk is not None and self.training.batch_size % chunk:
            raise ValueError(f"learning.chunk: {chunk} does not divide training.batch_size, {self.training.batch_size}")
        stride = self.training.eval_stride
        if stride is not None and stride > self.model.context:
            raise ValueError(f"training.eval_stride: {stride} is longer than a window, model.context = {self.model.context}")
        if self.optimizer.warmup_steps >= self.training.steps:
            raise ValueError(
                f"optimizer.warmup_steps: {self.optimizer.warmup_steps} steps of warm-up leave nothing of the "
                f"{self.training.steps} in training.steps"
            )
        return self
