"""Which form of retrieval a block runs: the plain one (`physics.retrieval`), or the fused kernels (`kernels.retrieval`).

The choice is made at trace time, from the configuration and JAX's default backend. `lax.platform_dependent` would choose at
lowering, but traces both: automatic differentiation, the oracle of the tests, fails on a kernel even where none would run.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
from jax import Array, lax
from jax.sharding import PartitionSpec

from lior_jax import parallel
from lior_jax.model.charts import Points
from lior_jax.parallel import DATA, MODEL
from lior_jax.physics import retrieval
from lior_jax.physics.retrieval import Couplings
from lior_jax.settings import ModelConfig

KNOWN_TERMS = {"lag_prior"}
"""Score terms of `model.retrieval` that the kernels support."""

LARGEST = 128
"""Largest dimension of points and values that the kernels support."""

OLDEST = 8.0
"""Smallest NVIDIA compute capability for the kernels: it has products in TF32 and bfloat16."""


BY_SEQUENCE, BY_HEAD = PartitionSpec(DATA, None, MODEL), PartitionSpec(MODEL)
"""Shardings of arrays `[B, L, H, …]` and `[H, …]`."""


class Choice(NamedTuple):
    """Whether the `kernels` run, in the interpreter or on the GPU, and the reason as a phrase."""

    fused: bool
    interpret: bool
    reason: str

    @property
    def sentence(self) -> str:
        return f"{'fused kernels' if self.fused else 'plain form'} ({self.reason})"


def choice(config: ModelConfig) -> Choice:
    """The form of retrieval on JAX's default backend."""
    asked, unknown = config.retrieval.kernel, [name for name in config.retrieval.terms if name not in KNOWN_TERMS]
    largest = max(config.geometry.whitened_dim, config.width // config.heads)
    if asked == "plain":
        return Choice(False, False, "model.retrieval.kernel asks for it")
    if unknown:
        return Choice(False, False, f"the kernels have no {', '.join(unknown)}")
    if largest > LARGEST:
        return Choice(False, False, f"the kernels have at most {LARGEST} dimensions of a head, not {largest}")
    if asked == "interpret":
        return Choice(True, True, "in Pallas' interpreter, as model.retrieval.kernel asks")
    device, capability = nvidia()
    if capability < OLDEST:
        return Choice(False, False, f"the kernels need an NVIDIA GPU of compute capability {OLDEST} or more; this is {device}")
    return Choice(True, False, f"on {device}")


@cache
def nvidia() -> tuple[str, float]:
    """The name of the default backend's first device, and its compute capability; 0 if it is not an NVIDIA GPU."""
    device = jax.local_devices()[0]
    if device.platform not in ("gpu", "cuda") or "NVIDIA" not in device.device_kind.upper():
        return f"the backend {device.platform}", 0.0
    return device.device_kind, float(getattr(device, "compute_capability", 0))


def tile(config: ModelConfig, length: int) -> int | None:
    """Number of positions of a sequence that are processed at a time, None for all.

    If unset, it is 64 on a CPU, whose pairs stay in the cache, or up to 128 as long as eight tiles, which are unrolled, then
    suffice; on other backends it is 128.
    """
    if config.retrieval.tile != "auto":
        return config.retrieval.tile
    return min(max(64, -(-length // 8)), 128) if jax.default_backend() == "cpu" else 128


def retrieve(points: Points, couplings: Couplings, config: ModelConfig) -> Array:
    """The retrieved mean of each query, `[B, L, H, v]`."""
    chosen = choice(config)
    if not chosen.fused:
        return retrieval.retrieve(*points, couplings, config.precision, tile(config, points[0].shape[1]))
    from lior_jax.kernels import retrieval as fused  # imports Pallas

    def own(points: Points, couplings: Couplings) -> Array:
        return fused.retrieve(*points, couplings, config.precision, chosen.interpret)

    return _by_device(own, 0, BY_SEQUENCE)(points, couplings)


def retrieve_and_adjoint(
    points: Points, couplings: Couplings, cotangent: Array, config: ModelConfig
) -> tuple[Array, tuple[Array, Array, Array, Array, Couplings]]:
    """`retrieve` and its adjoint, as `physics.retrieval.retrieve_and_adjoint`."""
    chosen = choice(config)
    if not chosen.fused:
        return retrieval.retrieve_and_adjoint(*points, couplings, cotangent, config.precision, tile(config, cotangent.shape[1]))
    from lior_jax.kernels import retrieval as fused

    def own(points: Points, couplings: Couplings, cotangent: Array):
        retrieved, (*c_points, c_couplings) = fused.retrieve_and_adjoint(
            *points, couplings, cotangent, config.precision, chosen.interpret
        )
        return retrieved, (*c_points, lax.psum(c_couplings, DATA) if parallel.is_active() else c_couplings)

    return _by_device(own, 1, (BY_SEQUENCE, (*[BY_SEQUENCE] * 4, BY_HEAD)))(points, couplings, cotangent)


def _by_device(run: Callable[..., Any], cotangents: int, outputs: Any) -> Callable[..., Any]:
    """`run(points, couplings, *cotangents)` on every device of a mesh, for its own sequences and heads: the compiler partitions
    everything else, but cannot partition a kernel."""
    if not parallel.is_active():
        return run
    inputs = BY_SEQUENCE, BY_HEAD, *[BY_SEQUENCE] * cotangents
    return jax.shard_map(run, in_specs=inputs, out_specs=outputs, check_vma=False)
