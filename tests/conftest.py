"""Strict numerics for every test: rank promotion raises, warnings are errors, hypothesis repeats itself."""

import gc
import os
from pathlib import Path

# Programs that were compiled once are found again by all worker processes and by later runs. JAX reads these when it is
# imported, and programs that tests start inherit them.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax
import pytest
from hypothesis import HealthCheck, settings

from tests.runs import finished_run, tiny  # noqa: F401 - fixtures

settings.register_profile(
    "lior",
    derandomize=True,
    deadline=None,  # every new shape compiles for seconds
    max_examples=8 if os.environ.get("CI") else 5,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],  # `float64` only sets a mode
)


def pytest_configure(config):
    # Compilation is most of the run time; these make it three times shorter. XLA reads them at its first use, and
    # `XLA_FLAGS= pytest` runs the tests on the code that users run. An unknown flag would abort, hence the version.
    flags = ["--xla_backend_optimization_level=0"]
    if jax.__version_info__[:2] == (0, 10):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ.setdefault("XLA_FLAGS", " ".join(flags))
    jax.config.update("jax_numpy_rank_promotion", "raise")
    gc.set_threshold(200_000)  # tracing allocates so much that a tenth of it and more would be collection
    settings.load_profile("lior")
    config.addinivalue_line("filterwarnings", "error")
    # Orbax's readers of a planted file (test_security.py) may be told that their loop is gone at any later time.
    pending = "ignore:Exception ignored in. <coroutine object _read_:pytest.PytestUnraisableExceptionWarning"
    config.addinivalue_line("filterwarnings", pending)


@pytest.fixture
def float64():
    """Double precision while the test runs. The product is float32, so the mode is never switched on globally."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Every compiled program holds memory maps, and the kernel allows a process some 65,000: XLA crashes beyond."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or len(maps.read_bytes().splitlines()) > 20_000:
        jax.clear_caches()
