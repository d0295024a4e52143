"""A run from start to end: batches, echo steps, evaluations, samples, checkpoints and a summary."""

import json
import math
import sys
import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from lior_jax import data, model
from lior_jax.data.corpus import Corpus, check_sample, with_vocabulary
from lior_jax.errors import UserError
from lior_jax.inference import Engine, scoring
from lior_jax.learning import soundness
from lior_jax.settings import Config
from lior_jax.storage import checkpoint, files, lock
from lior_jax.training import run_folder
from lior_jax.training.bad_steps import BadSteps
from lior_jax.training.evaluation import Evaluation
from lior_jax.training.metrics import Metrics
from lior_jax.training.signals import Stop, StoppedError
from lior_jax.training.step import Report, State, initial_state, train_step


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


def train(
    config: Config, resume: bool = False, stop_after: int | None = None, force: bool = False, stop: Stop | None = None
) -> Summary:
    """Run a configuration to its end.

    Args:
        config: as loaded; the vocabulary is taken from the corpus.
        resume: go on from the newest whole checkpoint of `config.run.directory`.
        stop_after: save and leave at this step, to be resumed later.
        force: resume even if the configuration or the corpus is not that of the run.
        stop: asked after every step whether to save and leave.

    Raises:
        UserError: an unusable corpus, a run folder in use, one that belongs to another configuration, steps with bad numbers
            again and again, or a last checkpoint that could not be saved.
        StoppedError: `stop` asked for it; what was trained is saved.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        run = run_folder.existing_folder(config.run.directory) if resume else run_folder.vacant_folder(config)
        if resume:
            stack.enter_context(lock.held(run))
        saved = run_folder.saved(run, config, force) if resume else None
        corpus = data.load(config, saved.metadata if saved else None, another=force)
        config = with_vocabulary(config, corpus)
        check_sample(config, corpus)
        if not resume:
            run_folder.make_folder(run)
            stack.enter_context(lock.held(run))
            run_folder.vacant_folder(config)  # another process may have started and ended here meanwhile
            run_folder.write_record(run, config)
        return _run(run, config, corpus, saved, stop_after, stop or Stop(), started)


def _run(
    run: Path,
    config: Config,
    corpus: Corpus,
    saved: run_folder.Saved | None,
    stop_after: int | None,
    stop: Stop,
    started: float,
) -> Summary:
    """`train`, in a folder whose lock is held."""
    training = config.training
    last_step = min(training.steps, stop_after or training.steps)
    with checkpoint.Checkpoints(run, training.keep, training.keep_every) as checkpoints:
        state, step = _restore(checkpoints, config, saved) if saved else (_start(config), 0)
        owes_evaluation = saved is not None and checkpoints.owes_evaluation(step)
        with closing(Metrics(run, step, owes_evaluation)) as metrics:
            loop = _Loop(config, corpus, checkpoints, metrics, stop)
            if saved:
                if saved.forced or saved.metadata.corpus != corpus.fingerprint:
                    # From now on it is this run, whatever happens before the next save.
                    loop.save(state, step, checkpoints.validation_loss(step), owes_evaluation)
                    checkpoints.wait()
                run_folder.write_record(run, config)
            if owes_evaluation:
                loop.pause(state, step, evaluates=True)
            step = loop.go(state, step, last_step)
        checkpoints.wait()
        complaints = checkpoints.complaints()
        stop.check(" ".join(complaints))
        if checkpoints.latest != step:
            raise UserError(" ".join([*complaints, f"Mend it, and go on with --resume {run}."]))
        best = checkpoints.best
    engine = Engine.from_checkpoint(run, best)
    windows = scoring.cover(corpus.validation, config.model.context, training.eval_stride)
    nats = scoring.mean_nats(engine.params, windows, config.model, stop.check) / corpus.characters_per_token
    summary = Summary(run, step, model.count(engine.params), best, nats, time.monotonic() - started)
    values = summary._asdict() | {"directory": str(run), "bits_per_character": summary.bits_per_character}
    files.write_atomically(run / "summary.json", json.dumps(values, indent=2) + "\n")
    return summary


class _Loop:
    """The loop's collaborators, and its rhythm."""

    def __init__(self, config: Config, corpus: Corpus, checkpoints: checkpoint.Checkpoints, metrics: Metrics, stop: Stop):
        self.config, self.corpus, self.checkpoints, self.metrics, self.stop = config, corpus, checkpoints, metrics, stop
        self.evaluation = Evaluation(config, corpus, self._write, stop.check)
        self.metadata = checkpoint.Metadata(config.model_dump(), corpus.tokenizer.to_json(), corpus.fingerprint)
        self.bad_steps = BadSteps(checkpoints.run, config, corpus.tokenizer, self.metadata)
        self.figures: dict[str, str] = {}
        self.figures_are_written = True
        self.clock: tuple[int, float] | None = None
        """Step and time from which the speed is measured; none before the first step and after a pause."""

    def go(self, state: State, step: int, last_step: int) -> int:
        """Train from `step` to `last_step`, or until asked to stop; returns the step reached.

        A step's report is read while the next one runs. If it tells of bad numbers, the next one held itself back, so
        that the state which met them is still there, and is run again.
        """
        training = self.config.training
        progress = tqdm(
            total=training.steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 20,
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )
        # All in its place from the first step on: arrays without one, among others that have, would compile a second program.
        state, yes = jax.device_put((state, True), jax.devices()[0])
        running, proceed = None, yes
        leaving = self.stop.requested
        with progress:
            while step < last_step and not leaving:
                state, report = train_step(state, self._batch(step), self.config, proceed)
                for complaint in self.checkpoints.complaints():
                    tqdm.write(complaint + " Training goes on.")
                if running is not None and not self._read(step, running, state):
                    running, proceed = None, yes
                    continue
                step, running, proceed = step + 1, report, report.sound
                leaving = self.stop.requested
                evaluates = step % training.eval_every == 0 or step == training.steps
                if evaluates or leaving or step % training.save_every == 0 or step == last_step:
                    self._read(step, running, state)
                    self.pause(state, step, evaluates)
                    running, proceed, self.clock = None, yes, None
                    leaving = self.stop.requested
                progress.set_postfix(self.figures, refresh=False)
                progress.update()
        return step

    def pause(self, state: State, step: int, evaluates: bool) -> None:
        """Evaluate and show a sample if it is time, and save, in this order: a step that is saved has all its figures."""
        nats, owes_evaluation = None, False
        if evaluates:
            try:
                nats = self.evaluation.validate(state.params, step, self.figures.get("loss", "–"))
                if self.config.sample.tokens:
                    self.evaluation.sample(state.params, step)
            except StoppedError:
                nats, owes_evaluation = None, True
            else:
                self.figures["val"] = "–" if nats is None else f"{nats:.3f}"
        self.save(state, step, nats, owes_evaluation)

    def save(self, state: State, step: int, nats: float | None, owes_evaluation: bool) -> None:
        """Start saving."""
        self.checkpoints.save(step, state.params, state.optimizer, self.metadata, nats, owes_evaluation)

    def _batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        config = self.config
        return data.batch_at(self.corpus.train, config.run.seed, step, config.training.batch_size, config.model.context)

    def _read(self, step: int, report: Report, state: State) -> bool:
        """Wait for a step and write its figures down when they are due; returns whether it was sound.

        If it was not, `state` is the one that met it.
        """
        info = report.info
        if not report.sound:
            self.clock = None
            sentence = self.bad_steps.keep(step, info, self._batch(step - 1), state._asdict())
            tqdm.write(sentence)
            self._write("bad_step", step, {"reasons": ", ".join(soundness.complaints(info, self.config.learning))})
            self.bad_steps.stop_if_too_many(step)
            return False
        self.bad_steps.in_a_row = 0
        self.figures["loss"] = f"{float(info.loss):.3f}"
        now = time.monotonic()
        if self.clock is None:
            self.clock = step, now
        if step % self.config.training.log_every:
            return True
        values = {name: np.asarray(value) for name, value in info._asdict().items() if name != "carried"}
        if info.carried.action is not None:
            values["fractional_order"] = np.asarray(info.carried.action.order).mean(-1)
        values["learning_rate"] = np.asarray(report.learning_rate)
        if step > self.clock[0]:
            tokens = (step - self.clock[0]) * self.config.training.batch_size * self.config.model.context
            values["tokens_per_second"] = tokens / (now - self.clock[1])
            self.figures["tok/s"] = f"{values['tokens_per_second']:,.0f}"
            self.clock = step, now
        self._write("train", step, values)
        return True

    def _write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write figures down; a disk that does not take them is told once, and does not end the run."""
        try:
            self.metrics.write(kind, step, values)
            self.figures_are_written = True
        except OSError as problem:
            if self.figures_are_written:
                tqdm.write(f"The figures of step {step} could not be written ({problem}); they will be as soon as they can.")
            self.figures_are_written = False


def _start(config: Config) -> State:
    return jax.jit(initial_state, static_argnums=1)(jax.random.key(config.run.seed), config)


def _restore(checkpoints: checkpoint.Checkpoints, config: Config, saved: run_folder.Saved) -> tuple[State, int]:
    """The newest state that can be read, from which the run goes on."""
    like, before = (
        checkpoint.abstract(partial(initial_state, config=given), jax.random.key(0)) for given in (config, saved.config)
    )
    if like != before:
        raise UserError(
            f"Not even --force makes other parameters of the saved ones ({'; '.join(saved.forced)}); start a new run."
        )
    step, state, passed = checkpoints.newest(
        lambda step: State(checkpoints.params(step, like.params), checkpoints.optimizer(step, like.optimizer))
    )
    for sentence in passed:
        tqdm.write(sentence)
    checkpoints.set_aside(after=step)
    tqdm.write(f"Going on from step {step}.")
    return state, step
