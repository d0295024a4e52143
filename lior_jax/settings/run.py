"""The sections beside the model's: run, data, learning, optimiser, samples, training."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lior_jax.registry import OPTIMIZERS, RULES, TRACKERS
from lior_jax.settings.sections import PathText, Section, off, system_path


class RunConfig(Section):
    """Where a run lives and what makes it repeatable."""

    directory: PathText = Field("runs/default", min_length=1)
    """Folder of the run: checkpoints, metrics, samples, figures."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the initial parameters, the order of the data and the samples."""
    init_from: PathText | None = Field(None, min_length=1)
    """Run, checkpoint of one (`RUN/checkpoints/STEP`) or exported model whose parameters and tokenizer a new run begins with;
    null for parameters drawn from the seed."""


class DataConfig(Section):
    """What is read, and how it becomes tokens."""

    path: PathText | None = Field(None, min_length=1)
    """File, folder or glob of UTF-8 texts, JSON lines (`.jsonl`) or parquet files, also packed (`.gz`, `.zst`); null for the
    embedded corpus, `pydoc_data.topics`; `required` for a configuration that has to be given one."""
    field: str = Field("text", min_length=1)
    """Key of JSON lines, or column of parquet files, that holds the text."""
    tokenizer: str = "char"
    """`byte`, `char`, `bpe:N` with N the size of the vocabulary, or the path of a `tokenizer.json` (Hugging Face's format)."""
    unknown: Literal["refuse", "replace"] = "refuse"
    """Whether a character that the vocabulary of `char` has not is refused, or replaced and counted. Where they are replaced,
    the vocabulary is that of the training part, and U+FFFD for all others."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the text, from its end, that is never trained on."""

    @model_validator(mode="after")
    def _tokenizer_is_known(self):
        if self.unknown == "replace" and self.tokenizer != "char":
            raise ValueError(f"unknown: replace is nothing for the tokenizer {self.tokenizer!r}; it is for char")
        if self.tokenizer.endswith(".json"):
            system_path(self.tokenizer)
            return self
        if not re.fullmatch(r"byte|char|bpe:[1-9][0-9]{0,8}", self.tokenizer):
            raise ValueError(
                f"tokenizer: {self.tokenizer!r} is none of byte, char, bpe:N (for example bpe:2048) and PATH/tokenizer.json"
            )
        if self.tokenizer.startswith("bpe:") and not 257 <= int(self.tokenizer[4:]) <= 2**20:
            raise ValueError(f"tokenizer: {self.tokenizer!r} must have room for the 256 bytes, and at most {2**20} tokens")
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
    pull: Annotated[Literal["cross_entropy", "force", "target_embedding", "off"], BeforeValidator(off)] = "cross_entropy"
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

    check_every: int = Field(200, ge=0)
    """Steps between measurements of `nudge_bias`, the relative change of the estimate by twice the nudge, on the step's own
    batch, each at the cost of two more estimates; 0 for none."""
    nudge_bias_limit: float = Field(0.05, gt=0)
    """A `nudge_bias` above this is complained of, with advice."""

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
    """What follows clipping: AdamW or Muon, their schedules, and an average of the weights."""

    name: Annotated[str, OPTIMIZERS] = "adamw"
    """`adamw`; or `muon`: orthogonalised momentum for the blocks' matrices and AdamW for the rest; or one that was
    registered."""
    learning_rate: float = Field(3e-3, gt=0)
    """Peak learning rate."""
    adam_learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of what `muon` leaves to AdamW (embedding, readout, metrics, kernels, gates, biases); null for
    `learning_rate`."""
    schedule: Literal["cosine", "linear", "warmup_stable_decay"] = "cosine"
    """How the learning rate falls after its warm-up: as a cosine, in a straight line, or not at all until the last
    `decay_fraction` of all steps, and then in a straight line."""
    warmup_steps: int = Field(100, ge=0)
    """Steps of linear warm-up."""
    decay_fraction: float = Field(0.2, gt=0, le=1)
    """Share of all steps in which the learning rate of `warmup_stable_decay` falls."""
    final_fraction: float = Field(0.05, ge=0, le=1)
    """Learning rate of the last step, as a share of the peak."""
    weight_decay: float = Field(0.05, ge=0)
    """Decoupled decay of matrices, times the learning rate; biases, scalars and metric parameters have none."""
    weight_decay_schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the decay goes to `weight_decay_final_fraction` of itself; the learning rate multiplies it all the same."""
    weight_decay_final_fraction: float = Field(0.0, ge=0)
    """Decay of the last step, as a share of the first; nothing for a constant one. Above 1 it grows."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest global norm of the gradient estimate."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of AdamW's first moment."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """Decay of AdamW's second moment."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Decay of Muon's momentum."""
    average: float | None = Field(None, ge=0, lt=1)
    """Decay of an exponential moving average of the weights, which evaluation, samples, checkpoints' losses and inference use
    (0.999 averages over about a thousand steps); null for the weights themselves."""

    @model_validator(mode="after")
    def _keys_mean_something(self):
        if self.name == "adamw" and self.adam_learning_rate is not None:
            raise ValueError("adam_learning_rate: is nothing for adamw; set learning_rate, or optimizer.name: muon")
        return self


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
    accumulate: int = Field(1, ge=1, le=2**16)
    """Parts that each batch is gone through in, one after another, each of `batch_size` / `accumulate` windows: the same step
    in less memory. `learning.chunk`, of each part, is for the nudged runs alone."""
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
    track: Annotated[tuple[str, ...], TRACKERS] = ()
    """Where figures go beside the run's folder: `wandb`, `mlflow`, `aim`, or trackers that were registered."""


def _shares(value: Any) -> Any:
    """One sentence for what is no number of devices, where a union would complain once for each of its types."""
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"{value!r} is neither a number of devices nor auto")


class ParallelConfig(Section):
    """How training is spread over devices (docs/scaling.md). The estimate is that of the whole batch, however it is."""

    data: Annotated[int | Literal["auto"], BeforeValidator(_shares)] = "auto"
    """Devices, or groups of `model` of them, that share each batch; `auto` for as many of those there are as divide its
    sequences."""
    model: int = Field(1, ge=1, le=2**12)
    """Devices that share the heads and the potential's units, both of which it must divide."""
    shard_parameters: bool = False
    """Cut parameters and the optimiser's state over `data`, too: less memory for more communication."""
