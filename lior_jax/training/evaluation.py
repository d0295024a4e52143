"""Evaluations during a run: the validation loss and a sample."""

import math
from collections.abc import Callable

from lior_jax.data.corpus import Corpus
from lior_jax.inference import Engine, scoring
from lior_jax.model import Params
from lior_jax.settings import Config
from lior_jax.training import events


class Evaluation:
    """Evaluations over the same windows of the validation text.

    Args:
        progress: wraps the iteration over windows; may raise to stop.
        check: called repeatedly while a sample is drawn; may raise to stop.
    """

    def __init__(self, config: Config, corpus: Corpus, progress: scoring.Progress, check: Callable[[], object]):
        self.config, self.corpus, self.progress, self.check = config, corpus, progress, check
        training = config.training
        self.windows = scoring.cover(corpus.validation, config.model.context, training.eval_stride, training.eval_windows)

    def validate(self, params: Params, step: int, training_loss: float | None) -> events.Validated:
        """The validation loss, with the training loss."""
        nats = scoring.mean_nats(params, self.windows, self.config.model, self.progress)
        per_character = nats / self.corpus.characters_per_token
        return events.Validated(step, training_loss, nats, per_character, per_character / math.log(2))

    def sample(self, params: Params, step: int) -> events.Sampled:
        """A continuation of the prompt."""
        sample = self.config.sample
        engine = Engine(params, self.config.model, self.corpus.tokenizer)
        assert sample.prompt is not None  # the first characters of the text, unless set
        text = sample.prompt
        for piece in engine.stream(
            text, max_tokens=sample.tokens, temperature=sample.temperature, seed=self.config.run.seed, sample=step
        ):
            self.check()
            text += piece
        return events.Sampled(step, text)
