"""A run from start to end: batches, echo steps, evaluations, samples, checkpoints and a summary."""

import json
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
from tqdm import tqdm

from lior_jax import checkpoint, learning, model
from lior_jax import config as configuration
from lior_jax.config import Config
from lior_jax.errors import UserError
from lior_jax.inference import Engine, scoring
from lior_jax.learning.optimizer import make_schedule
from lior_jax.model import Params
from lior_jax.training import data, run_folder
from lior_jax.training.data import Corpus
from lior_jax.training.metrics import Metrics


class State(NamedTuple):
    """All that a step changes."""

    params: Params
    optimizer: optax.OptState


class Summary(NamedTuple):
    """What a run came to."""

    directory: Path
    step: int
    parameters: int
    best_step: int
    nats_per_character: float
    """Of the best checkpoint over the whole validation part."""
    seconds: float
    """Of this session, the final validation included."""

    @property
    def bits_per_character(self) -> float:
        return self.nats_per_character / math.log(2)


def train(config: Config, resume: bool = False, stop_after: int | None = None) -> Summary:
    """Run a configuration to its end.

    Args:
        config: as loaded; the vocabulary is taken from the corpus.
        resume: go on from the latest checkpoint of `config.run.directory`.
        stop_after: save and leave at this step, to be resumed later.

    Raises:
        UserError: an unusable corpus, a run folder in use, or one that belongs to another configuration.
    """
    started = time.monotonic()
    run = run_folder.existing_folder(config.run.directory) if resume else run_folder.vacant_folder(config)
    saved = run_folder.saved_metadata(run, config) if resume else None
    corpus = data.load(config, saved)
    config = with_vocabulary(config, corpus)
    _check_sample(config, corpus)
    if not resume:
        run_folder.make_folder(run, config)
    last_step = min(config.training.steps, stop_after or config.training.steps)
    with checkpoint.Checkpoints(run, keep=config.training.keep) as checkpoints:
        state, step = _restore(checkpoints, config) if saved else (_start(config), 0)
        with Metrics(run, after=step) as metrics:
            step = _Loop(config, corpus, checkpoints, metrics).go(state, step, last_step)
        checkpoints.wait()
        best = checkpoints.best
    engine = Engine.from_checkpoint(run, best)
    windows = scoring.cover(corpus.validation, config.model.context, config.training.eval_stride)
    nats = scoring.mean_nats(engine.params, windows, config.model) / corpus.characters_per_token
    summary = Summary(run, step, model.count(engine.params), best, nats, time.monotonic() - started)
    values = summary._asdict() | {"directory": str(run), "bits_per_character": summary.bits_per_character}
    (run / "summary.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return summary


def with_vocabulary(config: Config, corpus: Corpus) -> Config:
    """The configuration with the vocabulary of its corpus filled in, or a `UserError` if it names another."""
    size, given = corpus.tokenizer.vocab_size, config.model.vocab_size
    if given not in (None, size):
        raise UserError(f"model.vocab_size is {given}, but the tokenizer has {size} tokens; leave the key out.")
    return configuration.replace(config, "model", vocab_size=size)


@partial(jax.jit, static_argnums=2, donate_argnums=0)
def train_step(state: State, batch: tuple[jax.Array, jax.Array], config: Config) -> tuple[State, learning.Info]:
    """One echo estimate and one optimiser step."""
    gradient, info = learning.estimate(state.params, batch, config)
    updates, optimizer = learning.make_optimizer(config).update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)._replace(carried=info.carried)
    return State(params, optimizer), info


def initial_state(key: jax.Array, config: Config) -> State:
    """Parameters and optimiser state of step 0."""
    params = model.init(key, config.model)
    return State(params, learning.make_optimizer(config).init(params))


class _Loop:
    """The loop's collaborators, and its rhythm."""

    def __init__(self, config: Config, corpus: Corpus, checkpoints: checkpoint.Checkpoints, metrics: Metrics):
        self.config, self.corpus, self.checkpoints, self.metrics = config, corpus, checkpoints, metrics
        training = config.training
        self.windows = scoring.cover(corpus.validation, config.model.context, training.eval_stride, training.eval_windows)
        self.metadata = checkpoint.Metadata(config.model_dump(), corpus.tokenizer.to_json(), corpus.fingerprint)
        self.figures: dict[str, str] = {}
        self.clock: tuple[int, float] | None = None
        """Step and time from which the speed is measured; none before the first step and after a pause."""

    def go(self, state: State, step: int, last_step: int) -> int:
        """Train from `step` to `last_step`, reading a step's figures while the next one runs; returns the step reached."""
        training, model_config = self.config.training, self.config.model
        progress = tqdm(
            total=training.steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 20,
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )
        running: learning.Info | None = None
        with progress:
            while step < last_step:
                batch = data.batch_at(self.corpus.train, self.config.run.seed, step, training.batch_size, model_config.context)
                state, info = train_step(state, batch, self.config)
                if running is not None:
                    self._read(step, running)
                step, running = step + 1, info
                evaluates = step % training.eval_every == 0 or step == training.steps
                if evaluates or step % training.save_every == 0 or step == last_step:
                    self._read(step, running)
                    self._pause(state, step, evaluates)
                    running = self.clock = None
                progress.set_postfix(self.figures, refresh=False)
                progress.update()
        return step

    def _read(self, step: int, info: learning.Info) -> None:
        """Wait for a step, look at its loss, and write its figures down when they are due."""
        loss = float(info.loss)
        if not math.isfinite(loss):
            raise UserError(
                f"The loss became {loss} at step {step}; start again with a smaller optimizer.learning_rate. "
                f"The checkpoints up to then are kept in {self.config.run.directory}."
            )
        self.figures["loss"] = f"{loss:.3f}"
        now = time.monotonic()
        if self.clock is None:
            self.clock = step, now
        if step % self.config.training.log_every:
            return
        values = {name: np.asarray(value) for name, value in info._asdict().items() if name != "carried"}
        if info.carried.action is not None:
            values["fractional_order"] = np.asarray(info.carried.action.order).mean(-1)
        values["learning_rate"] = np.asarray(make_schedule(self.config)(step - 1))
        if step > self.clock[0]:
            tokens = (step - self.clock[0]) * self.config.training.batch_size * self.config.model.context
            values["tokens_per_second"] = tokens / (now - self.clock[1])
            self.figures["tok/s"] = f"{values['tokens_per_second']:,.0f}"
            self.clock = step, now
        self.metrics.write("train", step, values)

    def _pause(self, state: State, step: int, evaluates: bool) -> None:
        """Evaluate if it is time, save, and show a sample, in this order: nothing after the saving can lose it."""
        nats = self._evaluate(state.params, step) if evaluates else None
        self.checkpoints.save(step, state.params, state.optimizer, self.metadata, nats)
        if evaluates and self.config.sample.tokens:
            self._sample(state.params, step)

    def _evaluate(self, params: Params, step: int) -> float:
        """Validate over the fixed windows; returns nats per token."""
        nats = scoring.mean_nats(params, self.windows, self.config.model)
        per_character = nats / self.corpus.characters_per_token
        bits = per_character / math.log(2)
        values = {"nats_per_token": nats, "nats_per_character": per_character, "bits_per_character": bits}
        self.metrics.write("validation", step, values)
        tqdm.write(
            f"step {step:>6,}   training {self.figures['loss']}   validation {nats:.3f} nats/token"
            f"   = {per_character:.3f} nats/char = {bits:.3f} bits/char"
        )
        self.figures["val"] = f"{nats:.3f}"
        return nats

    def _sample(self, params: Params, step: int) -> None:
        """Show a continuation of the prompt."""
        sample = self.config.sample
        engine = Engine(params, self.config.model, self.corpus.tokenizer)
        text = sample.prompt + engine.generate(
            sample.prompt, max_tokens=sample.tokens, temperature=sample.temperature, seed=self.config.run.seed, sample=step
        )
        self.metrics.write("sample", step, {"text": text})
        tqdm.write("\n".join("    " + line for line in text.splitlines()))


def _start(config: Config) -> State:
    return jax.jit(initial_state, static_argnums=1)(jax.random.key(config.run.seed), config)


def _restore(checkpoints: checkpoint.Checkpoints, config: Config) -> tuple[State, int]:
    """The newest state that can be read."""
    like = checkpoint.abstract(partial(initial_state, config=config), jax.random.key(0))
    step, state = checkpoints.newest(
        lambda step: State(checkpoints.params(step, like.params), checkpoints.optimizer(step, like.optimizer))
    )
    if step != checkpoints.latest:
        tqdm.write(f"The checkpoint of step {checkpoints.latest} is damaged; going on from that of step {step}.")
    return state, step


def _check_sample(config: Config, corpus: Corpus) -> None:
    """A prompt that cannot be encoded is told now, not at the first evaluation."""
    try:
        corpus.tokenizer.encode(config.sample.prompt)
    except UserError as problem:
        raise UserError(f"sample.prompt: {problem}") from None
