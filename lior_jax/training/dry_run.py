"""What a run would need, told without running it."""

import jax
import jax.numpy as jnp

from lior_jax import data, model
from lior_jax.data.corpus import check_sample, with_vocabulary
from lior_jax.settings import Config
from lior_jax.training.step import initial_state, train_step


def report(config: Config) -> str:
    """Parameters, tokens, and the memory of the compiled step; nothing is trained, and nothing written.

    Raises:
        UserError: as training would, for the corpus, the vocabulary and the prompt of the samples.
    """
    corpus = data.load(config)
    config = with_vocabulary(config, corpus)
    check_sample(config, corpus)
    training, context = config.training, config.model.context
    state = jax.eval_shape(lambda key: initial_state(key, config), jax.random.key(0))
    window = jax.ShapeDtypeStruct((training.batch_size, context), jnp.int32)
    memory = train_step.lower(state, (window, window), config, True).compile().memory_analysis()
    per_epoch = data.windows_per_epoch(corpus.train, context) * context
    read = training.steps * training.batch_size * context
    # The new state lies where the old one was (`alias`), and the program's own code is beside both.
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    rows = {
        "parameters": f"{model.count(state.params):,}",
        "vocabulary": f"{config.model.vocab_size:,} tokens",
        "tokens per epoch": f"{per_epoch:,} in windows of {context}; {len(corpus.validation):,} more for validation",
        "tokens read": f"{read:,} in {training.steps:,} steps, {read / per_epoch:.1f} epochs",
        "memory of a step": f"{_mebibytes(total)}, of which {_mebibytes(memory.temp_size_in_bytes)} while it runs",
        "a checkpoint": _mebibytes(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))),
    }
    return "\n".join(f"{name:18}{value}" for name, value in rows.items())


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
