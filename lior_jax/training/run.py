"""A run from start to end: folder, corpus, state, loop, and summary."""

import time
from collections.abc import Iterable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lior_jax import data, model, parallel
from lior_jax.data.corpus import check_sample, with_vocabulary
from lior_jax.data.sources import Report
from lior_jax.data.tokenizer import replaced
from lior_jax.errors import UserError
from lior_jax.learning.optimizer import make_schedule
from lior_jax.model import retrieval
from lior_jax.parallel import Devices
from lior_jax.settings import Config
from lior_jax.storage import checkpoint, lock
from lior_jax.training import environment, events, origin, run_folder, summaries, tracking
from lior_jax.training.loop import Loop
from lior_jax.training.metrics import Metrics
from lior_jax.training.origin import Beginning
from lior_jax.training.reporting import Reporter, watched_pass, watched_reading
from lior_jax.training.signals import Stop
from lior_jax.training.step import State, initial_state
from lior_jax.training.summaries import Summary


class _Session(NamedTuple):
    """The components of a session of a run, once its folder is locked."""

    run: Path
    beginning: Beginning
    saved: run_folder.Saved | None
    stop_after: int | None
    stop: Stop
    report: events.Several
    devices: Devices


def train(
    config: Config,
    on_event: events.Subscriber | Iterable[events.Subscriber] | None = None,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    force: bool = False,
    stop: Stop | None = None,
) -> Summary:
    """Run a configuration to its end. Nothing is printed: events are reported to `on_event`.

    Args:
        config: as loaded; the vocabulary size is taken from the corpus.
        on_event: one subscriber or several (see `events`). A failing one is reported to the others and does not end the run.
        resume: continue from the newest intact checkpoint of `config.run.directory`.
        stop_after: save and return at this step, to be resumed later.
        force: resume even if the configuration or the corpus differs from that of the run.
        stop: checked after every step; asks to save and return.

    Raises:
        UserError: devices that are not present, an unusable corpus, a run folder in use, one that belongs to another
            configuration, too many bad steps in a row, or a last checkpoint that could not be saved.
        StoppedError: requested by `stop`, after saving (`NotBegunError`: before the first step).
    """
    started, report, stop = time.monotonic(), events.as_one(on_event), stop or Stop()
    devices = parallel.chosen(config)
    finished = summaries.of_finished(config) if resume else None
    if finished:
        report(events.AlreadyFinished(finished.directory, finished.step))
        return finished
    with ExitStack() as stack:
        run = run_folder.existing_folder(config.run.directory) if resume else run_folder.vacant_folder(config)
        if resume:
            stack.enter_context(lock.held(run))
        saved = run_folder.saved(run, config, force) if resume else None
        reading = watched_reading(report, stop)
        beginning = _continued(config, saved, force, reading) if saved else origin.begin(config, reading)
        config, corpus, _ = beginning
        if said := replaced(corpus.tokenizer, corpus.unknown):
            report(events.Replaced(said))
        check_sample(config, corpus)
        if not resume:
            run_folder.make_folder(run)
            stack.enter_context(lock.held(run))
            run_folder.vacant_folder(config)  # another process may have started and ended here in the meantime
            run_folder.clear(run)
            run_folder.write_record(run, config)
        trackers = stack.enter_context(tracking.opened(config, run))
        report = events.as_one([report, *trackers])
        session = _Session(run, beginning, saved, stop_after, stop, report, devices)
        step, best = _train(session)
        progress = partial(watched_pass, report=report, stop=session.stop)
        summary = summaries.write(run, config, corpus, step, best, started, progress)
        report(events.Finished(summary))
    return summary


def _train(session: _Session) -> tuple[int, int]:
    """Run the steps; returns the step reached, and that of the best checkpoint."""
    run, (config, corpus, begun_with), saved, stop_after, stop, report, devices = session
    training = config.training
    last_step = min(training.steps, stop_after or training.steps)
    report(events.Started(run, config, _size(config)))
    if devices.sentence:
        report(events.Spread(devices.sentence))
    if begun_with:
        report(events.Initialised(begun_with.path, begun_with.step))
    with ExitStack() as stack:
        checkpoints = stack.enter_context(checkpoint.Checkpoints(run, training.keep, training.keep_every))
        state, step = _restore(checkpoints, session) if saved else (origin.state(session.beginning, devices), 0)

        def reached(begin: int = step) -> int:
            return begin if checkpoints.latest is None else checkpoints.latest

        more: dict[str, Any] = {"retrieval": retrieval.choice(config.model).sentence}
        if begun_with:
            more["init_from"] = {"path": begun_with.path, "step": begun_with.step}

        def complain(sentence: str) -> None:
            report(events.EnvironmentNotRecorded(sentence))

        stack.enter_context(environment.recorded(run, step, reached, complain, more))
        owes_evaluation = saved is not None and _owes_evaluation(checkpoints, step, training.steps)
        with closing(Metrics(run, step, owes_evaluation)) as metrics:
            loop = Loop(config, corpus, checkpoints, Reporter(metrics, report), stop, devices)
            if saved:
                if saved.forced or saved.metadata.corpus != corpus.fingerprint:
                    # The folder belongs to this run from here on, even before the next save.
                    loop.save(state, step, checkpoints.validation_loss(step), owes_evaluation)
                    checkpoints.wait()
                run_folder.write_record(run, config)
            if owes_evaluation:
                loop.pause(state, step, evaluates=True)
            if step < last_step:
                report(events.Compiling())
            step = loop.go(state, step, last_step)
        checkpoints.wait()
        loop.report_saves(last=True)
        problem = " ".join(loop.complaints)
        stop.check(problem)
        if checkpoints.latest != step:
            raise UserError(f"{problem} Fix this, and continue with --resume {run}.".lstrip())
        assert checkpoints.best is not None  # the last step was saved
        return step, checkpoints.best


def _continued(config: Config, saved: run_folder.Saved, force: bool, reading: Report) -> Beginning:
    corpus = data.load(config, saved.metadata, force, reading)
    return Beginning(with_vocabulary(config, corpus), corpus, None)


def _owes_evaluation(checkpoints: checkpoint.Checkpoints, step: int, steps: int) -> bool:
    """Whether a saved step still has to be evaluated: an evaluation was due, or it is now the last step."""
    return checkpoints.owes_evaluation(step) or (step == steps and checkpoints.validation_loss(step) is None)


def _size(config: Config) -> int:
    return model.count(jax.eval_shape(partial(model.init, config=config.model), jax.random.key(0)))


def _restore(checkpoints: checkpoint.Checkpoints, session: _Session) -> tuple[State, int]:
    """The newest readable state, from which the run continues."""
    config, saved = session.beginning.config, session.saved
    assert saved is not None  # there is a checkpoint
    like, before = (
        checkpoint.abstract(partial(initial_state, config=given), jax.random.key(0), place=session.devices.of_state)
        for given in (config, saved.config)
    )
    if (like.params, like.optimizer) != (before.params, before.optimizer):
        raise UserError(f"Even with --force the saved parameters do not fit ({'; '.join(saved.forced)}); start a new run.")
    newest = checkpoints.newest(
        lambda step: like.restored(checkpoints.params(step, like.params), checkpoints.optimizer(step, like.optimizer))
    )
    assert newest is not None
    step, state, passed = newest
    checkpoints.set_aside(after=step)
    session.report(events.Resumed(step, tuple(passed)))
    steps_before, steps = saved.config.training.steps, config.training.steps
    if steps_before != steps:
        rates = (float(jnp.asarray(make_schedule(x.optimizer, x.training.steps)(state.step))) for x in (saved.config, config))
        session.report(events.Rescheduled(step, steps_before, steps, *rates))
    return state, step
