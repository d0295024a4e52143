"""Resource requirements of a run, without running it."""

import jax

from lior_jax import data, model, parallel
from lior_jax.data.corpus import check_sample
from lior_jax.data.sources import Report, unreported
from lior_jax.model.retrieval import choice
from lior_jax.parallel import Devices
from lior_jax.settings import Config
from lior_jax.training import memory, origin
from lior_jax.training.step import State, compiled, initial_state


def report(config: Config, reading: Report = unreported) -> str:
    """Parameters, tokens, and the memory of the compiled step. Nothing is trained, and nothing is written except, into the
    cache, the tokens of a long text.

    Args:
        reading: called with the progress of reading a long text.

    Raises:
        UserError: an error that training would raise for the corpus, the vocabulary or the prompt of the samples; or a step
            that is too large to compile.
    """
    config, corpus, _ = origin.begin(config, reading)
    check_sample(config, corpus)
    training, context = config.training, config.model.context
    state = jax.eval_shape(lambda key: initial_state(key, config), jax.random.key(0))
    per_epoch = data.windows_per_epoch(corpus.train, context) * context
    read = training.steps * training.batch_size * context
    devices = parallel.chosen(config)
    rows = {
        **({"devices": devices.sentence} if devices.sentence else {}),
        "parameters": f"{model.count(state.params):,}",
        "vocabulary": f"{config.model.vocab_size:,} tokens",
        "tokens per epoch": f"{per_epoch:,} in windows of {context}; {len(corpus.validation):,} more for validation",
        "tokens read": f"{read:,} in {training.steps:,} steps, {read / per_epoch:.1f} epochs",
        "retrieval": choice(config.model).sentence,
        "memory of a step": _memory(state, config, devices),
        "a checkpoint": _mebibytes(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))),
    }
    return "\n".join(f"{name:18}{value}" for name, value in rows.items())


def _memory(state: State, config: Config, devices: Devices) -> str:
    """Memory of the compiled step, and available memory. A step that cannot fit is not compiled, which would take minutes."""
    limit, least = memory.there(), memory.least(config)
    if limit is not None and least > limit:
        return f"more than {memory.size(least)}; there are {memory.size(limit)}: {memory.advice(config)}"
    with memory.explained(config):
        needs = compiled(config, devices, state).memory_analysis()
    if needs is None:
        return "not reported by this backend"
    # The new state reuses the memory of the old one (`alias`); the program's own code is not counted.
    total = needs.argument_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes + needs.temp_size_in_bytes
    found = f"{_mebibytes(total)}, of which {_mebibytes(needs.temp_size_in_bytes)} while it runs"
    if limit is None:
        return found
    return f"{found}; there are {memory.size(limit)}" + (f": {memory.advice(config)}" if total > limit else "")


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
