"""The sections beside the model's: run, data, learning, optimiser, samples, training."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lior_jax.registry import OPTIMIZERS, RULES, TRACKERS
from lior_jax.settings.sections import PathText, Section, off, system_path


class RunConfig(Section):
    """The folder of a run, its seed, and its initial weights."""

    directory: PathText = Field("runs/default", min_length=1)
    """Folder of the run: checkpoints, metrics, samples, figures."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the initial parameters, the order of the data and the samples."""
    init_from: PathText | None = Field(None, min_length=1)
    """Run, checkpoint of one (`RUN/checkpoints/STEP`) or exported model, with whose parameters and tokenizer a new run starts;
    null for parameters drawn from the seed."""


class DataConfig(Section):
    """The text, and its tokenizer."""

    path: PathText | None = Field(None, min_length=1)
    """File, folder or glob of UTF-8 texts, JSON lines (`.jsonl`) or parquet files, also compressed (`.gz`, `.zst`); null for
    the embedded corpus, `pydoc_data.topics`; `required` if the user must set it."""
    field: str = Field("text", min_length=1)
    """Key of JSON lines, or column of parquet files, that holds the text."""
    tokenizer: str = "char"
    """`byte`, `char`, `bpe:N` with N the size of the vocabulary, or the path of a `tokenizer.json` (Hugging Face's format)."""
    unknown: Literal["refuse", "replace"] = "refuse"
    """Whether characters outside the vocabulary of `char` are refused, or replaced and counted. With `replace`, the vocabulary
    is that of the training part, with U+FFFD for all other characters."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Fraction of the text, at its end, that is held out from training."""

    @model_validator(mode="after")
    def _tokenizer_is_known(self):
        if self.unknown == "replace" and self.tokenizer != "char":
            raise ValueError(f"unknown: replace does not apply to the tokenizer {self.tokenizer!r}, only to char")
        if self.tokenizer.endswith(".json"):
            system_path(self.tokenizer)
            return self
        if not re.fullmatch(r"byte|char|bpe:[1-9][0-9]{0,8}", self.tokenizer):
            raise ValueError(
                f"tokenizer: {self.tokenizer!r} must be byte, char, bpe:N (for example bpe:2048) or PATH/tokenizer.json"
            )
        if self.tokenizer.startswith("bpe:") and not 257 <= int(self.tokenizer[4:]) <= 2**20:
            raise ValueError(f"tokenizer: {self.tokenizer!r} must have at least 256 tokens, one per byte, and at most {2**20}")
        return self


class LearningConfig(Section):
    """The learning rule (docs/design.md section 4)."""

    rule: Annotated[str, RULES] = "echo"
    """`echo`: the Hamiltonian echo, for symplectic dynamics; `equilibrium`: free and nudged relaxation, for dissipative
    dynamics; or a registered rule. The model's dynamics follow from it."""
    nudge: Literal["centred", "one_sided", "random_sign"] = "centred"
    """`centred`: two runs nudged to both sides; `one_sided`: one nudged run and the free one, with a bias of O(ε);
    `random_sign` (equilibrium): one nudged run, with a sign drawn for each sequence, so that the bias averages out over
    sequences."""
    nudge_size: float = Field(1e-3, gt=0, le=0.3)
    """Size ε₀ of the nudge relative to the state. It is independent of the precision: products act on mean and slope of the two
    runs, so their rounding is not amplified by 1 / ε."""
    nudged_steps: int | None = Field(None, ge=1, le=2**12)
    """Steps of a nudged relaxation (equilibrium); null for those of the free one, `model.relaxation.steps`."""
    pull: Annotated[Literal["cross_entropy", "force", "target_embedding", "off"], BeforeValidator(off)] = "cross_entropy"
    """The nudge of the last block's state: by the loss's force at its free state; by that force recomputed at every step of the
    relaxation (equilibrium); towards the target's embedding (equilibrium); or none, so that nothing is learned
    (equilibrium)."""
    update: Literal["all", "geometry"] = "all"
    """The parameters that are learned: all; or (equilibrium) only the metrics and their rotors, from the difference of the LIoR
    action between the nudged phases."""
    action_weight: float = Field(0.0, ge=0)
    """Weight of the blocks' mean LIoR actions in the cost, added to the loss."""
    keep: Literal["ends", "units"] = "ends"
    """The data of a block that the free phase stores for its echo: its `ends`; or also its `units` at every step of the flow,
    which saves a quarter of the flow's matrix products and takes memory for twice `model.flow.units` numbers per position and
    step (`gated`; once for `hopfield`)."""
    chunk: int | None = Field(None, ge=1)
    """Sequences whose nudged runs are processed at once; fewer need less memory and fit a CPU's cache. Null for all."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate of embedded channels, kicks' channels and potentials' units in training, with independent masks per position
    that are the same in both phases."""
    residual_limit: float | None = Field(None, gt=0)
    """Largest residual (the echo's reversibility, or the largest residual of a relaxation) at which a step is applied; null for
    the rule's own limit."""

    check_every: int = Field(200, ge=0)
    """Steps between measurements of `nudge_bias`, the relative change of the estimate when the nudge is doubled, on the step's
    batch; each costs two more estimates; 0 for none."""
    nudge_bias_limit: float = Field(0.05, gt=0)
    """A `nudge_bias` above this is reported, with advice."""

    @model_validator(mode="after")
    def _keys_mean_something(self):
        rule = RULES[self.rule]
        default = LearningConfig.model_fields
        unknown = [key for key in rule.ignores if getattr(self, key) != default[key].default]
        unknown += ["nudge"] if self.nudge not in rule.nudges else []
        for key in unknown:
            raise ValueError(f"{key}: {getattr(self, key)} does not apply to {rule.name}; set learning.rule: equilibrium too")
        return self

    @property
    def learns_all(self) -> bool:
        """Whether all parameters are learned, not only the geometry or none."""
        return self.update == "all" and self.pull != "off"


class OptimizerConfig(Section):
    """The optimiser: AdamW or Muon, schedules, clipping, and an average of the weights."""

    name: Annotated[str, OPTIMIZERS] = "adamw"
    """`adamw`; or `muon`: orthogonalised momentum for the blocks' matrices and AdamW for the rest; or a
    registered one."""
    learning_rate: float = Field(3e-3, gt=0)
    """Peak learning rate."""
    adam_learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of the parameters that `muon` leaves to AdamW (embedding, readout, metrics, kernels, gates, biases);
    null for `learning_rate`."""
    schedule: Literal["cosine", "linear", "warmup_stable_decay"] = "cosine"
    """Decay of the learning rate after warm-up: as a cosine, linearly, or constant until the last `decay_fraction` of all steps
    and then linearly."""
    warmup_steps: int = Field(100, ge=0)
    """Steps of linear warm-up."""
    decay_fraction: float = Field(0.2, gt=0, le=1)
    """Fraction of all steps in which the learning rate of `warmup_stable_decay` decays."""
    final_fraction: float = Field(0.05, ge=0, le=1)
    """Learning rate of the last step, as a fraction of the peak."""
    weight_decay: float = Field(0.05, ge=0)
    """Decoupled weight decay of matrices, multiplied by the learning rate; biases, scalars and metric parameters have none."""
    weight_decay_schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Schedule of the weight decay to `weight_decay_final_fraction` of itself; it is also multiplied by the learning rate."""
    weight_decay_final_fraction: float = Field(0.0, ge=0)
    """Weight decay of the last step, as a fraction of the first; unused if constant. Above 1 it grows."""
    clip_norm: float = Field(1.0, gt=0)
    """Global norm to which the gradient estimate is clipped."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of AdamW's first moment."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """Decay of AdamW's second moment."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Decay of Muon's momentum."""
    average: float | None = Field(None, ge=0, lt=1)
    """Decay of an exponential moving average of the weights, used by evaluation, samples and inference (0.999 averages over
    about a thousand steps); null for the weights themselves."""

    @model_validator(mode="after")
    def _keys_mean_something(self):
        if self.name == "adamw" and self.adam_learning_rate is not None:
            raise ValueError("adam_learning_rate: does not apply to adamw; set learning_rate, or optimizer.name: muon")
        return self


class SampleConfig(Section):
    """The sample shown at every evaluation."""

    prompt: str | None = Field(None, min_length=1)
    """Prompt of the sample; null for the first characters of the text."""
    tokens: int = Field(160, ge=0)
    """Length of the sample; 0 for none."""
    temperature: float = Field(0.8, ge=0)
    """Boltzmann temperature; 0 for greedy decoding."""


class TrainingConfig(Section):
    """Length of a run, and intervals of evaluation, logging and saving."""

    steps: int = Field(1000, ge=1, le=10**9)
    """Optimiser steps."""
    batch_size: int = Field(16, ge=1, le=2**16)
    """Windows per step."""
    accumulate: int = Field(1, ge=1, le=2**16)
    """Number of micro-batches of `batch_size` / `accumulate` windows into which each batch is split, processed in sequence: the
    same step in less memory. `learning.chunk` applies to each of them, and to the nudged runs only."""
    eval_every: int = Field(250, ge=1)
    """Steps between evaluations."""
    eval_windows: int | None = Field(64, ge=1)
    """Windows of an evaluation, evenly spaced over the validation text; null for all."""
    eval_stride: int | None = Field(None, ge=1)
    """Targets scored per validation window, the rest being history; null for the whole window."""
    log_every: int = Field(10, ge=1)
    """Steps between logged metrics."""
    save_every: int = Field(250, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(2, ge=1)
    """Number of latest checkpoints to keep, in addition to the best."""
    keep_every: int | None = Field(None, ge=1)
    """Also keep checkpoints of steps divisible by this; null for none."""
    patience: int = Field(5, ge=1)
    """Number of consecutive bad steps (not finite, or above the residual limit; none is applied) after which the run stops."""
    track: Annotated[tuple[str, ...], TRACKERS] = ()
    """Experiment trackers, in addition to the run's folder: `wandb`, `mlflow`, `aim`, or registered ones."""


def _shares(value: Any) -> Any:
    """Report an invalid value in one sentence; pydantic reports one error per type of a union."""
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"{value!r} is neither a number of devices nor auto")


class ParallelConfig(Section):
    """Partitioning of training over devices (docs/scaling.md). The estimate is that of the whole batch in every case."""

    data: Annotated[int | Literal["auto"], BeforeValidator(_shares)] = "auto"
    """Number of devices, or of groups of `model` devices, over which each batch is split; `auto` for the largest available
    number that divides its sequences."""
    model: int = Field(1, ge=1, le=2**12)
    """Number of devices over which heads and the potential's units are split; it must divide both."""
    shard_parameters: bool = False
    """Shard parameters and the optimiser's state over `data`, too: less memory for more communication."""
