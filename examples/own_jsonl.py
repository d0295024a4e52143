"""Training on JSON lines of one's own, from Python: a corpus, a run, and a continuation. Everything is in a temporary folder.

python examples/own_jsonl.py
"""

import json
import random
import tempfile
from pathlib import Path

from lior_jax import config, training
from lior_jax.inference import Engine
from lior_jax.training import events

SETTINGS = """
data: {field: sum, tokenizer: byte}
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
with tempfile.TemporaryDirectory() as folder:
    text = Path(folder) / "sums.jsonl"
    text.write_text("\n".join(lines))
    settings = config.parse(SETTINGS, "this example", [f"data.path={text}", f"run.directory={folder}/run"])
    summary = training.train(settings, show)
    print(Engine.from_checkpoint(summary.directory).generate("\n\n3 + 4 =", max_tokens=12, temperature=0.0))
