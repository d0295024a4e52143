"""Runs that change from one device to eight and back, and what is read from programs for eight."""

import json

import jax
import numpy as np
import pytest

from lior_jax import config as configuration
from lior_jax import training
from lior_jax.training import metrics, plan
from tests.parallel.eight import CHECKED, LARGER
from tests.parallel.test_losses import on_eight_devices
from tests.runs import tiny_config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of the runs `whole`, all on one device; `one`, begun on one and ended on eight; `eight`, the other way round;
    and what was found on eight devices."""
    folder = tmp_path_factory.mktemp("elastic")
    training.train(tiny_config(folder, "whole", *CHECKED))
    training.train(tiny_config(folder, "one", *CHECKED), stop_after=6)
    found = json.loads(on_eight_devices("tests.parallel.eight", {"folder": str(folder)}))
    training.train(training.resume_config(folder / "eight", ["parallel.model=1"]), resume=True)
    return folder, found


def figures(run, name: str) -> list[float]:
    return [line[name] for line in metrics.read(run) if name in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one", "eight"])
def test_a_run_goes_on_on_other_devices(name, runs):
    folder, _ = runs
    for figure in ("loss", "nats_per_token", "gradient_norm", "reversibility"):
        tolerance = {"loss": 1e-5, "nats_per_token": 1e-5, "gradient_norm": 1e-3, "reversibility": 0.3}[figure]
        expected = figures(folder / "whole", figure)
        assert len(expected) >= 3
        np.testing.assert_allclose(figures(folder / name, figure), expected, rtol=tolerance, err_msg=figure)


@pytest.mark.slow
def test_a_checkpoint_is_restored_to_the_last_bit(runs):
    assert runs[1]["restored"]


@pytest.mark.slow
def test_the_run_says_how_it_uses_the_devices(runs):
    assert "8 of 8 devices: batch split over 4 x heads over 2, parameters and optimiser state sharded." in runs[1]["said"]


@pytest.mark.slow
def test_operations_and_bytes_are_those_of_the_program(runs):
    work = runs[1]["work"]
    assert work["flops"] == 5 * 2 * (2 * 2 * 32 * 32)  # two products of two rows on each device
    assert work["calls"] == {"all-reduce": 5}
    assert work["sent"] == {"all-reduce": 5 * 2 * 7 / 8 * 32 * 32 * 4}


@pytest.mark.slow
def test_what_each_of_eight_devices_holds_is_an_eighth(runs):
    """But for what is too small to be cut."""
    eight, one = runs[1]["plan"], plan.make(configuration.parse(LARGER, "larger"))
    assert one.parameters >= 4 * one.count
    assert one.parameters / 8 < eight["parameters"] < one.parameters / 8 * 1.3
    assert one.optimizer / 8 < eight["optimizer"] < one.optimizer / 8 * 1.3
    assert one.work.flops / 8 <= eight["work"]["flops"] * 1.1
    assert eight["work"]["flops"] < one.work.flops / 4
    assert one.work.sent == {}
    # Each matrix is gathered for both phases, and its gradient summed at least once.
    assert eight["work"]["sent"]["all-gather"] > 0.8 * one.parameters
    assert eight["work"]["sent"]["all-reduce"] > 1.5 * one.parameters


def test_the_plan_is_a_table(monkeypatch):
    counted = plan.hlo.Work(8e12, {"all-reduce": 3}, {"all-reduce": 1e9})
    made = plan.Plan(plan.parallel.Devices(among=jax.devices()), 1000, 2**21, 2**22, 2**20, counted)
    monkeypatch.setattr(plan, "make", lambda config: made)
    config = configuration.parse("model: {context: 100}\ntraining: {batch_size: 10}", "x")
    lines = plan.report(config, peak=4e12, bandwidth=2e9).splitlines()
    rows = {line[:20].strip(): line[20:] for line in lines}
    assert rows["total memory"] == "7.0 MiB per device"
    assert rows["computation time"] == "2 s at 4 TFLOP/s"
    assert rows["communication time"] == "500 ms at 2 GB/s"
    assert rows["tokens/s"].startswith("400, or 500 if")
