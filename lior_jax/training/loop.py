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
import yaml
from tqdm import tqdm

from lior_jax import checkpoint, learning, model
from lior_jax import config as configuration
from lior_jax.config import Config
from lior_jax.errors import UserError
from lior_jax.inference import Engine, scoring
from lior_jax.learning.optimizer import make_schedule
from lior_jax.model import Params
from lior_jax.training import data
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
    corpus = data.load(config)
    config = with_vocabulary(config, corpus)
    run = _open_folder(config, resume)
    last_step = min(config.training.steps, stop_after or config.training.steps)
    with checkpoint.Checkpoints(run, keep=config.training.keep) as checkpoints:
        state, step = _resume(checkpoints, config, corpus) if resume else (_start(config), 0)
        with Metrics(run, after=step) as metrics:
            loop = _Loop(config, corpus, checkpoints, metrics, run)
            loop.go(state, step, last_step)
        checkpoints.wait()
        best = checkpoints.best
    engine = Engine.from_checkpoint(run, best)
    windows = scoring.cover(corpus.validation, config.model.context, config.training.eval_stride)
    nats = scoring.mean_nats(engine.params, windows, config.model) / corpus.characters_per_token
    summary = Summary(run, last_step, model.count(engine.params), best, nats, time.monotonic() - started)
    values = summary._asdict() | {"directory": str(run), "bits_per_character": summary.bits_per_character}
    _write(run / "summary.json", json.dumps(values, indent=2) + "\n")
    return summary


def with_vocabulary(config: Config, corpus: Corpus) -> Config:
    """The configuration with the vocabulary of its corpus filled in, or a `UserError` if it names another."""
    size, given = corpus.tokenizer.vocab_size, config.model.vocab_size
    if given not in (None, size):
        raise UserError(f"model.vocab_size is {given}, but the tokenizer has {size} tokens; leave the key out.")
    return config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": size})})


def resume_config(run: str | Path) -> Config:
    """The configuration that a run was started with."""
    with checkpoint.open_run(run) as checkpoints:
        saved = checkpoints.metadata(checkpoints.latest)["config"]
    config = configuration.validate(saved, f"The configuration saved in {run}")
    return config.model_copy(update={"run": config.run.model_copy(update={"directory": str(run)})})


@partial(jax.jit, static_argnums=2, donate_argnums=0)
def train_step(state: State, batch: tuple[jax.Array, jax.Array], config: Config) -> tuple[State, learning.Info]:
    """One echo estimate and one optimiser step."""
    gradient, info = learning.estimate(state.params, batch, config)
    updates, optimizer = learning.make_optimizer(config).update(gradient, state.optimizer, state.params)
    return State(optax.apply_updates(state.params, updates), optimizer), info


def initial_state(key: jax.Array, config: Config) -> State:
    """Parameters and optimiser state of step 0."""
    params = model.init(key, config.model)
    return State(params, learning.make_optimizer(config).init(params))


class _Loop:
    """The loop's collaborators, and its rhythm."""

    def __init__(self, config: Config, corpus: Corpus, checkpoints: checkpoint.Checkpoints, metrics: Metrics, run: Path):
        self.config, self.corpus, self.checkpoints, self.metrics, self.run = config, corpus, checkpoints, metrics, run
        windows = scoring.cover(corpus.validation, config.model.context, config.training.eval_stride)
        self.windows = scoring.spread(windows, config.training.eval_windows)
        self.metadata = {
            "config": config.model_dump(),
            "tokenizer": corpus.tokenizer.to_json(),
            "corpus": corpus.fingerprint,
        }

    def go(self, state: State, step: int, last_step: int) -> None:
        """Train from `step` to `last_step`; read a step's figures while the next one runs."""
        training = self.config.training
        progress = tqdm(
            total=training.steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 20,
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )
        figures: dict[str, str] = {}
        pending = None
        clock, clock_step = time.monotonic(), step
        with progress:
            while step < last_step:
                batch = data.batch_at(
                    self.corpus.train, self.config.run.seed, step, training.batch_size, self.config.model.context
                )
                state, info = train_step(state, batch, self.config)
                step += 1
                if pending is not None:
                    figures["loss"] = f"{float(pending.loss):.3f}"
                pending = info
                if step % training.log_every == 0:
                    rate = (step - clock_step) * training.batch_size * self.config.model.context / (time.monotonic() - clock)
                    clock, clock_step = time.monotonic(), step
                    figures["tok/s"] = f"{rate:,.0f}"
                    self._log(step, info, rate)
                if step % training.eval_every == 0 or step == training.steps:
                    nats = self._evaluate(state.params, step, float(info.loss))
                    figures["val"] = f"{nats:.3f}"
                    self._save(state, step, nats)
                    clock, clock_step = time.monotonic(), step
                elif step % training.save_every == 0 or step == last_step:
                    self._save(state, step, None)
                progress.set_postfix(figures, refresh=False)
                progress.update()

    def _log(self, step: int, info: learning.Info, rate: float) -> None:
        values = {name: np.asarray(value) for name, value in info._asdict().items()}
        learning_rate = np.asarray(make_schedule(self.config)(step - 1))
        self.metrics.write("train", step, values | {"learning_rate": learning_rate, "tokens_per_second": rate})

    def _evaluate(self, params: Params, step: int, loss: float) -> float:
        """Validate over the fixed windows and show a sample; returns nats per character."""
        per_token = scoring.mean_nats(params, self.windows, self.config.model)
        nats = per_token / self.corpus.characters_per_token
        bits = nats / math.log(2)
        values = {"nats_per_token": per_token, "nats_per_character": nats, "bits_per_character": bits}
        self.metrics.write("validation", step, values)
        tqdm.write(f"step {step:>6,}   training {loss:.3f}   validation {nats:.3f} nats/char = {bits:.3f} bits/char")
        sample = self.config.sample
        if sample.tokens:
            engine = Engine(params, self.config.model, self.corpus.tokenizer)
            text = engine.generate(
                sample.prompt, max_tokens=sample.tokens, temperature=sample.temperature, seed=self.config.run.seed, sample=step
            )
            self.metrics.write("sample", step, {"text": sample.prompt + text})
            tqdm.write("\n".join("    " + line for line in (sample.prompt + text).splitlines()))
        return nats

    def _save(self, state: State, step: int, nats: float | None) -> None:
        self.checkpoints.save(step, state.params, state.optimizer, self.metadata, nats)


def _start(config: Config) -> State:
    return jax.jit(initial_state, static_argnums=1)(jax.random.key(config.run.seed), config)


def _resume(checkpoints: checkpoint.Checkpoints, config: Config, corpus: Corpus) -> tuple[State, int]:
    step = checkpoints.latest
    if step is None:
        raise UserError(f"{config.run.directory} holds no finished checkpoint to resume from; start it anew.")
    metadata = checkpoints.metadata(step)
    saved = configuration.validate(metadata["config"], f"The configuration saved in {config.run.directory}")
    changed = [change for change in configuration.differences(saved, config) if not change.startswith("run.directory")]
    if changed:
        raise UserError(
            f"{config.run.directory} was started with another configuration ({'; '.join(changed)}); resume it with "
            f"`--resume {config.run.directory}` alone, or choose another run.directory."
        )
    if metadata["corpus"] != corpus.fingerprint:
        raise UserError(f"The corpus is not the one that {config.run.directory} was started with; restore it to resume.")
    like = checkpoint.abstract(partial(initial_state, config=config), jax.random.key(0))
    return State(checkpoints.params(step, like.params), checkpoints.optimizer(step, like.optimizer)), step


def _open_folder(config: Config, resume: bool) -> Path:
    run = Path(config.run.directory)
    if resume:
        checkpoint.open_run(run)
        return run
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(
            f"{run} already holds a run; go on with it by --resume {run}, or choose another folder by "
            f"--set run.directory={run.with_name(run.name + '-2')}."
        )
    try:
        run.mkdir(parents=True, exist_ok=True)
        _write(run / "config.yaml", yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True))
    except OSError as problem:
        raise UserError(f"run.directory: {run} cannot be written to ({problem.strerror}); choose another folder.") from None
    return run


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
