"""Every example runs from a folder of its own as a user would run it, and does what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import own_potential
from lior_jax.physics.pair import Pair
from tests.oracles import assert_trees_close, cases, normal

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def by_name(path):
    return path.stem


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What an example prints; each is run once."""
    printed = {}

    def run(path):
        if path not in printed:
            folder = tmp_path_factory.mktemp(path.stem)
            environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
            given = {"capture_output": True, "text": True, "cwd": folder, "env": environment}
            done = subprocess.run([sys.executable, str(path)], **given, check=False)
            assert done.returncode == 0, done.stderr
            printed[path] = done.stdout
        return printed[path]

    return run


LONG = "own_rule", "flax_layer"


@pytest.mark.parametrize("path", cases({by_name(path): path for path in EXAMPLES}, *LONG))
def test_example_runs(path, output):
    assert output(path)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


def test_own_potential_learns(output):
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", output(ROOT / "examples" / "own_potential.py"))]
    assert losses[-1] < losses[0] - 0.5


def test_own_loop_learns(output):
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", output(ROOT / "examples" / "own_loop.py"))]
    assert losses[-1] < losses[0] - 0.3


def test_a_memory_predicts_lines_like_those_it_read(output):
    printed = output(ROOT / "examples" / "score_and_remember.py")
    alone, remembered, reloaded = (float(x) for x in re.findall(r"([\d.]+) bits/char", printed))
    assert remembered < alone / 2
    assert reloaded == remembered


def test_own_potential_is_one(float64):
    """Force, contrast and energy belong together."""
    rng = np.random.default_rng(0)
    own = own_potential.Boltzmann(normal(rng, 7, 5))
    s, span = Pair(normal(rng, 2, 3, 5), normal(rng, 2, 3, 5)), jnp.full((2, 3, 1), 0.3)

    def total(own, s):
        return jnp.sum(own_potential.energy(own, s))

    plus, minus = s.ends(span)
    by_own, by_s = zip(*(jax.grad(total, (0, 1))(own, end) for end in (plus, minus)), strict=True)
    forces, local = own_potential.contrast(own, s, span)
    assert_trees_close(local, jax.tree.map(lambda x, y: (x - y) / 0.3, *by_own), 1e-10)
    assert_trees_close(forces.ends(span), tuple(-x for x in by_s), 1e-10)
    np.testing.assert_allclose(own_potential.force(own, plus), -by_s[0], rtol=1e-9)


def test_own_system_is_learned_with_the_gradient_of_autodiff(output):
    printed = output(ROOT / "examples" / "own_system.py")
    losses, error = (np.array(re.findall(rf"{name} (\S+)", printed), float) for name in ("loss", "relative error"))
    assert len(losses) == len(error) > 5
    assert losses[-1] < 1e-3 * losses[0]
    assert error.max() < 1e-4
