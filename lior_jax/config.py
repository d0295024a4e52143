"""Validated configuration: what a run is made of, read from YAML, unknown keys refused with a suggestion.

Every section is immutable and hashable, so it can be a static argument of `jax.jit`.
"""

import difflib
import os
import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lior_jax import files
from lior_jax.errors import UserError
from lior_jax.physics.frames import max_rotor_layers
from lior_jax.physics.geometry import Geometry, base_metric, precompute
from lior_jax.physics.numerics import Precision


class Section(BaseModel):
    """Base of all sections: no unknown keys, no silent conversions, no changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _tuple(value: Any) -> Any:
    """YAML has lists where an immutable configuration needs tuples."""
    return tuple(value) if isinstance(value, list) else value


def _rows(value: Any) -> Any:
    return tuple(_tuple(row) for row in value) if isinstance(value, list) else value


def _off(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


def _path(value: str) -> str:
    """A path that the system can be asked for."""
    try:
        if b"\0" not in os.fsencode(value):
            return value
    except UnicodeEncodeError:
        pass
    raise ValueError("a path has neither NUL nor lone surrogates")


Rows = tuple[tuple[float, ...], ...]
PathText = Annotated[str, AfterValidator(_path)]

_COMPLAINTS = 20
"""Of a configuration that are told at once."""


class RunConfig(Section):
    """Where a run lives and what makes it repeatable."""

    directory: PathText = Field("runs/default", min_length=1)
    """Folder of the run: checkpoints, metrics, samples, figures."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the initial parameters, the order of the data and the samples."""


class DataConfig(Section):
    """What is read, and how it becomes tokens."""

    path: PathText | None = None
    """UTF-8 file, folder or glob; nothing stands for the embedded corpus, `pydoc_data.topics`."""
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


class ModelConfig(Section):
    """Shapes and physics of the network (DESIGN.md section 2)."""

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
    chart_dim: int = Field(16, ge=2, le=2**12)
    """Dimension `n` of each head's chart."""
    metric: Literal["diag_rot", "block_rot"] = "diag_rot"
    """Whether the metric's frame turns all chart coordinates together, or blocks of them, which costs less."""
    metric_block: int = Field(2, ge=2, le=2**12)
    """Coordinates in a block of `block_rot`; even, and divides `chart_dim`."""
    metric_rank: int = Field(2, ge=0, le=2**12)
    """Rank `r` of the low-rank part of the metric."""
    base_metric: Annotated[Rows | None, BeforeValidator(_rows)] = None
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
    taps: int = Field(8, ge=1, le=2**12)
    """Lags `τ` of the short context, the position itself included."""
    memory: bool = False
    """Add the LIoR kernel's memory of all earlier positions to the context."""
    lag_prior: bool = True
    """Weigh retrieval by a LIoR kernel of the lag."""
    adaptive_order: bool = False
    """Let the carried LIoR action move the fractional order of the lag prior from step to step."""
    fractional_order: float = Field(0.5, gt=0, lt=1)
    """The order α that `adaptive_order` starts from; one half leaves the learned order as it is."""
    products: Annotated[tuple[Literal["tensor", "wedge", "spinor"], ...], BeforeValidator(_tuple)] = ()
    """Geometric products added to the scores of retrieval, gated per head."""
    field: bool = True
    """Read the prompt's field state, propagated by a LIoR kernel, beside retrieval."""
    retrieval_tile: int | None = Field(128, ge=1, le=2**20)
    """Positions that retrieve at a time, from the keys before them; less memory and work at long contexts. Null for all."""
    potential_units: int = Field(256, ge=1, le=2**20)
    """Gated units `M` of the potential."""
    dynamics: Literal["symplectic", "dissipative"] | None = None
    """What follows a block's kick: a Hamiltonian flow, or relaxation to a minimum of the block's energy. Left out, it follows
    `learning.rule`."""
    relaxation_steps: int = Field(12, ge=1, le=2**12)
    """Steps of each block's relaxation (dissipative)."""
    relaxation_rate: float = Field(0.85, gt=0, lt=2)
    """Length of a step of the relaxation, in units where a block without potential settles in one."""
    relaxation_momentum: float = Field(0.15, ge=0, lt=1)
    """Share of the last step that a step of the relaxation goes on with (heavy ball); 0 for gradient flow."""
    leapfrog_steps: int = Field(1, ge=1, le=2**12)
    """Störmer–Verlet steps `T` of each block's flow."""
    step_size: float = Field(1.0, gt=0)
    """Length `h` of one step, in units of the flow's time; below 2, where leapfrog becomes unstable at unit frequency."""
    carry_momentum: bool = False
    """Keep the momentum from block to block; then no activation at all is stored for learning."""
    precision: Precision = "float32"
    """Of the matrix products: `float32`, `tf32` (the backend's default) or `bfloat16`; states stay float32."""

    @model_validator(mode="after")
    def _shapes_fit(self):
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} heads do not divide the width {self.width}")
        if self.rotor_layers > max_rotor_layers(self.chart_dim):
            raise ValueError(
                f"rotor_layers: {max_rotor_layers(self.chart_dim)} layers already turn every plane of a "
                f"{self.chart_dim}-dimensional chart; {self.rotor_layers} is too many"
            )
        if self.metric == "block_rot" and (self.metric_block % 2 or self.chart_dim % self.metric_block):
            raise ValueError(
                f"metric_block: blocks of {self.metric_block} coordinates must be even and divide chart_dim, {self.chart_dim}"
            )
        if self.frame == "learned_lowrank" and self.metric_rank == 0:
            raise ValueError("metric_rank: the frame learned_lowrank needs directions to learn; give at least 1")
        if self.frame == "learned_lowrank" and self.metric == "block_rot":
            raise ValueError("metric: block_rot has nothing to turn in the frame learned_lowrank; choose diag_rot")
        if self.step_size >= 2:
            raise ValueError(
                f"step_size: leapfrog is unstable at {self.step_size:g} for unit frequency; give less than 2, and more steps"
            )
        if self.adaptive_order and not self.lag_prior:
            raise ValueError("adaptive_order: it moves the order of the lag prior; set lag_prior: true too")
        if len(set(self.products)) < len(self.products):
            raise ValueError(f"products: {', '.join(self.products)} names one of them twice")
        try:
            base_metric(self.chart_dim, self.base_metric)
        except UserError as problem:
            raise ValueError(f"base_metric: {problem}") from None
        return self

    @property
    def geometry(self) -> Geometry:
        """What follows from the base metric."""
        return precompute(base_metric(self.chart_dim, self.base_metric))


class LearningConfig(Section):
    """How parameters learn from two phases (DESIGN.md section 4)."""

    rule: Literal["echo", "equilibrium"] | None = None
    """`echo`: the Hamiltonian echo, of symplectic dynamics; `equilibrium`: free and nudged relaxation, of dissipative dynamics.
    Left out, it follows `model.dynamics`, and is the echo if that is left out too."""
    nudge: Literal["centred", "one_sided", "random_sign"] = "centred"
    """`centred`: two runs pushed to both sides; `one_sided`: one pushed run against the free one, bias O(ε); `random_sign`
    (equilibrium): one pushed run, to a side drawn for each sequence, so that the bias averages out over sequences."""
    nudge_size: float = Field(1e-3, gt=0, le=0.3)
    """Size ε₀ of the push relative to the state. It need not follow the precision: products see mean and slope of the
    two runs, so their rounding is not amplified by 1 / ε."""
    nudged_steps: int | None = Field(None, ge=1, le=2**12)
    """Steps of a nudged relaxation (equilibrium); null for as many as the free one, `model.relaxation_steps`."""
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

    prompt: str = "The "
    """Beginning of the sample; must not be empty."""
    tokens: int = Field(160, ge=0)
    """Length of the sample; 0 for none."""
    temperature: float = Field(0.8, ge=0)
    """Boltzmann temperature; 0 takes the most probable token."""

    @model_validator(mode="after")
    def _prompt_is_there(self):
        if not self.prompt:
            raise ValueError("prompt: the model needs at least one character to start from")
        return self


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

    @model_validator(mode="after")
    def _rule_and_dynamics_fit(self):
        """One that is left out follows the other, here and nowhere else, so that the model's section stands by itself."""
        needs = {"echo": "symplectic", "equilibrium": "dissipative"}
        learns = {dynamics: rule for rule, dynamics in needs.items()}
        rule = self.learning.rule or learns.get(self.model.dynamics, "echo")
        dynamics = self.model.dynamics or needs[rule]
        if dynamics != needs[rule]:
            raise ValueError(
                f"learning.rule: {rule} needs model.dynamics: {needs[rule]}, and not {dynamics}; leave one of the two out"
            )
        object.__setattr__(self, "model", self.model.model_copy(update={"dynamics": dynamics}))
        object.__setattr__(self, "learning", self.learning.model_copy(update={"rule": rule}))
        model, learning = self.model, self.learning
        if rule == "echo":
            for key, of_equilibrium in (
                ("nudge", learning.nudge == "random_sign"),
                ("nudged_steps", learning.nudged_steps is not None),
                ("pull", learning.pull != "cross_entropy"),
                ("update", learning.update != "all"),
            ):
                if of_equilibrium:
                    value = getattr(learning, key)
                    raise ValueError(f"learning.{key}: {value} is nothing for the echo; set learning.rule: equilibrium too")
            return self
        if model.carry_momentum or model.leapfrog_steps > 1:
            key = "carry_momentum" if model.carry_momentum else "leapfrog_steps"
            raise ValueError(f"model.{key}: a relaxation has no momentum and no leapfrog steps; leave the key out")
        if learning.action_weight and not learning.learns_all:
            raise ValueError("learning.action_weight: it has no say unless learning.update is all and learning.pull is not off")
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


class _Loader(yaml.SafeLoader):
    """YAML that reads `1e-3` as a number (YAML 1.1 does not) and refuses keys that are no text or stand twice."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            fault = "is not text" if not isinstance(key, str) else "stands twice" if key in seen else None
            if fault:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} {fault}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Config:
    """Read and validate a YAML configuration.

    Args:
        path: the file.
        overrides: `section.key=value` strings, the value in YAML.

    Raises:
        UserError: a missing or malformed file, an unknown key, a wrong type or an impossible combination, named by
            its path, with what is allowed.
    """
    try:
        text = files.read(Path(path), "The configuration").decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"There is no configuration {path}; {_neighbours(Path(path))}.") from None
    except UnicodeDecodeError as problem:
        raise UserError(f"The configuration {path} is not UTF-8 (byte {problem.start}); give a YAML file.") from None
    except (OSError, ValueError) as problem:
        raise UserError(f"The configuration {str(path)!r} cannot be read: {problem}.") from None
    return parse(text, str(path), overrides)


def parse(text: str, source: str, overrides: tuple[str, ...] | list[str] = ()) -> Config:
    """As `load`, from the text of a YAML document; `source` names it in messages."""
    values = _yaml(text, source)
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{source} must be a mapping of sections such as `model:` and `training:`, not {_kind(values)}.")
    for override in overrides:
        _apply(values, override)
    return validate(values, source)


def validate(values: dict[str, Any], source: str) -> Config:
    """The `Config` of nested plain values; raises `UserError` as `load` does."""
    try:
        return Config.model_validate(values)
    except pydantic.ValidationError as problem:
        complaints = [_explain(error) for error in problem.errors()]
        if len(complaints) > _COMPLAINTS:
            complaints[_COMPLAINTS:] = [f"and {len(complaints) - _COMPLAINTS} more"]
        raise UserError(_one_line(f"{source}: " + "; ".join(complaints) + ".")) from None


def replace(config: Config, section: str, **values: Any) -> Config:
    """The configuration with some keys of a section set to values that are known to be valid."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def differences(old: Config, new: Config) -> list[str]:
    """Keys whose values differ, as `section.key: old → new`."""
    before, after = old.model_dump(), new.model_dump()
    return [
        f"{section}.{key}: {before[section][key]!r} → {after[section][key]!r}"
        for section in before
        for key in before[section]
        if before[section][key] != after[section][key]
    ]


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise UserError(f"{source} is not valid YAML: it is nested too deeply.") from None
    except Exception as problem:  # the library's own, and what its readers of numbers and dates raise for malformed ones
        mark = getattr(problem, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = getattr(problem, "problem", None) or str(problem)[:200] or type(problem).__name__
        raise UserError(_one_line(f"{source}{where} is not valid YAML: {reason}.")) from None


def _apply(values: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    parts = key.strip().split(".")
    if not sign or len(parts) != 2 or not all(parts):
        example = "section.key=value, for example --set training.steps=500"
        raise UserError(f"--set {_short(override)} must look like {example}.")
    section = values.get(parts[0])
    if section is None:
        section = values[parts[0]] = {}
    if isinstance(section, dict):
        section[parts[1]] = _yaml(value, f"--set {_short(override)}")


def _explain(error: dict[str, Any]) -> str:
    location = [str(part) for part in error["loc"]]
    path = ".".join(location)
    if error["type"] == "extra_forbidden":
        known = _keys(location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? Allowed here" if close else "allowed here"
        return f"unknown key {path}; {hint}: {', '.join(known)}"
    if error["type"] == "value_error":
        between = ": " if len(location) > 1 else "."  # what a section complains of begins with its key
        return between.join(filter(None, [path, str(error["ctx"]["error"])]))
    if error["type"] == "literal_error":
        return f"{path} is {_short(error['input'])}, but must be {error['ctx']['expected']}"
    if error["type"] == "model_type":
        return f"{path} must be a section with the keys {', '.join(_keys(location))}, not {_kind(error['input'])}"
    message = error["msg"].removeprefix("Input ").replace("should be", "must be")
    return f"{path} is {_short(error['input'])}, but {message}"


def _short(value: Any) -> str:
    """A value as it is shown in a sentence. YAML's aliases can make a few lines stand for more than any memory holds."""
    shown = reprlib.Repr()
    shown.maxlevel, shown.maxstring, shown.maxother = 3, 80, 80
    return shown.repr(value)


def _one_line(text: str) -> str:
    """A message without what a terminal would not print as it stands."""
    words = " ".join(text.split())
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in words)


def _keys(location: list[str]) -> list[str]:
    section: Any = Config
    for name in location:
        section = section.model_fields[name].annotation
    return sorted(section.model_fields)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), type(value).__name__)


def _neighbours(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("configs")
    found = sorted(str(candidate) for candidate in folder.glob("*.yaml"))
    close = difflib.get_close_matches(str(path), found, n=1)
    if close:
        return f"did you mean {close[0]}? Give the path of a YAML file"
    return f"there are {', '.join(found)}" if found else "give the path of a YAML file"
