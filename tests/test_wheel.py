"""The wheel, installed into an environment and used from a folder where nothing of the repository is."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("lior_jax", "configs", "pyproject.toml", "README.md", "LICENSE")
SMALL = (
    *("model.context=32", "model.width=16", "model.blocks=1", "model.heads=2", "model.geometry.chart_dim=4"),
    *("model.flow.units=16", "training.steps=4", "training.batch_size=4", "training.eval_every=4"),
    *("training.eval_windows=8", "model.geometry.rotor_layers=2", "optimizer.warmup_steps=1", "sample.tokens=5"),
)
OUTSIDE = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}
"""The environment of someone who has no repository."""

pytestmark = pytest.mark.slow


def run(*command, **given) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, check=False, **given)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def binaries(tmp_path_factory) -> Path:
    """Programs of a fresh environment with the wheel in it. What the wheel requires is this environment's."""
    assert int(metadata.version("setuptools").split(".")[0]) >= 77, "Install -e '.[test]' again: the build needs setuptools 77."
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:  # a copy, since building leaves files beside the sources
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    pip = sys.executable, "-m", "pip", "--disable-pip-version-check"
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, folder / "source")
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    home = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    # Where pip finds the repository's .egg-info on its path, nothing is left to install.
    run(*pip, "--python", home / "python", "install", "--no-deps", "--no-index", wheel, cwd=folder, env=OUTSIDE)
    own = Path(run(home / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (own / "required.pth").write_text("\n".join(paths), encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def lior(binaries, tmp_path_factory):
    """Runs the installed command in a folder of its own."""
    folder = tmp_path_factory.mktemp("elsewhere")

    def call(*words, program="lior"):
        return run(binaries / program, *words, cwd=folder, env=OUTSIDE)

    call.folder = folder
    return call


def test_the_package_is_the_installed_one(lior, binaries):
    found = lior("-c", "import lior_jax; print(lior_jax.__file__); lior_jax.Config", program="python").strip()
    assert Path(found).is_relative_to(binaries.parent)
    assert {"py.typed", "configs"} <= set(os.listdir(Path(found).parent))
    assert "model.flow.units" in lior("options", "model.flow")


def test_a_whole_round(lior):
    said = lior("train", "--config", "quickstart", *(word for one in SMALL for word in ("--set", one)))
    assert "Talk to it:  lior infer --checkpoint runs/quickstart" in said
    assert json.loads((lior.folder / "runs" / "quickstart" / "summary.json").read_text(encoding="utf-8"))["step"] == 4
    assert lior("infer", "--checkpoint", "runs/quickstart", "--prompt", "The ", "--max-tokens", "5").startswith("The ")
    assert lior("report", "runs/quickstart").strip() == str(Path("runs/quickstart/report.html"))
    assert (lior.folder / "runs" / "quickstart" / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    shutil.copytree(lior.folder / "runs" / "quickstart", lior.folder / "runs" / "again")
    assert "validation" in lior("compare", "runs/quickstart", "runs/again")
    assert (lior.folder / "runs" / "quickstart" / "comparison.png").read_bytes().startswith(b"\x89PNG")
