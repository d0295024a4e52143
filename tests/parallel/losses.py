"""Losses on many devices beside those on one, as JSON: python -m tests.parallel.losses CASE… < cases

Standard input is a JSON object of cases by name: `{"set": […], "layouts": [[data, model, shard_parameters], …], "steps": K}`;
the environment makes the devices, which must be there before JAX starts. Printed is, by name, a list with an entry for one
device and for each layout: `losses`, `sound`, and the largest relative `distance` of the parameters to those on one device.
"""

import json
import sys

import jax
import numpy as np

from lior_jax import config as configuration
from lior_jax.parallel import Devices, shardings
from lior_jax.training.step import initial_state, placed, step_on

SMALL = """
model: {vocab_size: 11, context: 8, width: 16, blocks: 2, heads: 4, geometry: {chart_dim: 4, rank: 2, rotor_layers: 1,
        curvature_terms: 2}, convolution: {taps: 2}, flow: {units: 8, step_size: 0.6}}
optimizer: {warmup_steps: 1, learning_rate: 1e-2}
training: {batch_size: 16, steps: 100}
"""


def batches(config, steps):
    """Random tokens, in which something can be learned: a token often follows from the one before it."""
    random = np.random.default_rng(0)
    size, length, vocabulary = config.training.batch_size, config.model.context, config.model.vocab_size
    for _ in range(steps):
        rows = [random.integers(vocabulary, size=size)]
        for _ in range(length):
            guess = random.integers(vocabulary, size=size)
            rows.append(np.where(random.random(size) < 0.7, (3 * rows[-1] + 1) % vocabulary, guess))
        rows = np.stack(rows, 1).astype(np.int32)
        yield rows[:, :-1], rows[:, 1:]


def trained(config, devices, steps):
    """Losses, whether all steps were sound, and the last state."""
    state = placed(initial_state, jax.random.key(0), config, devices)
    places = devices.of_state(state)
    losses, sound, yes = [], True, jax.device_put(True, devices.everywhere)
    run = step_on(devices, state)
    for batch in batches(config, steps):
        with devices.active():
            state, report = run(state, jax.device_put(batch, devices.batch), config, yes)
        losses.append(float(report.info.loss))
        sound = sound and bool(report.sound)
    assert run._cache_size() == 1, "the second step was compiled again"
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(places), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim), (leaf.shape, leaf.sharding, place)
    return losses, sound, jax.tree.map(np.asarray, state)


def distance(x, y):
    """Largest difference, as a share of the largest element."""
    return float(np.max(np.abs(x - y), initial=0) / (np.max(np.abs(y), initial=0) + 1e-9))


def main() -> None:
    shardings.SMALLEST = 1  # so that there is something to cut in small models
    found = {}
    for name, case in json.load(sys.stdin).items():
        found[name] = rows = []
        one = None
        for data, model, sharded in [(1, 1, False), *case["layouts"]]:
            override = [f"parallel.shard_parameters={sharded}".lower(), *case["set"]]
            config = configuration.parse(SMALL, name, override)
            losses, sound, state = trained(config, Devices(data, model, sharded), case["steps"])
            one = one or state
            far = max(map(distance, jax.tree.leaves(state.params), jax.tree.leaves(one.params)))
            rows.append({"losses": losses, "sound": sound, "distance": far})
            jax.clear_caches()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
