"""Scoring a text from Python, and a memory that learns it without training.

    python examples/score_and_remember.py [RUN]

loads a run that training wrote, or makes a small model and trains it for a few steps. Then a text of another kind is scored;
half of its lines are read into the memory, which changes no parameter; and the other half is scored again. The memory is saved
as memory.safetensors.
"""

import sys

import jax

from lior_jax import config
from lior_jax.data import batch_at
from lior_jax.data.tokenizer import ByteTokenizer
from lior_jax.inference import Engine
from lior_jax.training.step import initial_state, train_step

SETTINGS = """
model: {vocab_size: 256, width: 32, context: 32, blocks: 1, heads: 2, flow: {units: 64}}
optimizer: {learning_rate: 1e-2, warmup_steps: 10}
training: {steps: 40}
"""
PROSE = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 20
LINES = [f"{number}: {number % 7} and {number**2 % 11};\n" for number in range(100, 200)]
SEEN, UNSEEN = "".join(LINES[0::2]), "".join(LINES[1::2])


def small_model() -> Engine:
    settings, tokenizer = config.parse(SETTINGS, "this example"), ByteTokenizer()
    tokens, state = tokenizer.encode(PROSE), initial_state(jax.random.key(0), settings)
    for step in range(settings.training.steps):
        state, _ = train_step(state, batch_at(tokens, 0, step, 8, settings.model.context), settings)
    return Engine(state.weights, settings.model, tokenizer)


def show(name: str, engine: Engine, text: str) -> None:
    score = engine.score(text)
    print(f"{name:12} {score.bits_per_character:.3f} bits/char   perplexity {score.perplexity:.2f}")


def main(run: str | None = None) -> None:
    engine = Engine.from_checkpoint(run) if run else small_model()
    show("alone", engine, UNSEEN)
    knowing = engine.remember(SEEN, capacity=4096)
    show("with memory", knowing, UNSEEN)
    print(f"{int(knowing.memory.bank.present)} entries, mixed with the model at weight {knowing.memory.mixture.weight:.2f}")
    knowing.save_memory("memory.safetensors")  # for this model only
    show("read again", engine.with_memory("memory.safetensors"), UNSEEN)


if __name__ == "__main__":
    main(*sys.argv[1:])
