"""Training on eight devices is training on one: the same losses, however batch, heads, units and parameters are cut.

Devices must be there before JAX starts, so a process of its own makes eight of one processor, and goes through all cases."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BATCH, BOTH = [8, 1, False], [4, 2, True]
FAR = [[2, 4, True], [8, 1, True], [4, 2, False], [1, 4, False]]

QUICK = {
    "echo": {
        "set": ["learning.dropout=0.1", "learning.chunk=1", "learning.action_weight=0.1", "model.geometry.frame=derived"],
        "layouts": [BOTH],
        "steps": 4,
    },
}
EVERYTHING = [
    "model.retrieval.products=[tensor, wedge, spinor]",
    "model.geometry.resilience=curvature",
    "model.convolution.long=true",
]
SLOW = {
    "fifty steps of echo": {"set": ["learning.dropout=0.1"], "layouts": [BATCH, *FAR], "steps": 50},
    "fifty steps of equilibrium": {
        "set": ["learning.rule=equilibrium", "learning.dropout=0.1"],
        "layouts": [BATCH, BOTH],
        "steps": 50,
    },
    "carried": {
        "set": ["model.flow.carry_momentum=true", "model.field.evolution=master", "model.retrieval.adaptive_order=true"],
        "layouts": [BATCH, BOTH],
        "steps": 6,
    },
    "everything": {
        "set": [*EVERYTHING, "model.field.project=true", "optimizer.average=0.9", "learning.chunk=4", "training.accumulate=2"],
        "layouts": [BATCH, BOTH],
        "steps": 6,
    },
    "drawn sides": {
        "set": ["learning.rule=equilibrium", "learning.nudge=random_sign", "learning.dropout=0.1", "optimizer.name=muon"],
        "layouts": [BOTH],
        "steps": 4,
    },
    "hopfield": {
        "set": ["model.flow.potential=hopfield", "model.flow.integrator=yoshida4", "learning.nudge=one_sided"],
        "layouts": [BOTH],
        "steps": 6,
    },
    "tf32": {"set": ["model.precision=tf32"], "layouts": [BOTH], "steps": 6},
    # A sum that is rounded otherwise may move a number to the next of bfloat16, 0.4 % away.
    "bfloat16": {"set": ["model.precision=bfloat16"], "layouts": [BATCH, BOTH], "steps": 6, "rtol": 1e-4},
    "fused": {"set": ["model.retrieval.kernel=interpret"], "layouts": [BATCH, BOTH], "steps": 4},
}


def on_eight_devices(module: str, given: object, *words: str) -> str:
    """What `python -m module` prints where there are eight devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_NUMPY_RANK_PROMOTION": "raise"}
    command = [sys.executable, "-m", module, *words]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, input=json.dumps(given), capture_output=True, text=True, env=environment, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def quick():
    return json.loads(on_eight_devices("tests.parallel.losses", QUICK))


@pytest.fixture(scope="module")
def slow():
    return json.loads(on_eight_devices("tests.parallel.losses", SLOW))


@pytest.mark.parametrize("case", QUICK)
def test_losses_are_those_of_one_device(case, quick):
    check(quick[case], 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_all_losses_are_those_of_one_device(case, slow):
    check(slow[case], SLOW[case].get("rtol", 1e-5))


def check(rows, rtol) -> None:
    one, *others = rows
    assert one["sound"]
    assert one["losses"][-1] < one["losses"][0] - 0.02  # what is compared learns
    for other in others:
        assert other["sound"]
        np.testing.assert_allclose(other["losses"], one["losses"], rtol=rtol)
