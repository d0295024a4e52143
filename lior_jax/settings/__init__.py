"""The sections of a configuration: every key with its default, its range and its meaning.

Every section is immutable and hashable, so it can be a static argument of `jax.jit`. `config` reads them from YAML.
"""

from typing import Any

from pydantic import model_validator

from lior_jax.registry import POTENTIALS, RULES
from lior_jax.settings.model import (
    DERIVED,
    ConvolutionConfig,
    FieldConfig,
    FlowConfig,
    GeometryConfig,
    ModelConfig,
    RelaxationConfig,
    RetrievalConfig,
)
from lior_jax.settings.run import (
    DataConfig,
    LearningConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    SampleConfig,
    TrainingConfig,
)
from lior_jax.settings.sections import REQUIRED, Section, is_text

__all__ = [
    "DERIVED",
    "REQUIRED",
    "Config",
    "ConvolutionConfig",
    "DataConfig",
    "FieldConfig",
    "FlowConfig",
    "GeometryConfig",
    "LearningConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "RelaxationConfig",
    "RetrievalConfig",
    "RunConfig",
    "SampleConfig",
    "Section",
    "TrainingConfig",
    "is_text",
]


class Config(Section):
    """The configuration of a run."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    learning: LearningConfig = LearningConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    sample: SampleConfig = SampleConfig()
    training: TrainingConfig = TrainingConfig()
    parallel: ParallelConfig = ParallelConfig()

    @model_validator(mode="before")
    @classmethod
    def _dynamics_follow_the_rule(cls, values: Any) -> Any:
        """Copy the dynamics that the learning rule requires into the model's section, which is also used on its own."""
        if not isinstance(values, dict):
            return values
        model, learning = values.get("model", {}), values.get("learning", {})
        rule = learning.get("rule", "echo") if isinstance(learning, dict) else getattr(learning, "rule", None)
        if not isinstance(rule, str) or rule not in RULES:
            return values  # reported by the learning section itself
        dynamics = RULES[rule].dynamics
        if isinstance(model, dict):
            if model.get("dynamics", dynamics) != dynamics:
                raise ValueError(f"model.dynamics: is derived from learning.rule ({dynamics} for {rule}); leave the key out")
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
                    "learning.action_weight: has no effect unless learning.update is all and learning.pull is not off"
                )
        return self

    @model_validator(mode="after")
    def _units_can_be_kept(self):
        flow = self.model.flow
        if self.learning.keep == "ends":
            return self
        if self.model.dynamics == "dissipative":
            raise ValueError(f"learning.keep: {self.learning.rule} has no flow whose units could be stored; leave the key out")
        if flow.carry_momentum:
            raise ValueError(
                "learning.keep: with model.flow.carry_momentum nothing of a block is stored; leave one of the two keys out"
            )
        if POTENTIALS[flow.potential].keeping is None:
            raise ValueError(
                f"learning.keep: the potential {flow.potential} has no units that can be stored; leave the key out"
            )
        return self

    @model_validator(mode="after")
    def _sections_fit(self):
        chunk = self.learning.chunk
        batch, parts = self.training.batch_size, self.training.accumulate
        if batch % parts:
            raise ValueError(f"training.accumulate: {parts} does not divide training.batch_size, {batch}")
        if chunk is not None and batch // parts % chunk:
            part = f"a part of a batch, {batch} / {parts} = {batch // parts}" if parts > 1 else f"training.batch_size, {batch}"
            raise ValueError(f"learning.chunk: {chunk} does not divide {part}")
        stride = self.training.eval_stride
        if stride is not None and stride > self.model.context:
            raise ValueError(f"training.eval_stride: {stride} is longer than a window, model.context = {self.model.context}")
        if self.optimizer.warmup_steps >= self.training.steps:
            raise ValueError(
                f"optimizer.warmup_steps: {self.optimizer.warmup_steps} steps of warm-up must be fewer than "
                f"training.steps, {self.training.steps}"
            )
        return self

    @model_validator(mode="after")
    def _devices_fit(self):
        data, model = self.parallel.data, self.parallel.model
        batch, parts = self.training.batch_size, self.training.accumulate
        if data != "auto" and batch // parts % data:
            part = f"a part of a batch, {batch} / {parts} = {batch // parts}" if parts > 1 else f"training.batch_size, {batch}"
            raise ValueError(f"parallel.data: {data} does not divide {part}; give a divisor, or auto")
        for key, count in (("model.heads", self.model.heads), ("model.flow.units", self.model.flow.units)):
            if count % model:
                raise ValueError(f"parallel.model: {model} does not divide {key}, {count}; give a number that divides it")
        return self
