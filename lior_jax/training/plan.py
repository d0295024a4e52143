"""What a step would take on devices that are not there: it is compiled for as many, and not run."""

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
"""Operations and bytes a second of a device, where nobody says otherwise: round numbers."""


class Plan(NamedTuple):
    """What a step takes; sizes are bytes on each device."""

    devices: parallel.Devices
    count: int
    """Parameters of the model."""
    parameters: int
    optimizer: int
    """The optimiser's state, and the average of the weights."""
    temporaries: int
    work: hlo.Work


def make(config: Config) -> Plan:
    """Compile a step for the devices that JAX has, as `cli.backend.pretend` makes them.

    Raises:
        UserError: the devices do not fit, or what `origin.begin` raises where the vocabulary has to be found in the text.
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
    """Bytes of a tree of shapes on each device."""
    return sum(
        math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize
        for x, place in zip(jax.tree.leaves(tree), jax.tree.leaves(places), strict=True)
    )


def report(config: Config, peak: float = PEAK, bandwidth: float = BANDWIDTH) -> str:
    """The plan as a table.

    Args:
        peak: floating-point operations a second of a device.
        bandwidth: bytes a second that a device sends.
    """
    plan = make(config)
    sent = sum(plan.work.sent.values())
    computing, sending = plan.work.flops / peak, sent / bandwidth
    tokens = config.training.batch_size * config.model.context
    rows = {
        "devices": plan.devices.sentence or "one",
        "parameters": f"{plan.count:,}; {memory.size(plan.parameters)} of them on each device",
        "optimiser state": f"{memory.size(plan.optimizer)} on each device",
        "temporaries": f"{memory.size(plan.temporaries)} on each device",
        "all of it": f"{memory.size(plan.parameters + plan.optimizer + plan.temporaries)} on each device",
        "a step computes": f"{plan.work.flops:.3g} FLOP in matrix products on each device",
        "a step sends": f"{memory.size(round(sent))} from each device",
        **{f"  {kind}": f"{memory.size(round(plan.work.sent[kind]))} in {plan.work.calls[kind]:,}" for kind in plan.work.calls},
        "computing takes": f"{_time(computing)} at {peak / 1e12:,.4g} TFLOP/s",
        "sending takes": f"{_time(sending)} at {bandwidth / 1e9:,.4g} GB/s",
        "tokens a second": f"{tokens / (computing + sending):,.0f}, or {tokens / max(computing, sending):,.0f} where a device "
        f"sends while it computes ({tokens:,} tokens a step)",
    }
    return "\n".join(f"{name:20}{value}" for name, value in rows.items())


def _with_vocabulary(config: Config) -> Config:
    """The vocabulary is that of the tokenizer; only some can be known without the text."""
    if config.model.vocab_size is not None:
        return config
    kind, _, size = config.data.tokenizer.partition(":")
    if kind in ("byte", "bpe"):
        return configuration.replace(config, "model", vocab_size=int(size) if size else 256)
    return origin.begin(config).config


def _time(seconds: float) -> str:
    return f"{seconds:,.3g} s" if seconds >= 1 else f"{1e3 * seconds:,.3g} ms"
