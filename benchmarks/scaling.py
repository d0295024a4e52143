"""One training step on 1, 2, 4 and 8 devices: tokens/s, bytes that each device sends, and losses.

    python benchmarks/scaling.py                         1, 2, 4 and 8 virtual devices of one processor
    python benchmarks/scaling.py --weak                  a constant number of sequences per device, instead of in total
    python benchmarks/scaling.py --set parallel.model=2 --set parallel.shard_parameters=true

Every number of devices is measured in a process of its own. Virtual devices share the cores of one processor, so they are no
faster than one: the ratio shows the overhead of partitioning and communication, not a speed-up. On a machine with several
real devices, `--real` uses the first 1, 2, 4, … of those.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

BASE = """
model: {vocab_size: 64, context: 64, width: 128, blocks: 3, heads: 8, flow: {units: 256}}
training: {batch_size: 16}
"""
FLAG = "--xla_force_host_platform_device_count"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="override a key")
    parser.add_argument("--devices", metavar="N", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=20, help="measured steps, after two warm-up steps")
    parser.add_argument("--weak", action="store_true", help="16 sequences per device, instead of 16 in total")
    parser.add_argument("--real", action="store_true", help="use real devices, instead of virtual ones")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given)))
        return
    rows = [run(given, count) for count in given.devices]
    first = rows[0]
    how = "weak" if given.weak else "strong"
    print(f"{first['parameters']:,} parameters on {first['kind']}, {how} scaling, {given.steps} steps")
    if not given.real:
        print(f"All devices are virtual, on one processor of {os.cpu_count()} cores: the figures show overhead, not speed-up.")
    print(f"{'devices':>8}{'tokens/s':>12}{'ratio':>8}{'sent, each':>16}{'collectives':>13}{'last loss':>12}")
    for row in rows:
        ratio, sent = row["speed"] / first["speed"], f"{row['sent'] / 2**20:,.2f} MiB"
        loss = f"{row['losses'][-1]:.6f}"
        print(f"{row['devices']:>8}{row['speed']:>12,.0f}{ratio:>8.2f}{sent:>16}{row['calls']:>13,}{loss:>12}")
    if not given.weak:
        far = max(abs(a / b - 1) for row in rows for a, b in zip(row["losses"], first["losses"], strict=True))
        print(f"largest relative difference of a loss from that on {first['devices']}: {far:.1e}")


def run(given: argparse.Namespace, count: int) -> dict:
    """The measurement of `count` devices, in a process of its own."""
    environment = dict(os.environ)
    if not given.real:
        environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{environment.get('XLA_FLAGS', '')} {FLAG}={count}".strip()}
    done = subprocess.run([sys.executable, *sys.argv, "--one", str(count)], env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def measured(given: argparse.Namespace) -> dict:
    """Median speed, bytes sent and losses on the first available devices."""
    import jax
    import numpy as np

    from lior_jax import config as configuration
    from lior_jax import model, parallel
    from lior_jax.parallel import hlo
    from lior_jax.training.step import initial_state, placed, step_on

    config = configuration.parse(BASE, "scaling", given.set)
    if given.weak:
        size = config.training.batch_size * given.one
        config = configuration.replace(config, "training", batch_size=size)
    devices = parallel.chosen(config, jax.devices()[: given.one])
    state = placed(initial_state, jax.random.key(0), config, devices)
    random, step = np.random.default_rng(0), step_on(devices, state)
    yes = jax.device_put(True, devices.everywhere)
    times, losses = [], []
    with devices.active():
        for _ in range(given.steps + 2):
            # Counting up from a random start: a text that can be learned completely.
            first = random.integers(64, size=(config.training.batch_size, 1))
            rows = ((first + np.arange(config.model.context + 1)) % 64).astype(np.int32)
            batch = jax.device_put((rows[:, :-1], rows[:, 1:]), devices.batch)
            begin = time.perf_counter()
            state, report = jax.block_until_ready(step(state, batch, config, yes))
            times.append(time.perf_counter() - begin)
            losses.append(float(report.info.loss))
        text = step.lower(state, batch, config, yes).compile().as_text()
    work = hlo.work(text, devices.count)
    tokens = config.training.batch_size * config.model.context
    return {
        "devices": devices.count,
        "kind": jax.devices()[0].device_kind,
        "parameters": model.count(state.params),
        "speed": tokens / statistics.median(times[2:]),
        "sent": sum(work.sent.values()),
        "calls": sum(work.calls.values()),
        "losses": losses,
    }


if __name__ == "__main__":
    main()
