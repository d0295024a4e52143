"""Sentences about a run's events."""

import math

from lior_jax.registry import RULES
from lior_jax.training import events


def sentence(event: events.Event) -> str | None:
    """The text to show for an event, or None."""
    match event:
        case events.Started(directory, config, parameters):
            training, title = config.training, RULES[config.learning.rule].title
            batch = f"{training.steps:,} steps of {training.batch_size} x {config.model.context} tokens"
            return f"{directory.name}: {parameters:,} parameters, learning by {title}, {batch}."
        case events.Replaced(said) | events.Spread(said):
            return said
        case events.Initialised(source, step):
            which = "" if step is None else f", step {step:,}"
            return f"Starting from the weights and the tokenizer of {source}{which}, with a new optimiser state."
        case events.Resumed(step, passed):
            return "\n".join([*passed, f"Resuming from step {step}."])
        case events.Rescheduled(step, before, now, rate_before, rate):
            return (
                f"{now:,} steps instead of {before:,}: the learning rate after step {step:,} is {rate:.3g} where it would have "
                f"been {rate_before:.3g}; the optimiser's state is kept."
            )
        case events.AlreadyFinished(directory, step):
            return (
                f"{directory} is finished at step {step:,}; nothing was changed. To train further, use --set training.steps=N."
            )
        case events.Compiling():
            return "Compiling ..."
        case events.RefusedStep(step, reasons, folder, problem):
            kept = f"could not be written ({problem})" if problem else f"are in {folder}"
            return f"Step {step} was not applied: {', '.join(reasons)}; batch and state {kept}."
        case events.Checked(step, bias, advice) if advice:
            return f"Step {step}: doubling the nudge changes the estimate by {bias:.1%}, so it is biased; {advice}."
        case events.Validated():
            return _validated(event)
        case events.Sampled(_, text):
            return "\n".join("    " + line for line in text.splitlines())
        case events.SaveFailed(problem):
            return f"{problem} Training continues."
        case events.EnvironmentNotRecorded(problem):
            return problem
        case events.FiguresNotWritten(step, problem):
            return f"The figures of step {step} could not be written ({problem}); writing will be retried."
        case events.Profiled(folder, steps):
            return (
                f"A trace of {steps} steps is in {folder}: tensorboard --logdir {folder} (with the plugin xprof), or open its "
                "perfetto_trace.json.gz at https://ui.perfetto.dev."
            )
        case events.SubscriberFailed(subscriber, problem):
            return f"{subscriber} failed ({problem}); training continues."
    return None


def _validated(event: events.Validated) -> str:
    loss = "–" if event.training_loss is None else f"{event.training_loss:.3f}"
    if not math.isfinite(event.nats_per_token):
        return f"step {event.step:>6,}   the validation loss is {event.nats_per_token}; this step cannot be the best."
    return (
        f"step {event.step:>6,}   training {loss}   validation {event.nats_per_token:.3f} nats/token"
        f"   = {event.nats_per_character:.3f} nats/char = {event.bits_per_character:.3f} bits/char"
    )
