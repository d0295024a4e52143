"""The memory of a step: what cannot fit is refused with what would, and an allocation that fails is explained."""

import re

import jax
import pytest

from lior_jax import config as configuration
from lior_jax import data
from lior_jax.errors import UserError
from lior_jax.training import dry_run, memory
from lior_jax.training.step import initial_state, train_step


def config_of(*overrides: str):
    small = ["model.vocab_size=20", "model.context=16", "model.width=16", "model.blocks=2", "model.flow.units=16"]
    return configuration.parse("{}", "x", [*small, *overrides])


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("training.batch_size=64", "learning.chunk=4"),
        ("model.width=128", "model.flow.carry_momentum=true"),
        ("model.width=256", "training.batch_size=1"),
        ("model.flow.potential=hopfield", "model.flow.units=256", "training.batch_size=64"),
    ],
)
def test_no_step_takes_less_than_what_it_cannot_do_without(overrides):
    """Or a step that fits would be refused. The compiler knows what it takes."""
    config = config_of(*overrides)
    state = jax.eval_shape(lambda key: initial_state(key, config), jax.random.key(0))
    window = jax.ShapeDtypeStruct((config.training.batch_size, config.model.context), "int32")
    needs = train_step.lower(state, (window, window), config, True).compile().memory_analysis()
    total = needs.argument_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes + needs.temp_size_in_bytes
    assert 0.1 * total < memory.least(config) < total


def test_a_pattern_counts_once_and_a_gated_unit_twice():
    """It has a feature and a gate: as many products of the state as two patterns have."""
    gated, hopfield = (config_of(f"model.flow.potential={name}") for name in ("gated", "hopfield"))
    twice = config_of("model.flow.potential=hopfield", "model.flow.units=32")
    assert memory.least(twice) == pytest.approx(memory.least(gated), rel=1e-2)
    assert memory.least(hopfield) < 0.95 * memory.least(gated)


def test_kept_units_are_counted():
    """Twice the units, and a force, at both kicks of two steps."""
    own = config_of("model.flow.steps=2"), config_of("model.flow.steps=2", "learning.keep=units")
    shapes, positions = own[0].model, own[0].training.batch_size * own[0].model.context
    more = 4 * positions * shapes.blocks * 2 * (2 * shapes.flow.units + shapes.width)
    assert memory.least(own[1]) - memory.least(own[0]) == more


@pytest.mark.parametrize("key", ["training.batch_size", "model.context", "model.width"])
def test_what_it_needs_grows_with_every_size(key):
    one, more = (memory.least(config_of(f"{key}={value}")) for value in (64, 128))
    assert more > 1.5 * one


def test_what_cannot_fit_is_refused_with_what_would(monkeypatch):
    monkeypatch.setattr(memory, "there", lambda: 2**22)
    memory.check(config_of())
    large = config_of("training.batch_size=4096", "learning.chunk=2048")
    with pytest.raises(
        UserError, match=r"^A step needs more than [\d.]+ MiB, and there are 4\.0 MiB; training\.batch_size=\d+ should"
    ) as said:
        memory.check(large)
    batch = int(re.search(r"batch_size=(\d+)", str(said.value))[1])
    assert "learning.chunk=null" in str(said.value)
    fits = config_of(f"training.batch_size={batch}")
    memory.check(fits)
    assert memory.least(fits) < 2**22 / 3
    with pytest.raises(UserError, match=r"no training\.batch_size is small enough"):
        memory.check(config_of("model.width=4096"))
    monkeypatch.setattr(memory, "there", lambda: None)
    memory.check(large)


def test_sizes_beyond_all_machines_are_refused_without_compiling():
    sizes = ["training.batch_size=65536", "model.context=1048576", "model.width=65536", "model.blocks=4096"]
    with pytest.raises(UserError, match="smaller model"):
        memory.check(configuration.parse("{}", "x", sizes))


@pytest.mark.parametrize(
    "problem", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17 bytes.\nmore")]
)
def test_an_allocation_that_fails_is_explained(problem):
    with (
        pytest.raises(UserError, match=r"There is not enough memory for a step \(.*batch_size=8 should fit"),
        memory.explained(config_of()),
    ):
        raise problem


def test_other_failures_are_not_taken_for_it():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.explained(config_of()):
        raise jax.errors.JaxRuntimeError("INTERNAL: a fault")


def test_this_machine_says_what_it_has(monkeypatch, tmp_path):
    assert memory.there() > 2**28
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "memory.max")
    physical = memory.there()
    for text, expected in (("max\n", physical), ("1048576\n", 2**20), (str(2**60), physical)):
        (tmp_path / "memory.max").write_text(text)
        assert memory.there() == expected


def test_the_dry_run_compares(tiny, monkeypatch):
    def told(limit):
        monkeypatch.setattr(memory, "there", lambda: limit)
        return next(line for line in dry_run.report(tiny("run")).splitlines() if line.startswith("memory of a step"))

    assert told(2**40).endswith("MiB while it runs; there are 1,024.0 GiB")
    assert told(None).endswith("MiB while it runs")
    assert re.search(r"  more than 0\.\d MiB; there are 0\.0 MiB: take a smaller", told(2**10))
    least = memory.least(data.with_vocabulary(tiny("run"), data.load(tiny("run"))))
    assert re.search(r"MiB while it runs; there are 0\.\d MiB: ", told(least))
