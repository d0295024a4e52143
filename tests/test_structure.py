"""What the source may contain, read from its syntax trees: no automatic differentiation, no printing outside the command
line, and imports that run down only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "lior_jax"
PROGRAMS = ["train.py", "infer.py"]

# --- edit here -------------------------------------------------------------------------------------------------------

# The floors of the house, from the bottom up: what each part of the package may import from the package, beside itself.
FLOORS = [
    {"errors"},
    {"registry"},
    {"physics"},
    {"settings", "kernels"},
    {"storage"},
    {"config", "options"},
    {"parallel"},
    {"model"},
    {"learning"},
    {"data"},
    {"inference"},
    {"training"},
    {"analysis"},
    {"cli"},
]

# Storage takes plain values: arrays, text, dictionaries.
NOT_BY_STORAGE = {"registry", "physics", "settings", "kernels"}

# Libraries that differentiate, or pass on what JAX offers.
DIFFERENTIATORS = {"jax", "flax", "optax", "chex", "equinox", "haiku", "jaxopt", "optimistix", "diffrax", "torch", "autograd"}

DERIVATIVES = {
    *("grad", "value_and_grad", "vjp", "jvp", "linearize", "linear_transpose", "vjp3", "fwd_and_bwd", "saved_input_vjp"),
    *("custom_vjp", "custom_jvp", "custom_gradient", "custom_transpose", "closure_convert"),
    *("jacfwd", "jacrev", "jacobian", "hessian", "jet", "ad", "ad_checkpoint", "checkpoint", "checkpoint_name", "remat"),
}

# --- derivatives -----------------------------------------------------------------------------------------------------


def derivatives(source: str) -> list[str]:
    """Uses of automatic differentiation: imported from a differentiating library, as an attribute of one of its names, or by
    `getattr`. `lior_jax.checkpoint` and `orbax.checkpoint` store files, and their libraries are not in the list."""
    tree = ast.parse(source)
    bound, found = set(), []

    def report(node: ast.AST, what: str) -> None:
        found.append(f"line {node.lineno}: {what}")

    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] in DIFFERENTIATORS:
                    bound.add(alias.asname or parts[0])
                    if DERIVATIVES & set(parts):
                        report(node, alias.name)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in DIFFERENTIATORS:
            for alias in node.names:
                bound.add(alias.asname or alias.name)
                if alias.name == "*" or DERIVATIVES & {alias.name, *node.module.split(".")}:
                    report(node, f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        attribute = isinstance(node, ast.Attribute) and node.attr in DERIVATIVES and _root(node) in bound
        by_name = isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and DERIVATIVES & _constants(node.args)
        if attribute or by_name:
            report(node, ast.unparse(node))
    return found


def _constants(nodes: list[ast.expr]) -> set:
    return {node.value for node in nodes if isinstance(node, ast.Constant)}


def _root(node: ast.expr) -> str | None:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def sources() -> list[Path]:
    programs = [ROOT / name for name in PROGRAMS]
    return sorted((ROOT / PACKAGE).rglob("*.py")) + [path for path in programs if path.exists()]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_differentiated_automatically(path):
    assert not derivatives(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import jax\njax.grad(f)",
        "import jax as j\nj.value_and_grad(f)",
        "from jax import grad",
        "from jax import vjp as pull_back",
        "import jax\n@jax.custom_vjp\ndef f(): ...",
        "import jax\nf = jax.checkpoint(g)",
        "import jax\nf = jax.remat",
        "from jax.ad_checkpoint import checkpoint_name",
        "import jax.experimental.jet",
        "from jax.interpreters import ad",
        "from jax import *",
        "from jax import api\napi.jacfwd(f)",
        "import jax\ngetattr(jax, 'grad')(f)",
        "from flax import nnx\nnnx.value_and_grad(f)",
        "def f():\n    import jax\n    return jax.jvp",
    ],
)
def test_derivatives_are_found(source):
    assert derivatives(source)


@pytest.mark.parametrize(
    "source",
    [
        "from lior_jax import checkpoint\ncheckpoint.save()",
        "from lior_jax.training import checkpoint\ncheckpoint.restore()",
        "import lior_jax\nlior_jax.training.checkpoint.save()",
        "import orbax.checkpoint as ocp\nocp.checkpoint_managers",
        "import jax\nself.checkpoint.save(jax.tree.leaves(grad))",
        "gradient = estimate.grad",
    ],
)
def test_other_checkpoints_are_no_derivatives(source):
    assert not derivatives(source)


# --- printing --------------------------------------------------------------------------------------------------------


def prints(source: str) -> list[str]:
    """Where a source writes to the terminal: `print`, `input`, the standard streams, their descriptors, progress bars."""
    found = []
    for node in ast.walk(ast.parse(source)):
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        writes_by_number = name == "os.write" and isinstance(node.args[0], ast.Constant)
        streams = isinstance(node, ast.Attribute) and node.attr.strip("_") in ("stdin", "stdout", "stderr")
        imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            imported = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        bars = any(module.split(".")[0] == "tqdm" or module in ("sys.stdout", "sys.stderr") for module in imported)
        if name in ("print", "input") or writes_by_number or streams or bars:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_command_line_prints(path):
    if "cli" not in path.relative_to(ROOT).parts:
        assert not prints(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "print('x')",
        "import sys\nsys.stdout.write('x')",
        "import sys\nprogress(file=sys.stderr)",
        "from sys import stderr",
        "import sys\nsys.__stdout__.write('x')",
        "import os\nos.write(2, b'x')",
        "from tqdm import tqdm",
        "import tqdm.auto as bars",
        "input('> ')",
    ],
)
def test_printing_is_found(source):
    assert prints(source)


@pytest.mark.parametrize(
    "source", ["import os\nos.write(pipe, b'x')", "result.stdin_name", "file.write('x')", "fingerprint(x)"]
)
def test_other_writing_is_no_printing(source):
    assert not prints(source)


# --- imports ---------------------------------------------------------------------------------------------------------


def imported_parts(source: str, module: str) -> set[str]:
    """Parts of the package that the source of `module` imports, relative imports included. A module's parts are the names
    below the package, `physics` for `lior_jax.physics.taps`."""
    parts = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*module.split(".")[: -node.level], node.module or ""] if node.level else [node.module])
            names = [f"{base.rstrip('.')}.{alias.name}" for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith(f"{PACKAGE}.")}
        # `import lior_jax` alone would reach everything.
        parts |= {"*" for name in names if name in (PACKAGE, f"{PACKAGE}.*")}
    return parts


def modules() -> dict[str, Path]:
    """Full name of every module; a package's is that of its `__init__`."""
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


@pytest.mark.parametrize("module", list(modules()))
def test_imports_run_down(module):
    part = module.split(".")[1]
    imported = imported_parts(modules()[module].read_text(encoding="utf-8"), module)
    if part == "__init__":
        assert not imported, "importing the package must stay cheap"
        return
    assert imported <= allowed(part) | {part}


def allowed(part: str) -> set[str]:
    """What a part may import: everything on the floors below its own."""
    below: set[str] = set()
    for floor in FLOORS:
        if part in floor:
            return below - NOT_BY_STORAGE if part == "storage" else below
        below |= floor
    raise AssertionError(f"{part} has no place in FLOORS")


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("import lior_jax.training.loop", {"training"}),
        ("from lior_jax.training import loop", {"training"}),
        ("from lior_jax import model, learning", {"model", "learning"}),
        ("from ..training import loop", {"training"}),
        ("from .. import config", {"config"}),
        ("from . import taps", {"physics"}),
        ("import lior_jax", {"*"}),
        ("def f():\n    from lior_jax.model import block", {"model"}),
        ("import numpy\nfrom jax import lax", set()),
    ],
)
def test_imports_are_found(source, parts):
    assert imported_parts(source, "lior_jax.physics.action") == parts
