"""The training loop: steps, evaluations, saves, and their events."""

import math
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lior_jax import data
from lior_jax.data.corpus import Corpus
from lior_jax.learning import soundness
from lior_jax.learning.bias import nudge_bias
from lior_jax.model import Params
from lior_jax.parallel import ALONE, Devices, Processes
from lior_jax.settings import Config
from lior_jax.storage import checkpoint
from lior_jax.training import events
from lior_jax.training.bad_steps import BadSteps
from lior_jax.training.evaluation import Evaluation
from lior_jax.training.reporting import Reporter, watched_pass
from lior_jax.training.signals import Stop, StoppedError
from lior_jax.training.step import Report, State, step_key, step_on, train_step


class Loop:
    """The training loop and its collaborators."""

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        checkpoints: checkpoint.Checkpoints,
        reporter: Reporter,
        stop: Stop,
        devices: Devices,
        team: Processes = ALONE,
    ):
        self.config, self.corpus, self.checkpoints, self.reporter, self.stop = config, corpus, checkpoints, reporter, stop
        self.devices, self.team = devices, team
        self.progress = partial(watched_pass, report=reporter.report, stop=stop)
        self.evaluation = Evaluation(config, corpus, self.progress, stop.check)
        self.metadata = checkpoint.Metadata(config.model_dump(), corpus.tokenizer.to_json(), corpus.fingerprint)
        self.bad_steps = BadSteps(checkpoints.run, config, corpus.tokenizer, self.metadata, team)
        self.loss: float | None = None
        """Training loss of the last applied step."""
        self.complaints: list[str] = []
        """Errors of the session's last save, a sentence each, with which the run ends if there are any."""
        self.saving: int | None = None
        """Step whose save is not known to be finished."""
        self.biases: dict[int, jax.Array] = {}
        """`nudge_bias` of steps whose reports have not been read."""
        self.clock: tuple[int, float] | None = None
        """Step and time from which the speed is measured; None before the first step and after a pause."""
        self._rows = devices.rows(config.training.batch_size)
        self.asked: jax.Array | None = None
        """With several processes: the signal that asked any of them to stop before the last step, or 0; not waited for."""

    def go(self, state: State, step: int, last_step: int) -> int:
        """Train from `step` to `last_step`, or until asked to stop; returns the step reached.

        A step's report is read while the next step runs. If the step was bad, the next one leaves the state unchanged, so
        the state before the bad step is still available, and the next step is run again.

        Several processes take the same way through it: they decide by figures of the whole batch, and stop at the same step.
        """
        training = self.config.training
        # Committed to devices from the first step on: mixing committed and uncommitted arrays would compile a second program.
        state, yes = self.devices.put((state, True), (self.devices.of_state(state), self.devices.everywhere))
        run: Any = train_step if self.devices.mesh is None else step_on(self.devices, state)
        if self.team.count > 1 and step < last_step:
            # Gloo gives up if another process comes 30 s later to the first computation of all, and they compile at their pace.
            with self.devices.active():
                run.lower(state, self._placed(step), self.config, yes).compile()
            self.team.gather(None)
        running, proceed = None, yes
        leaving = self.agree()
        while step < last_step and not leaving:
            self._check(state, step)
            with self.devices.active():
                state, report = run(state, self._placed(step), self.config, proceed)
            self.report_saves()
            if running is not None and not self._read(step, running, state):
                running, proceed = None, yes
                continue
            self.reporter.send()
            step, running, proceed = step + 1, report, report.sound
            leaving = self._is_asked()
            evaluates = step % training.eval_every == 0 or step == training.steps
            if evaluates or leaving or step % training.save_every == 0 or step == last_step:
                self._read(step, running, state)
                self.pause(state, step, evaluates, last=step == last_step)
                running, proceed, self.clock = None, yes, None
                leaving = self.agree()
        return step

    def agree(self) -> bool:
        """Whether the run was asked to stop, in any of the processes, which wait for each other."""
        self.asked = None
        number = max(self.team.gather(self.stop.number or 0))
        if number:
            self.stop.number = number
        return number > 0

    def _is_asked(self) -> bool:
        """Whether the run was asked to stop. Several processes are told at the same step, without waiting for it: each one
        gives what it knows with a step, and takes the largest of the step before, whose report has been read."""
        if self.team.count == 1:
            return self.stop.requested
        before, self.asked = self.asked, self.devices.largest(self.stop.number or 0)
        if before is None or not int(before):
            return False
        self.stop.number = int(before)
        return True

    def pause(self, state: State, step: int, evaluates: bool, last: bool = False) -> None:
        """Evaluate if due, save, and report, in this order: a saved step has all its figures on disk, and an evaluated step is
        saved before it is shown."""
        nats, owes_evaluation = None, False
        if evaluates:
            weights = self.devices.on_first(state.weights)
            nats, owes_evaluation = self.team.share(lambda: self._evaluated(weights, step))
        self.save(state, step, nats, owes_evaluation)
        if evaluates:
            self.checkpoints.wait()
            self.report_saves(last or self.stop.requested)
        self.reporter.send()

    def save(self, state: State, step: int, nats: float | None, owes_evaluation: bool) -> None:
        """Start saving, after waiting for an earlier save."""
        self.checkpoints.wait()
        self.report_saves()
        self.checkpoints.save(step, state.weights, state.optimizer, self.metadata, nats, owes_evaluation)
        self.saving = step

    def report_saves(self, last: bool = False) -> None:
        """Report finished and failed saves; a failure of the last one is kept for the end."""
        complaints = self.checkpoints.complaints()
        if last:
            self.complaints += complaints
        else:
            for sentence in complaints:
                self.reporter.report(events.SaveFailed(sentence))
        if self.saving is not None and not complaints and self.saving in self.checkpoints.steps:
            step, self.saving = self.saving, None
            self.reporter.report(events.Saved(step))

    def _evaluated(self, weights: Params, step: int) -> tuple[float | None, bool]:
        """The result of `_evaluate`, and whether the evaluation is owed, since the run was asked to stop meanwhile."""
        try:
            return self._evaluate(weights, step), False
        except StoppedError:
            return None, True

    def _evaluate(self, weights: Params, step: int) -> float | None:
        """Validation loss, in nats per token, and sample; None for a loss that is not finite."""
        validated = self.evaluation.validate(weights, step, self.loss)
        self.reporter.note(validated)
        if self.config.sample.tokens:
            self.reporter.note(self.evaluation.sample(weights, step))
        return validated.nats_per_token if math.isfinite(validated.nats_per_token) else None

    def _check(self, state: State, step: int) -> None:
        """Measure the nudge's bias if it is due at the step that comes after `step`."""
        every = self.config.learning.check_every
        if every and (step + 1) % every == 0:
            # The key is made on each process by itself.
            at = state.step if self.team.count == 1 else jnp.asarray(np.asarray(state.step))
            config, key = self.config, step_key(at, self.config)
            with self.devices.active():
                self.biases[step + 1] = nudge_bias(
                    state.params, self._placed(step), config.model, config.learning, key, config.training.accumulate
                )

    def _batch(self, step: int, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        seed, size, context = self.config.run.seed, self.config.training.batch_size, self.config.model.context
        return data.batch_at(self.corpus.train, seed, step, size, context, rows)

    def _placed(self, step: int) -> tuple[np.ndarray, np.ndarray] | tuple[jax.Array, jax.Array]:
        """The batch of a step, sharded over the devices; with a single device it is left to the step. Of several processes each
        reads the rows that it holds."""
        if self.devices.mesh is None:
            return self._batch(step)
        size = self.config.training.batch_size
        return self.devices.batch_of(self._batch(step, self._rows), size)

    def _read(self, step: int, report: Report, state: State) -> bool:
        """Wait for a step and record it; returns whether it was sound.

        If it was not, `state` is the state before it.
        """
        if not report.sound:
            self.clock = None
            trees = {"params": state.params, "optimizer": state.optimizer}
            self.reporter.note(self.bad_steps.keep(step, report.info, self._batch(step - 1), trees))
            self.reporter.send()
            self.bad_steps.stop_if_too_many(step)
            return False
        self.bad_steps.in_a_row = 0
        if step in self.biases:
            bias = float(self.biases.pop(step))
            self.reporter.note(events.Checked(step, bias, soundness.bias_advice(bias, self.config.learning)))
            self.clock = None
        self.loss = float(report.info.loss)
        now = time.monotonic()
        if self.clock is None:
            self.clock = step, now
        if step % self.config.training.log_every:
            self.reporter.note(events.Step(step, self.loss))
            return True
        speed = None
        if step > self.clock[0]:
            tokens = (step - self.clock[0]) * self.config.training.batch_size * self.config.model.context
            speed = tokens / (now - self.clock[1])
            self.clock = step, now
        self.reporter.note(events.Step(step, self.loss, speed, _figures(report, speed)))
        return True


def _figures(report: Report, speed: float | None) -> dict[str, Any]:
    """The logged values of a step: numbers, and arrays by block."""
    info = report.info
    own = info._asdict()
    del own["carried"], own["observed"]
    values: dict[str, Any] = {name: np.asarray(value) for name, value in own.items()}
    if info.carried.action is not None:
        values["fractional_order"] = np.asarray(info.carried.action.order).mean(-1)
    values["learning_rate"] = np.asarray(report.learning_rate)
    return values if speed is None else values | {"tokens_per_second": speed}
