"""A run from start to end: folder, corpus, state, loop, and summary."""

import json
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lior_jax import data, model, parallel
from lior_jax.data.corpus import check_sample, with_vocabulary
from lior_jax.data.sources import Report
from lior_jax.data.tokenizer import replaced
from lior_jax.errors import UserError
from lior_jax.learning.optimizer import make_schedule
from lior_jax.model import retrieval
from lior_jax.parallel import ALONE, Devices, Processes
from lior_jax.settings import Config
from lior_jax.storage import arrays, checkpoint, lock, sums
from lior_jax.training import environment, events, origin, run_folder, summaries, tracking
from lior_jax.training.loop import Loop
from lior_jax.training.metrics import Metrics, Unwritten
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
    team: Processes


def train(
    config: Config,
    on_event: events.Subscriber | Iterable[events.Subscriber] | None = None,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    force: bool = False,
    stop: Stop | None = None,
    team: Processes = ALONE,
) -> Summary:
    """Run a configuration to its end. Nothing is printed: events are reported to `on_event`.

    Several processes all call it, with a folder of the run that they all see. The first one writes figures and messages, and
    only its subscribers get events.

    Args:
        config: as loaded; the vocabulary size is taken from the corpus.
        on_event: one subscriber or several (see `events`). A failing one is reported to the others and does not end the run.
        resume: continue from the newest intact checkpoint of `config.run.directory`.
        stop_after: save and return at this step, to be resumed later.
        force: resume even if the configuration or the corpus differs from that of the run.
        stop: checked after every step; asks to save and return.
        team: the processes that train together (`parallel.meeting.join`).

    Raises:
        UserError: devices that are not present, an unusable corpus, a run folder in use, one that belongs to another
            configuration, too many bad steps in a row, or a last checkpoint that could not be saved.
        StoppedError: requested by `stop`, after saving (`NotBegunError`: before the first step).
    """
    started, report, stop = time.monotonic(), events.as_one(on_event if team.is_first else None), stop or Stop()
    team.watch(stop)
    devices = parallel.chosen(config)
    finished = team.share(lambda: _finished(config)) if resume else None
    if finished:
        summary = summaries.parsed(finished)
        report(events.AlreadyFinished(summary.directory, summary.step))
        return summary
    with ExitStack() as stack:
        run = Path(config.run.directory)
        if resume:
            saved = _opened(stack, run, config, force, team)
        else:
            saved = None
            team.share(lambda: str(run_folder.vacant_folder(config)))
        reading = watched_reading(report, stop)
        beginning = _continued(config, saved, force, reading) if saved else origin.begin(config, reading)
        config, corpus, _ = beginning
        if said := replaced(corpus.tokenizer, corpus.unknown):
            report(events.Replaced(said))
        check_sample(config, corpus)
        _agree_on_text(beginning, team)
        if not resume:
            team.share(lambda: _begin(stack, run, config))
        _check_folder(run, team)
        if team.is_first:
            trackers = stack.enter_context(tracking.opened(config, run))
            report = events.as_one([report, *trackers])
        session = _Session(run, beginning, saved, stop_after, stop, report, devices, team)
        finish = _train(session)

        def conclude() -> dict[str, Any]:
            progress = partial(watched_pass, report=report, stop=session.stop)
            step, best = finish()
            return summaries.plain(summaries.write(run, config, corpus, step, best, started, progress))

        summary = summaries.parsed(team.share(conclude))
        report(events.Finished(summary))
    return summary


def _finished(config: Config) -> dict[str, Any] | None:
    summary = summaries.of_finished(config)
    return summaries.plain(summary) if summary else None


def _begin(stack: ExitStack, run: Path, config: Config) -> None:
    """Create the folder of a new run, lock it until the stack is left, and record the configuration."""
    run_folder.make_folder(run)
    stack.enter_context(lock.held(run))
    run_folder.vacant_folder(config)  # another process may have started and ended here in the meantime
    run_folder.clear(run)
    run_folder.write_record(run, config)


def _opened(stack: ExitStack, run: Path, config: Config, force: bool, team: Processes) -> run_folder.Saved | None:
    """Lock the folder of a run to resume until the stack is left, and read its state; the first process chooses the
    checkpoint."""
    own: list[run_folder.Saved | None] = []

    def choose() -> int:
        stack.enter_context(lock.held(run_folder.existing_folder(run)))
        own.append(run_folder.saved(run, config, force))
        return own[0].step if own[0] else 0

    step = team.share(choose)
    return own[0] if team.is_first else run_folder.saved(run, config, force, step)


def _agree_on_text(beginning: Beginning, team: Processes) -> None:
    """Raise `UserError` unless all processes have read the same text and start from the same parameters."""
    if team.count == 1:
        return
    corpus, origin_ = beginning.corpus, beginning.origin
    found = [corpus.fingerprint, sums.of([json.dumps(corpus.tokenizer.to_json(), sort_keys=True).encode()])]
    found.append("" if origin_ is None else arrays.digest(arrays.named(origin_.engine.params)))
    for index, other in enumerate(all_found := team.gather(found)):
        for name, here, there in zip(("text", "tokenizer", "run.init_from"), all_found[0], other, strict=True):
            if here != there:
                raise UserError(f"Processes 0 and {index} have read another {name}; give all of them the same.")


def _check_folder(run: Path, team: Processes) -> None:
    """Raise `UserError` unless all processes see the folder that the first one has created."""
    if team.count == 1:
        return
    blind = [index for index, sees in enumerate(team.gather(run_folder.sees(run))) if not sees]
    if blind:
        raise UserError(
            f"run.directory: {run} of process 0 is not seen by process {blind[0]}; give a folder on a disk that all share."
        )


def _train(session: _Session) -> Callable[[], tuple[int, int]]:
    """Run the steps. What is returned checks that the last one is saved, and gives its number and that of the best checkpoint;
    of several processes only the first calls it."""
    run, (config, corpus, begun_with), saved, stop_after, stop, report, devices, team = session
    training = config.training
    last_step = min(training.steps, stop_after or training.steps)
    report(events.Started(run, config, _size(config)))
    if devices.sentence:
        report(events.Spread(devices.sentence))
    if begun_with:
        report(events.Initialised(begun_with.path, begun_with.step))
    with ExitStack() as stack:
        checkpoints = stack.enter_context(checkpoint.Checkpoints(run, training.keep, training.keep_every, team))
        state, step = _restore(checkpoints, session) if saved else (origin.state(session.beginning, devices), 0)

        def reached(begin: int = step) -> int:
            return begin if checkpoints.latest is None else checkpoints.latest

        more: dict[str, Any] = {"retrieval": retrieval.choice(config.model).sentence}
        if begun_with:
            more["init_from"] = {"path": begun_with.path, "step": begun_with.step}

        def complain(sentence: str) -> None:
            report(events.EnvironmentNotRecorded(sentence))

        if team.count > 1:
            more["processes"] = team.count
        if team.is_first:
            stack.enter_context(environment.recorded(run, step, reached, complain, more))
        owes_evaluation = saved is not None and _owes_evaluation(checkpoints, step, training.steps)
        with closing(Metrics(run, step, owes_evaluation) if team.is_first else Unwritten()) as metrics:
            loop = Loop(config, corpus, checkpoints, Reporter(metrics, report), stop, devices, team)
            if saved:
                if saved.forced or saved.metadata.corpus != corpus.fingerprint:
                    # The folder belongs to this run from here on, even before the next save.
                    loop.save(state, step, checkpoints.validation_loss(step), owes_evaluation)
                    checkpoints.wait()
                if team.is_first:
                    run_folder.write_record(run, config)
            if owes_evaluation:
                loop.pause(state, step, evaluates=True)
            if step < last_step:
                report(events.Compiling())
            step = loop.go(state, step, last_step)
        checkpoints.wait()
        loop.report_saves(last=True)
        problem = " ".join(loop.complaints)
        loop.agree()
        stop.check(problem)

        def finish() -> tuple[int, int]:
            if checkpoints.latest != step:
                raise UserError(f"{problem} Fix this, and continue with --resume {run}.".lstrip())
            assert checkpoints.best is not None  # the last step was saved
            return step, checkpoints.best

        return finish


def _continued(config: Config, saved: run_folder.Saved, force: bool, reading: Report) -> Beginning:
    corpus = data.load(config, saved.metadata, force, reading)
    return Beginning(with_vocabulary(config, corpus), corpus, None)


def _owes_evaluation(checkpoints: checkpoint.Checkpoints, step: int, steps: int) -> bool:
    """Whether a saved step still has to be evaluated: an evaluation was due, or it is now the last step."""
    return checkpoints.owes_evaluation(step) or (step == steps and checkpoints.validation_loss(step) is None)


def _newest(checkpoints: checkpoint.Checkpoints) -> tuple[int, list[str]]:
    """The newest intact checkpoint, and a sentence about each damaged one after it."""
    newest = checkpoints.newest(checkpoints.metadata)
    assert newest is not None
    return newest[0], newest[2]


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

    def read(step: int) -> State:
        return like.restored(checkpoints.params(step, like.params), checkpoints.optimizer(step, like.optimizer))

    team = session.team
    if team.count == 1:
        newest = checkpoints.newest(read)
        assert newest is not None
        step, state, passed = newest
    else:  # the first process verifies the sums, and then all read their parts
        step, passed = team.share(lambda: _newest(checkpoints))
        checkpoints.trust(step)
        state = read(step)
    if team.is_first:
        checkpoints.set_aside(after=step)
    session.report(events.Resumed(step, tuple(passed)))
    steps_before, steps = saved.config.training.steps, config.training.steps
    if steps_before != steps:
        at = np.asarray(state.step)
        rates = (float(jnp.asarray(make_schedule(x.optimizer, x.training.steps)(at))) for x in (saved.config, config))
        session.report(events.Rescheduled(step, steps_before, steps, *rates))
    return state, step
