"""Work of a compiled program per device: floating-point operations of its matrix products, and bytes that it sends.

Both are read from the program's text (HLO). The body of a loop occurs there once and is counted with its number of iterations.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "f64": 8,
    "s64": 8,
    "u64": 8,
}
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_LINE = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(r"(?:to_apply|calls|body|condition|true_computation|false_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')

SENT = {
    "all-reduce": lambda size, n: 2 * (n - 1) / n * size,
    "all-gather": lambda size, n: (n - 1) / n * size,
    "reduce-scatter": lambda size, n: (n - 1) * size,
    "all-to-all": lambda size, n: (n - 1) / n * size,
    "collective-permute": lambda size, n: size,
}
"""Bytes that each of `n` devices sends in a collective with a result of `size` bytes, by ring algorithms."""


class Work(NamedTuple):
    """Work of a program, per device."""

    flops: float
    """Operations of matrix products; a multiplication and an addition count as two."""
    calls: Mapping[str, int]
    """Number of collectives by kind."""
    sent: Mapping[str, float]
    """Bytes sent by kind (`SENT`)."""


def work(text: str, devices: int) -> Work:
    """The work of a compiled program.

    Args:
        text: `compiled.as_text()`.
        devices: number of devices it was compiled for.
    """
    bodies, entry = _computations(text)
    times = _times(bodies, entry)
    flops, calls, sent = 0.0, Counter(), defaultdict(float)
    for name, lines in bodies.items():
        shapes = {result: kind for result, kind, _, _ in lines}
        for _, kind, operation, rest in lines:
            if operation == "dot":
                flops += times[name] * _products(kind, rest, shapes)
            elif operation in SENT:
                calls[operation] += times[name]
                sent[operation] += times[name] * SENT[operation](_size(kind), _group(rest, devices))
    return Work(flops, dict(calls), dict(sent))


_Lines = list[tuple[str, str, str, str]]
"""Name, type, operation and remainder of each line of a computation."""


def _computations(text: str) -> tuple[dict[str, _Lines], str]:
    """Lines of every computation by its name, and the name of the entry computation."""
    bodies: dict[str, _Lines] = {}
    entry, current = "", []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = bodies[head[2]] = []
            entry = head[2] if head[1] else entry
        elif found := _LINE.match(re.sub(r"/\*.*?\*/", "", line)):
            current.append((found[1], found[2], found[3], found[4]))
    return bodies, entry


def _times(bodies: dict[str, _Lines], entry: str) -> Counter:
    """How often each computation is executed."""
    times: Counter = Counter()

    def go(name: str, count: int) -> None:
        times[name] += count
        for _, _, operation, rest in bodies[name]:
            trips = _TRIPS.search(rest) if operation == "while" else None
            called = _CALLED.findall(rest) + re.findall(r"%([\w.\-]+)", "".join(_BRANCHES.findall(rest)))
            for other in called:
                go(other, count * (int(trips[1]) if trips else 1))

    go(entry, 1)
    return times


def _products(kind: str, rest: str, shapes: dict[str, str]) -> float:
    """Operations of a `dot`: two per element of its result and index of the contracted axes."""
    left = re.match(r"\s*(?:[^%]*)%([\w.\-]+)", rest)
    summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
    assert left is not None
    lengths = _lengths(shapes[left[1]])
    axes = [int(at) for at in summed[1].split(",") if at] if summed else []
    return 2.0 * math.prod(_lengths(kind)) * math.prod(lengths[at] for at in axes)


def _lengths(kind: str) -> list[int]:
    found = _ARRAY.search(kind)
    return [int(length) for length in found[2].split(",") if length] if found else []


def _size(kind: str) -> int:
    """Bytes of an array, or of all arrays of a tuple."""
    return sum(_BYTES[name] * math.prod(int(x) for x in axes.split(",") if x) for name, axes in _ARRAY.findall(kind))


def _group(rest: str, devices: int) -> int:
    """Number of devices in a replica group: `{{0,1},{2,3}}`, `[2,4]<=[8]`, or `mesh['a'=2,'b'=4] {'b'}`."""
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(iota[1])
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", axes[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'([^']*)'", axes[2]))
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return listed[1].count(",") + 1
    return devices
