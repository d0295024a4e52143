"""Break the source on purpose, one place at a time; the tests named beside each break must fail.

    python tests/mutation.py            all of them
    python tests/mutation.py taps ε     those whose file or new text contains one of the words

Works on a copy of the tree. Prints caught or survived; exits with status 1 if a break survived, was not found in the
source, or stopped the tests from running at all. pytest does not collect this file.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutation(NamedTuple):
    file: str
    """Below `lior_jax/`."""
    old: str
    """Text that occurs exactly once."""
    new: str
    tests: str
    """Arguments of pytest, run in `tests/`."""


NUMERICS, GEOMETRY, TAPS = "physics/test_numerics.py", "physics/test_geometry.py", "physics/test_taps.py"
RETRIEVAL, HAMILTONIAN = "physics/test_retrieval.py", "physics/test_hamiltonian.py"
INTEGRATORS, ACTION = "physics/test_integrators.py", "physics/test_action.py"
BLOCK, NETWORK = "model/test_block.py", "model/test_network.py"
ECHO, NUDGE, OPTIMIZER = "learning/test_echo.py", "learning/test_nudge.py", "learning/test_optimizer.py"
GRADIENT_AT_INIT = f"{ECHO}::test_estimate_is_the_gradient_at_init"

MUTATIONS = [
    # --- physics -----------------------------------------------------------------------------------------------------
    Mutation("physics/numerics.py", "(cotangent - x_hat * jnp.mean", "(cotangent + x_hat * jnp.mean", f"{NUMERICS} -k rms"),
    Mutation("physics/numerics.py", "distribution + z * density", "distribution - z * density", f"{NUMERICS} -k gelu"),
    Mutation("physics/numerics.py", "jax.nn.sigmoid(raw)", "jax.nn.sigmoid(-raw)", f"{NUMERICS} -k softplus"),
    Mutation("physics/numerics.py", "preferred_element_type=dtype", "preferred_element_type=None", f"{NUMERICS} -k bfloat16"),
    Mutation(
        "physics/geometry.py",
        "c_first * second - c_second * first",
        "c_second * first - c_first * second",
        f"{GEOMETRY} -k rotate_adjoint",
    ),
    Mutation(
        "physics/geometry.py",
        "rotated = _turn(rotated, planes, cos, -sin)",
        "rotated = _turn(rotated, planes, cos, sin)",
        f"{GEOMETRY} -k rotate_adjoint",
    ),
    Mutation("physics/geometry.py", "cos * second - sin * first", "cos * second + sin * first", f"{GEOMETRY} -k frame"),
    Mutation(
        "physics/geometry.py",
        "positive(metric.scale) * jnp.sqrt(positive(metric.stiffness))[:, None] * rotated",
        "positive(metric.scale) * positive(metric.stiffness)[:, None] * rotated",
        f"{GEOMETRY} -k formula",
    ),
    Mutation("physics/geometry.py", "c_root / (2 * root[:, 0])", "c_root / root[:, 0]", f"{GEOMETRY} -k whiten_adjoint"),
    Mutation(
        "physics/geometry.py", "[order[0], order[-1], *order[1:-1]]", "[order[-1], *order[:-1]]", f"{GEOMETRY} -k every_plane"
    ),
    Mutation("physics/taps.py", "_delay(cotangent, -lag)", "_delay(cotangent, lag)", f"{TAPS} -k adjoint"),
    Mutation("physics/taps.py", "[pad, x[:, :-steps]]", "[x[:, steps:], pad]", f"{TAPS} -k convolution"),
    Mutation(
        "physics/retrieval.py",
        "weight * (c_weight - jnp.sum(weight * c_weight, -1, keepdims=True))",
        "weight * c_weight",
        f"{RETRIEVAL} -k retrieve_adjoint",
    ),
    Mutation("physics/retrieval.py", "row * queries - ", "row * queries + ", f"{RETRIEVAL} -k retrieve_adjoint"),
    Mutation("physics/retrieval.py", "c_score / cost, 0)", "c_score / (2 * cost), 0)", f"{RETRIEVAL} -k retrieve_adjoint"),
    Mutation("physics/retrieval.py", "lag_order=-jnp.sum", "lag_order=jnp.sum", f"{RETRIEVAL} -k retrieve_adjoint"),
    Mutation("physics/retrieval.py", " - couplings.lag_order", " + couplings.lag_order", f"{RETRIEVAL} -k lag_prior"),
    Mutation(
        "physics/retrieval.py",
        "return queries - keys[:, :1], keys - keys[:, :1]",
        "return queries, keys",
        f"{RETRIEVAL} -k close_points",
    ),
    Mutation(
        "physics/retrieval.py",
        "return queries - keys[:, :1], keys - keys[:, :1]",
        "return queries - keys.mean(1, keepdims=True), keys - keys.mean(1, keepdims=True)",
        f"{RETRIEVAL} -k future",
    ),
    Mutation(
        "physics/retrieval.py",
        "jnp.tril(jnp.ones(cost.shape[-2:], bool))",
        "jnp.tril(jnp.ones(cost.shape[-2:], bool), 1)",
        f"{NETWORK} -k future",
    ),
    Mutation("physics/hamiltonian.py", "return 0.5 * jnp.sum(p * p", "return jnp.sum(p * p", f"{HAMILTONIAN} -k energies"),
    Mutation(
        "physics/hamiltonian.py",
        "return jnp.sum(p.mean * p.slope",
        "return 0.5 * jnp.sum(p.mean * p.slope",
        f"{HAMILTONIAN} -k drift",
    ),
    Mutation(
        "physics/hamiltonian.py",
        "on_direction) - hamiltonian.curvature * s\n",
        "on_direction) + hamiltonian.curvature * s\n",
        f"{HAMILTONIAN} -k negative_gradient",
    ),
    Mutation("physics/hamiltonian.py", "units=-jnp.stack", "units=jnp.stack", f"{HAMILTONIAN} -k kick_contrast"),
    Mutation("physics/hamiltonian.py", "bias=-jnp.sum", "bias=jnp.sum", f"{HAMILTONIAN} -k kick_contrast"),
    Mutation(
        "physics/hamiltonian.py",
        " + correlate(x.mean, s_hat.slope, precision)",
        "",
        f"{HAMILTONIAN} -k kick_contrast",
    ),
    Mutation(
        "physics/hamiltonian.py",
        "return correlate(x.slope, s_hat.mean, precision) + correlate(x.mean, s_hat.slope, precision)",
        "return sum(sign / span[0, 0] * correlate(a, b, precision) for sign, a, b in "
        "zip((1, -1), x.ends(span), (hat_plus, hat_minus)))",
        f"{HAMILTONIAN} -k cancel",
    ),
    Mutation("physics/integrators.py", "VELOCITY_VERLET = (0.5, 1.0, 0.5)", "VELOCITY_VERLET = (1.0, 1.0, 0.0)", INTEGRATORS),
    Mutation("physics/integrators.py", "kicks[-1] + kicks[0]", "kicks[0]", f"{INTEGRATORS} -k schedule"),
    Mutation(
        "physics/integrators.py",
        "if times.final_kick:\n        p, contrast",
        "if False:\n        p, contrast",
        f"{INTEGRATORS} -k adjoint_of_the_flow",
    ),
    Mutation("physics/integrators.py", "x - length * f, p", "x + length * f, p", f"{INTEGRATORS} -k adjoint_of_the_flow"),
    Mutation("physics/integrators.py", "+ drift * drift_contrast", "+ drift_contrast", f"{INTEGRATORS} -k adjoint_of_the_flow"),
    Mutation("physics/action.py", "jnp.sum(jnp.linalg.norm", "jnp.mean(jnp.linalg.norm", ACTION),
    # --- model -------------------------------------------------------------------------------------------------------
    Mutation(
        "model/block.py",
        "jax.tree.map(jnp.add, metric_by_query, metric_by_key)",
        "metric_by_query",
        f"{BLOCK} -k prepare_adjoint",
    ),
    Mutation("model/block.py", "final_kick=config.carry_momentum", "final_kick=False", f"{NETWORK} -k dense"),
    Mutation("model/block.py", "return p if config.carry_momentum else", "return p if True else", f"{NETWORK} -k dense"),
    Mutation("model/block.py", "c_direction), gradient", "c_context), gradient", f"{BLOCK} -k kick_adjoint"),
    Mutation("model/block.py", "return jnp.sum(path_action", "return jnp.mean(path_action", f"{ECHO} -k test_info"),
    Mutation("model/network.py", ".at[tokens].add(", ".at[tokens].set(", f"{NETWORK} -k embed_adjoint"),
    Mutation("model/network.py", ") - one_hot) / targets.size", ") - one_hot)", f"{NETWORK} -k readout_loss_adjoint"),
    Mutation("model/network.py", "(jax.nn.softmax(logits) - one_hot)", "(one_hot - jax.nn.softmax(logits))", GRADIENT_AT_INIT),
    # --- learning ----------------------------------------------------------------------------------------------------
    Mutation("learning/nudge.py", '"centred": (1.0, -1.0)', '"centred": (-1.0, 1.0)', NUDGE),  # harmless, but not as documented
    Mutation("learning/nudge.py", '"centred": (1.0, -1.0)', '"centred": (1.0, 0.0)', f"{ECHO} -k order"),
    Mutation("learning/nudge.py", "Pair(s - middle * c_p, -c_p)", "Pair(s + middle * c_p, c_p)", GRADIENT_AT_INIT),
    Mutation("learning/nudge.py", "Pair(p + middle * c_s, c_s)", "Pair(p - middle * c_s, c_s)", f"{ECHO} -k one_sided"),
    Mutation("learning/nudge.py", "return x.mean - 0.5", "return x.mean + 0.5", NUDGE),
    Mutation("learning/nudge.py", "jnp.maximum(push, tiny**0.5)", "push", f"{ECHO} -k pull"),
    Mutation("learning/nudge.py", "c_s * c_s + c_p * c_p", "c_s * c_s", NUDGE),
    Mutation("learning/echo.py", "p_pair.slope, -s_pair.slope", "p_pair.slope, s_pair.slope", GRADIENT_AT_INIT),
    Mutation("learning/echo.py", "c_s + c_s_by_kick", "c_s", GRADIENT_AT_INIT),
    Mutation("learning/echo.py", "epsilon, sides) - kicked", "epsilon, sides)", GRADIENT_AT_INIT),
    Mutation("learning/echo.py", "p=stored.p_out, c_p=jnp.zeros_like(end.p)", "p=stored.p_out", GRADIENT_AT_INIT),
    Mutation("learning/echo.py", "jax.tree.map(jnp.add, gradient, local)", "local", f"{ECHO} -k chunks"),
    Mutation(
        "learning/echo.py",
        "_rms(start.s - s_first) / _rms(s_first)",
        "_rms(start.s) / _rms(s_first)",
        f"{ECHO} -k test_info",
    ),
    Mutation("learning/optimizer.py", "mask=decay_mask", "mask=None", OPTIMIZER),
    Mutation("learning/optimizer.py", "optax.clip_by_global_norm(optimizer.clip_norm),", "", OPTIMIZER),
    Mutation("learning/optimizer.py", "optimizer.learning_rate * optimizer.final_fraction", "0.0", f"{OPTIMIZER} -k schedule"),
    # --- structure ---------------------------------------------------------------------------------------------------
    Mutation("learning/echo.py", "from jax import Array, lax", "from jax import Array, lax, vjp", "test_structure.py"),
    Mutation(
        "physics/action.py",
        "from jax import Array",
        "from jax import Array\nfrom lior_jax.model import network",
        "test_structure.py",
    ),
]


def run_tests(tree: Path, tests: str) -> tuple[int, str]:
    """Exit status of pytest (0 passed, 1 failed, more if it could not run), and its line about the failure."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests.split()]
    # The autodiff oracles of most mutants are the same programs: compile them once.
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tree.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    result = subprocess.run(command, cwd=tree / "tests", env=environment, capture_output=True, text=True, check=False)
    if result.returncode not in (0, 1):
        print(result.stdout[-2000:], result.stderr[-2000:])
    failures = [line for line in result.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return result.returncode, failures[0] if failures else ""


def apply(tree: Path, mutation: Mutation) -> str | None:
    """Mutate the tree and return the original source; `None`, with a message, if the place is not found."""
    path = tree / "lior_jax" / mutation.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutation.old) != 1:
        where = f"{mutation.old!r} occurs {source.count(mutation.old)} times in {mutation.file}, not once"
        print(f"NOT FOUND  {where}: mend the table in tests/mutation.py", flush=True)
        return None
    path.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
    return source


def main(words: list[str]) -> int:
    chosen = [m for m in MUTATIONS if not words or any(word in m.file or word in m.new or word in m.tests for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        ignored = shutil.ignore_patterns("__pycache__", ".*", "runs")
        for name in ("lior_jax", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        for name in ("pyproject.toml", "train.py", "infer.py"):
            shutil.copy(ROOT / name, tree / name)

        # A test that fails anyway would catch everything.
        files = dict.fromkeys(mutation.tests.split()[0].split("::")[0] for mutation in chosen)
        status, failure = run_tests(tree, " ".join(files))
        if status:
            print(f"The tests fail, or do not run, on the source as it is. {failure}")
            return 1

        survived = 0
        for mutation in chosen:
            begin = time.monotonic()
            source = apply(tree, mutation)
            if source is None:
                survived += 1
                continue
            status, failure = run_tests(tree, mutation.tests)
            (tree / "lior_jax" / mutation.file).write_text(source, encoding="utf-8")
            verdict = {0: "SURVIVED", 1: "caught"}.get(status, f"BROKEN (pytest exited with {status})")
            survived += status != 1
            print(f"{verdict:8}  {time.monotonic() - begin:4.0f} s  {mutation.file}: {mutation.old!r} -> {mutation.new!r}")
            print(f"                  {failure or mutation.tests}", flush=True)
    print(f"{len(chosen)} mutations, {survived} problems")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
