"""What a run shows of itself at an evaluation: the validation loss and a sample."""

import math
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from lior_jax.data.corpus import Corpus
from lior_jax.inference import Engine, scoring
from lior_jax.model import Params
from lior_jax.settings import Config


class Evaluation:
    """Evaluations over the same windows of the validation text.

    Args:
        write: takes the figures: their kind, the step, and values by name.
        between: called again and again; may raise, to give up.
    """

    def __init__(
        self, config: Config, corpus: Corpus, write: Callable[[str, int, dict[str, Any]], None], between: Callable[[], object]
    ):
        self.config, self.corpus, self.write, self.between = config, corpus, write, between
        training = config.training
        self.windows = scoring.cover(corpus.validation, config.model.context, training.eval_stride, training.eval_windows)

    def validate(self, params: Params, step: int, loss: str) -> float | None:
        """Nats per token, or None if they are no number; told beside the training loss."""
        nats = scoring.mean_nats(params, self.windows, self.config.model, self.between)
        if not math.isfinite(nats):
            tqdm.write(f"step {step:>6,}   the validation loss is {nats}; this step cannot be the best.")
            return None
        per_character = nats / self.corpus.characters_per_token
        bits = per_character / math.log(2)
        values = {"nats_per_token": nats, "nats_per_character": per_character, "bits_per_character": bits}
        self.write("validation", step, values)
        tqdm.write(
            f"step {step:>6,}   training {loss}   validation {nats:.3f} nats/token"
            f"   = {per_character:.3f} nats/char = {bits:.3f} bits/char"
        )
        return nats

    def sample(self, params: Params, step: int) -> None:
        """Show a continuation of the prompt."""
        sample = self.config.sample
        engine = Engine(params, self.config.model, self.corpus.tokenizer)
        text = sample.prompt
        for piece in engine.stream(
            sample.prompt, max_tokens=sample.tokens, temperature=sample.temperature, seed=self.config.run.seed, sample=step
        ):
            self.between()
            text += piece
        self.write("sample", step, {"text": text})
        tqdm.write("\n".join("    " + line for line in text.splitlines()))
