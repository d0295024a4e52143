"""What is asked on eight devices, as JSON: python -m tests.parallel.eight < {"folder": …}

`one` in the folder is a run that one device began; it goes on here. `eight` is begun here, and goes on on one device.
"""

import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from lior_jax import config as configuration
from lior_jax import parallel, training
from lior_jax.parallel import hlo, shardings
from lior_jax.storage import checkpoint
from lior_jax.training import plan
from lior_jax.training.step import initial_state
from tests.runs import Listener, tiny_config

LAYOUT = ["parallel.model=2", "parallel.shard_parameters=true"]
CHECKED = ["learning.check_every=5"]
LARGER = """
model: {vocab_size: 128, context: 16, width: 128, blocks: 2, heads: 4, flow: {units: 256}, geometry: {frame: rotor}}
parallel: {shard_parameters: true}
"""


def counted() -> dict:
    """What is read from a program whose work is known: five times a product, each of which is summed over devices."""
    devices = parallel.Devices(8)

    def grow(x, w):
        def step(w, _):
            seen = lax.with_sharding_constraint(x @ w, PartitionSpec("data"))
            return w + 1e-3 * (x.T @ seen), None

        return lax.scan(step, w, length=5)[0]

    def shape(*axes):
        return jax.ShapeDtypeStruct(axes, jnp.float32)

    with devices.active():
        places = {"in_shardings": (devices.batch, devices.everywhere), "out_shardings": devices.everywhere}
        compiled = jax.jit(grow, **places).lower(shape(16, 32), shape(32, 32)).compile()
    return hlo.work(compiled.as_text(), 8)._asdict()


def restored(folder: Path) -> bool:
    """Whether a checkpoint is the same, to the last bit, wherever its parts lie."""
    config = training.resume_config(folder / "one", LAYOUT)
    make = partial(initial_state, config=config)
    with checkpoint.open_run(folder / "one") as checkpoints:
        step, trees = checkpoints.latest, []
        for place in (None, parallel.chosen(config).of_state):
            like = checkpoint.abstract(make, jax.random.key(0), place=place)
            trees.append((checkpoints.params(step, like.params), checkpoints.optimizer(step, like.optimizer)))
    spread = [leaf for leaf in jax.tree.leaves(trees[1]) if not leaf.sharding.is_fully_replicated]
    assert len(spread) > 20
    return all(map(np.array_equal, *map(jax.tree.leaves, trees)))


def main() -> None:
    folder = Path(json.load(sys.stdin)["folder"])
    found = {"work": counted()}
    config = configuration.parse(LARGER, "larger")
    made = plan.make(config)
    found["plan"] = made._asdict() | {"devices": made.devices.count, "work": made.work._asdict()}
    shardings.SMALLEST = 1
    found["restored"] = restored(folder)
    listener = Listener()
    training.train(tiny_config(folder, "eight", *CHECKED, *LAYOUT), listener, stop_after=6)
    found["said"] = listener.said
    training.train(training.resume_config(folder / "one", LAYOUT), resume=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
