"""Training on JSON lines of one's own, from Python: a corpus, a run, and what it says.

python examples/own_jsonl.py
"""

import json
import random
from pathlib import Path

from lior_jax import config, training
from lior_jax.inference import Engine
from lior_jax.training import events

SETTINGS = """
run: {directory: run}
data: {path: sums.jsonl, field: sum, tokenizer: byte}
model: {width: 32, context: 32, blocks: 1, heads: 2}
optimizer: {learning_rate: 1e-2, warmup_steps: 10}
training: {steps: 100, batch_size: 8, eval_every: 50}
sample: {tokens: 0}
"""


def show(event):
    if isinstance(event, events.Validated):
        print(f"step {event.step:4}   {event.nats_per_character:.3f} nats/char")


random.seed(0)
lines = [json.dumps({"sum": f"{a} + {b} = {a + b}"}) for a, b in (random.choices(range(20), k=2) for _ in range(2000))]
Path("sums.jsonl").write_text("\n".join(lines))
summary = training.train(config.parse(SETTINGS, "this example"), show)
print(Engine.from_checkpoint(summary.directory).generate("\n\n3 + 4 =", max_tokens=12, temperature=0.0))
