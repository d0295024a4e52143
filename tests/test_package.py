"""What is installed: every package, and the shipped configurations where `config.load` finds them."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_and_the_configurations_are_installed():
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "lior_jax").rglob("*.py")}
    assert set(SETUP["tool"]["setuptools"]["packages"]) == packages | {"lior_jax.configs"}
    assert SETUP["tool"]["setuptools"]["package-dir"] == {"lior_jax.configs": "configs"}
    assert {path.suffix for path in (ROOT / "configs").iterdir()} == {".yaml"}


def test_every_package_that_is_imported_is_required():
    required = {re.match(r"[\w-]+", line)[0].lower() for line in SETUP["project"]["dependencies"]}
    imported = set()
    for path in [*(ROOT / "lior_jax").rglob("*.py"), ROOT / "train.py", ROOT / "infer.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module)
    # Formats of text that need a package of their own say so in a sentence; `compression` is Python's from 3.14 on.
    optional = {re.match(r"[\w-]+", line)[0] for line in SETUP["project"]["optional-dependencies"]["text"]} | {"compression"}
    top = {name.split(".")[0] for name in imported} - sys.stdlib_module_names - {"lior_jax"} - optional
    providers = metadata.packages_distributions()
    assert not [name for name in top if not required & {name.lower().replace("_", "-") for name in providers[name]}]


def test_the_license_is_named_and_there():
    assert SETUP["project"]["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "Copyright 2026 lior_jax contributors" in text
