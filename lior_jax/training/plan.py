"""Cost estimates of a step on virtual devices: the step is compiled for their number, but not run."""

import math
from typing import Any, NamedTuple

import jax

from lior_jax import config as configuration
from lior_jax import model, parallel
from lior_jax.parallel import hlo
from lior_jax.settings import Config
from lior_jax.training import memory, origin
from lior_jax.training.step import compiled, initial_state

PEAK, BANDWIDTH = 400e12, 100e9
"""Default peak and bandwidth of a device, in FLOP/s and bytes/s: round numbers."""


class Plan(NamedTuple):
    """Resources of a step; sizes are in bytes per device."""

    devices: parallel.Devices
    count: int
    """Parameters of the model."""
    parameters: int
    optimizer: int
    """The optimiser's state, including the average of the weights."""
    temporaries: int
    work: hlo.Work


def make(config: Config) -> Plan:
    """Compile a step for JAX's devices, which `cli.backend.pretend` creates.

    Raises:
        UserError: the configuration does not fit the devices, or an error of `origin.begin` if the vocabulary must be read from
            the text.
    """
    config = _with_vocabulary(config)
    devices = parallel.chosen(config)
    state = jax.eval_shape(lambda key: initial_state(key, config), jax.random.key(0))
    program = compiled(config, devices, state)
    needs = program.memory_analysis()
    others = state.replace(params=None)
    return Plan(
        devices,
        model.count(state.params),
        own_bytes(state.params, devices.of_state(state).params),
        own_bytes(others, devices.of_state(others)),
        needs.temp_size_in_bytes if needs else 0,
        hlo.work(program.as_text() or "", devices.count),
    )


def own_bytes(tree: Any, places: Any) -> int:
    """Bytes per device of a tree of shapes with shardings `places`."""
    return sum(
        math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize
        for x, place in zip(jax.tree.leaves(tree), jax.tree.leaves(places), strict=True)
    )


def report(config: Config, peak: float = PEAK, bandwidth: float = BANDWIDTH) -> str:
    """The plan as a table.

    Args:
        peak: FLOP/s of a device.
        bandwidth: bytes/s that a device sends.
    """
    plan = make(config)
    sent = sum(plan.work.sent.values())
    computing, sending = plan.work.flops / peak, sent / bandwidth
    tokens = config.training.batch_size * config.model.context
    rows = {
        "devices": plan.devices.sentence or "one",
        "parameters": f"{plan.count:,}; {memory.size(plan.parameters)} per device",
        "optimiser state": f"{memory.size(plan.optimizer)} per device",
        "temporaries": f"{memory.size(plan.temporaries)} per device",
        "total memory": f"{memory.size(plan.parameters + plan.optimizer + plan.temporaries)} per device",
        "computation": f"{plan.work.flops:.3g} FLOP in matrix products, per device and step",
        "communication": f"{memory.size(round(sent))} sent, per device and step",
        **{
            f"  {kind}": f"{memory.size(round(plan.work.sent[kind]))} in {plan.work.calls[kind]:,} calls"
            for kind in plan.work.calls
        },
        "computation time": f"{_time(computing)} at {peak / 1e12:,.4g} TFLOP/s",
        "communication time": f"{_time(sending)} at {bandwidth / 1e9:,.4g} GB/s",
        "tokens/s": f"{tokens / (computing + sending):,.0f}, or {tokens / max(computing, sending):,.0f} if communication "
        f"overlaps with computation ({tokens:,} tokens per step)",
    }
    return "\n".join(f"{name:20}{value}" for name, value in rows.items())


def _with_vocabulary(config: Config) -> Config:
    """Set the vocabulary size from the tokenizer; kinds other than `byte` and `bpe` must read the text."""
    if config.model.vocab_size is not None:
        return config
    kind, _, size = config.data.tokenizer.partition(":")
    if kind in ("byte", "bpe"):
        return configuration.replace(config, "model", vocab_size=int(size) if size else 256)
    return origin.begin(config).config


def _time(seconds: float) -> str:
    return f"{seconds:,.3g} s" if seconds >= 1 else f"{1e3 * seconds:,.3g} ms"
