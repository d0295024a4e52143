"""Break the source on purpose, one place at a time; the tests named beside each break must fail.

    python tests/mutation.py            all of them
    python tests/mutation.py taps ε     those whose file or new text contains one of the words
    python tests/mutation.py --part 1/2     the first half of them, for two processes side by side

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
FRAMES, RESILIENCE, PRODUCTS = "physics/test_frames.py", "physics/test_resilience.py", "physics/test_products.py"
MASTER, PROJECTION = "physics/test_master.py", "physics/test_projection.py"
KERNEL, LAGS, FIELD, BANK = "physics/test_kernel.py", "physics/test_lags.py", "physics/test_field.py", "physics/test_bank.py"
RETRIEVAL, HAMILTONIAN = "physics/test_retrieval.py", "physics/test_hamiltonian.py"
INTEGRATORS, ACTION = "physics/test_integrators.py", "physics/test_action.py"
FLOW, POTENTIAL = "physics/test_flow.py", "physics/test_potential.py"
BLOCK, NETWORK, OPERATORS = "model/test_block.py", "model/test_network.py", "model/test_operators.py"
ECHO, NUDGE, OPTIMIZER = "learning/test_echo.py", "learning/test_nudge.py", "learning/test_optimizer.py"
RECURRENCE, SAMPLING, ENGINE = "model/test_recurrence.py", "inference/test_sampling.py", "inference/test_engine.py"
MEMORY, REMEMBERING = "inference/test_memory_bank.py", "inference/test_remembering.py"
EXPORT = "inference/test_export.py"
FILES = "storage/test_files.py"
EVENTS, OUTPUT, LAYER = "training/test_events.py", "cli/test_output.py", "learning/test_layer.py"
BAD_DRAWS, RESUME, SIGNALS = "training/test_bad_steps.py", "training/test_resume.py", "training/test_signals.py"
FAILING, MANIFEST, CHECKPOINT = "training/test_failing_saves.py", "storage/test_manifest.py", "storage/test_checkpoint.py"
DROPOUT, BIAS = "learning/test_dropout.py", "learning/test_bias.py"
ORIGIN, RATE = "training/test_origin.py", "training/test_rate.py"
TRACKING, CHECKS = "training/test_tracking.py", "training/test_checks.py"
CORPUS, SHARDS = "data/test_corpus.py", "data/test_shards.py"
SYSTEMS = "learning/test_systems.py"
RELAXATION, EQUILIBRIUM = "physics/test_relaxation.py", "learning/test_equilibrium.py"
KERNELS = "kernels/test_retrieval.py -k plain_form"
GRADIENT_AT_INIT = f"{ECHO}::test_estimate_is_the_gradient_at_init"

HUB, PROCESSES = "parallel/test_hub.py", "parallel/test_processes.py -k stop_as_one"
DEVICES, ACCUMULATION, HLO = "parallel/test_devices.py", "learning/test_accumulation.py", "parallel/test_hlo.py"

MUTATIONS = [
    # --- devices -----------------------------------------------------------------------------------------------------
    Mutation("parallel/shardings.py", "axes[max(free, key=", "axes[min(free, key=", DEVICES),
    Mutation("parallel/shardings.py", "range(int(stacked), len(shape))", "range(len(shape))", DEVICES),
    Mutation("parallel/devices.py", "data = max(fitting)", "data = min(fitting)", DEVICES),
    Mutation(
        "parallel/pieces.py",
        "return x.reshape(count, x.shape[0] // count, *rest)",
        "return x.reshape(-1, count, *rest)",
        DEVICES,
    ),
    Mutation("learning/chunks.py", "own // count <= chunk", "own // count < chunk", DEVICES),
    Mutation(
        "parallel/hlo.py",
        '"all-reduce": lambda size, n: 2 * (n - 1) / n * size',
        '"all-reduce": lambda size, n: (n - 1) / n * size',
        HLO,
    ),
    Mutation("parallel/hlo.py", "count * (int(trips[1]) if trips else 1)", "count", HLO),
    Mutation(
        "parallel/devices.py",
        "if together % count == 0 and count * asked.model % processes == 0]",
        "if together % count == 0]",
        f"{DEVICES} -k every_process",
    ),
    Mutation(
        "parallel/devices.py", "some[: self.count // self.processes]", "some[: self.count]", f"{DEVICES} -k every_process"
    ),
    Mutation("parallel/devices.py", "processes * min(Counter(", "processes * max(Counter(", f"{DEVICES} -k over_processes"),
    # --- processes ---------------------------------------------------------------------------------------------------
    Mutation("parallel/hub.py", 'self._end(LOST, f"{member.name} has died.")', "pass", f"{HUB} -k broken"),
    Mutation(
        "parallel/hub.py",
        "if now - member.heard > self._silence:\n                self._end",
        "if False:\n                self._end",
        f"{HUB} -k silent",
    ),
    Mutation(
        "parallel/hub.py", "[values[index] for index in range(self.count)]", "list(values.values())", f"{HUB} -k collected"
    ),
    Mutation(
        "parallel/hub.py", "if one.get(name) != other.get(name)]", "if one.get(name) == other.get(name)]", f"{HUB} -k fit"
    ),
    Mutation("parallel/hub.py", "if self._has_begun or self._has_ended:", "if self._has_ended:", f"{HUB} -k latecomers"),
    Mutation("parallel/meeting.py", "count > 1 and name in environment", "name in environment", f"{HUB} -k schedulers"),
    Mutation(
        "parallel/processes.py", "if self._stop is not None and self._stop.number is None:", "if False:", f"{HUB} -k passes_on"
    ),
    Mutation(
        "parallel/processes.py", "if not self.is_first:\n            return self._wait(key)", "", f"{HUB} -k first_one_makes"
    ),
    Mutation("data/batches.py", "(step + 1) * batch_size)[rows]", "(step + 1) * batch_size)", f"{CORPUS} -k part_of_a_batch"),
    Mutation("training/loop.py", "self.devices.largest(self.stop.number or 0)", "self.devices.largest(0)", PROCESSES),
    Mutation("training/run.py", "events.as_one(on_event if team.is_first else None)", "events.as_one(on_event)", PROCESSES),
    # --- micro-batches -----------------------------------------------------------------------------------------------
    Mutation("learning/accumulation.py", "lambda x: x / pieces, total", "lambda x: x, total", f"{ACCUMULATION} -k add_up"),
    Mutation(
        "learning/accumulation.py", "nudge=pieces * mean(infos.nudge)", "nudge=mean(infos.nudge)", f"{ACCUMULATION} -k add_up"
    ),
    Mutation("learning/accumulation.py", "own.T if own is not None else", "", f"{ACCUMULATION} -k add_up"),
    Mutation(
        "learning/accumulation.py",
        "residual=largest(infos.residual)",
        "residual=mean(infos.residual)",
        f"{ACCUMULATION} -k worst",
    ),
    Mutation("learning/accumulation.py", "jax.random.fold_in(key, place)", "key", f"{ACCUMULATION} -k anew"),
    # --- kernels -----------------------------------------------------------------------------------------------------
    Mutation("kernels/tiles.py", "jnp.where(lag >= 0, score, HIDDEN)", "jnp.where(lag > 0, score, HIDDEN)", KERNELS),
    Mutation("kernels/tiles.py", "- 2.0 * product", "- product", KERNELS),
    Mutation("kernels/tiles.py", "jnp.sum(points * origin, 1)", "jnp.sum(near * origin, 1)", KERNELS),
    Mutation("kernels/forward.py", "fade[:, None] * boltzmann +", "boltzmann +", KERNELS),
    Mutation("kernels/adjoint.py", "(mixing - of_queries(own.mean, shape))", "mixing", KERNELS),
    Mutation("kernels/adjoint.py", "-of_queries(LN2 * queries", "of_queries(LN2 * queries", KERNELS),
    Mutation("kernels/adjoint.py", "by_product[:, None] * origin", "0 * origin", KERNELS),
    Mutation("kernels/adjoint.py", "index - offset, shape", "index, shape", KERNELS),
    Mutation("kernels/retrieval.py", "(after + jnp.pad(before[:, 1:]", "(after + 0 * jnp.pad(before[:, 1:]", KERNELS),
    # --- physics -----------------------------------------------------------------------------------------------------
    Mutation("physics/numerics.py", "(cotangent - x_hat * jnp.mean", "(cotangent + x_hat * jnp.mean", f"{NUMERICS} -k rms"),
    Mutation("physics/numerics.py", "distribution + z * density", "distribution - z * density", f"{NUMERICS} -k gelu"),
    Mutation("physics/numerics.py", "jax.nn.sigmoid(raw)", "jax.nn.sigmoid(-raw)", f"{NUMERICS} -k softplus"),
    Mutation("physics/numerics.py", "preferred_element_type=dtype", "preferred_element_type=None", f"{NUMERICS} -k bfloat16"),
    Mutation("physics/numerics.py", "mantissa_bits=7", "mantissa_bits=10", f"{NUMERICS} -k bfloat16"),
    Mutation(
        "physics/numerics.py",
        "cpu=partial(_of_rounded, subscripts)",
        "cpu=partial(_in_bfloat16, subscripts)",
        f"{NUMERICS} -k bfloat16",
    ),
    Mutation(
        "physics/frames.py",
        "by_row[planes[:, 0]] - by_row[planes[:, 1]]",
        "by_row[planes[:, 1]] - by_row[planes[:, 0]]",
        f"{FRAMES} -k rotate_adjoint",
    ),
    Mutation(
        "physics/frames.py",
        "rotated, cotangent = _turn(rotated, partner, cos, -sin)",
        "rotated, cotangent = _turn(rotated, partner, cos, sin)",
        f"{FRAMES} -k rotate_adjoint",
    ),
    Mutation("physics/frames.py", "cos * x + sin * x[partner]", "cos * x - sin * x[partner]", f"{FRAMES} -k rotation"),
    Mutation(
        "physics/geometry.py",
        "jax.nn.softplus(metric.scale) * jnp.sqrt(jax.nn.softplus(metric.stiffness))",
        "jax.nn.softplus(metric.scale) * jax.nn.softplus(metric.stiffness)",
        f"{GEOMETRY} -k formula",
    ),
    Mutation("physics/geometry.py", "c_root / (2 * root[:, 0])", "c_root / root[:, 0]", f"{GEOMETRY} -k whiten_adjoint"),
    Mutation(
        "physics/rotor_planes.py",
        "[order[0], order[-1], *order[1:-1]]",
        "[order[-1], *order[:-1]]",
        f"{FRAMES} -k exactly_once",
    ),
    Mutation("physics/rotor_planes.py", "[i + start, j + start]", "[i + start, (j + start + 2) % n]", f"{FRAMES} -k block"),
    Mutation(
        "physics/frames.py",
        "axes * jnp.where(jnp.diagonal(upper) < 0, -1, 1)[None].astype(axes.dtype)",
        "axes",
        f"{FRAMES} -k flip",
    ),
    Mutation(
        "physics/frames.py",
        "axes, upper = jnp.linalg.qr((covariance + ridge) @ derived.axes)",
        "axes, upper = jnp.linalg.eigh(covariance)[1][:, ::-1], jnp.ones_like(covariance)",
        f"{FRAMES} -k jump",
    ),
    Mutation("physics/frames.py", "(moment - derived.covariance)", "(moment + derived.covariance)", f"{FRAMES} -k exponential"),
    Mutation("physics/frames.py", "ridge = 1e-4", "ridge = -1e-4", f"{FRAMES} -k nothing_moves"),
    Mutation(
        "physics/geometry.py",
        "jnp.zeros_like(metric.angles), frame @ c_rotated",
        "jnp.zeros_like(metric.angles), frame.T @ c_rotated",
        f"{GEOMETRY} -k given_frame",
    ),
    Mutation(
        "physics/base_geometry.py",
        "whitening=np.linalg.cholesky(metric).T",
        "whitening=np.linalg.cholesky(metric)",
        f"{GEOMETRY} -k precomputed",
    ),
    Mutation(
        "physics/resilience.py",
        "cotangent * jnp.sign(_collapsed(law, points)) /",
        "cotangent /",
        f"{RESILIENCE} -k adjoint_of_curvature",
    ),
    Mutation(
        "physics/resilience.py",
        "jnp.sqrt(jnp.abs(_collapsed(law, points)) +",
        "jnp.sqrt(jnp.maximum(_collapsed(law, points), 0) +",
        f"{RESILIENCE} -k dense",
    ),
    Mutation("physics/resilience.py", "c_exponent = -jnp.sum", "c_exponent = jnp.sum", f"{RESILIENCE} -k constitutive_law"),
    Mutation("physics/products.py", "(2 * r + product) * c_half", "(2 * r - product) * c_half", f"{PRODUCTS} -k squares"),
    Mutation(
        "physics/products.py", "return -2 * product * c_square", "return 2 * product * c_square", f"{PRODUCTS} -k squares"
    ),
    Mutation(
        "physics/products.py",
        "pairs.near_keys, pairs.precision)\n        return _of_heads",
        "pairs.keys, pairs.precision)\n        return _of_heads",
        f"{RETRIEVAL} -k near_duplicates",
    ),
    Mutation(
        "physics/products.py", "_by_head(cotangent * pairs.product)", "_by_head(cotangent)", f"{PRODUCTS} -k score_adjoint"
    ),
    Mutation(
        "physics/products.py", "c_turned, self.form, pairs", "-c_turned, self.form, pairs", f"{PRODUCTS} -k score_adjoint"
    ),
    Mutation(
        "physics/products.py",
        'keys + contract("bhij,bhim->bhjm", cotangent, turned',
        'keys - contract("bhij,bhim->bhjm", cotangent, turned',
        f"{PRODUCTS} -k score_adjoint",
    ),
    Mutation(
        "physics/products.py",
        "Rotor(jnp.cos(angle / 2), jnp.sin(angle / 2) * plane)",
        "Rotor(jnp.cos(angle), jnp.sin(angle) * plane)",
        f"{PRODUCTS} -k rotor",
    ),
    Mutation(
        "physics/products.py",
        "return raw - jnp.swapaxes(raw, -1, -2)",
        "return jnp.swapaxes(raw, -1, -2) - raw",
        f"{PRODUCTS} -k two_form",
    ),
    Mutation("physics/kernel.py", "nodes * delta - gammaln(delta)", "nodes * delta + gammaln(delta)", f"{KERNEL} -k power_law"),
    Mutation("physics/kernel.py", "delta / (1 + delta)  # the tail", "delta  # the tail", f"{KERNEL} -k each_mode"),
    Mutation("physics/kernel.py", "rate[:, 2:] - 1j * kernel", "rate[:, 2:] + 1j * kernel", f"{KERNEL} -k each_mode"),
    Mutation(
        "physics/kernel.py",
        "digamma(1 + delta) - lag * _SLOWEST",
        "digamma(1 + delta) + lag * _SLOWEST",
        f"{KERNEL} -k values_adjoint",
    ),
    Mutation(
        "physics/kernel.py", "c_angle = -c_modes[:, 2] * 0.5", "c_angle = -c_modes[:, 2]", f"{KERNEL} -k log_prior_adjoint"
    ),
    Mutation(
        "physics/kernel.py",
        "jax.nn.sigmoid(kernel.order + shift)[:, None]",
        "jax.nn.sigmoid(kernel.order - shift)[:, None]",
        f"{KERNEL} -k shift",
    ),
    Mutation("physics/kernel.py", "(slice(-1), slice(-1, None))", "(slice(-1), slice(None, 1))", f"{KERNEL} -k split"),
    Mutation("physics/lags.py", "pad in ((made, 0), (0, made))", "pad in ((0, made), (made, 0))", f"{LAGS} -k sum_by_lag"),
    Mutation(
        "physics/kernel.py", "late[0] * early[1] + late[1]", "late[0] * early[1] - late[1]", f"{KERNEL} -k every_convolution"
    ),
    Mutation("physics/kernel.py", "* charge + x[:, :, None]", "* (charge + x[:, :, None])", f"{KERNEL} -k charge"),
    Mutation("physics/bank.py", "fade[None] * sums + gather", "sums + gather", BANK),
    Mutation("physics/bank.py", "-beta[None] * cost", "beta[None] * cost", BANK),
    Mutation("physics/field.py", "np.exp(-1j * angle)", "np.exp(1j * angle)", FIELD),
    Mutation("physics/field.py", "(lag - 1 + order) / lag", "(lag - 1 - order) / lag", FIELD),
    Mutation("physics/field.py", "field + believed * (evidence - field)", "field - believed * (evidence - field)", FIELD),
    Mutation("physics/field.py", "total = total - memory(", "total = total + memory(", FIELD),
    Mutation("physics/field_state.py", "-jnp.imag(reader)], -1)", "jnp.imag(reader)], -1)", FIELD),
    Mutation("physics/delta.py", "c_held = -pull", "c_held = pull", f"{MASTER} -k delta_adjoint"),
    Mutation("physics/delta.py", "v - since * held", "v + since * held", f"{MASTER} -k delta_adjoint"),
    Mutation("physics/delta.py", "whole * c_field + reached -", "whole * c_field + reached +", f"{MASTER} -k delta_adjoint"),
    Mutation("physics/delta.py", "by_key + jnp.swapaxes", "by_key - jnp.swapaxes", f"{MASTER} -k delta_adjoint"),
    Mutation("physics/delta.py", "@ (len(steps) - steps)", "@ steps", f"{MASTER} -k delta_adjoint"),
    Mutation(
        "physics/delta.py", "pull[..., None] * (value - contract", "pull[..., None] * (value + contract", f"{MASTER} -k exactly"
    ),
    Mutation("physics/turn.py", "turn(cotangent, -angle)", "turn(cotangent, angle)", f"{MASTER} -k evolve_adjoint"),
    Mutation("physics/turn.py", "c_second * first - c_first", "c_second * first + c_first", f"{MASTER} -k evolve_adjoint"),
    Mutation("physics/turn.py", "first * sin + second * cos", "second * cos - first * sin", f"{MASTER} -k norm"),
    Mutation(
        "physics/master.py", "angle = _angles(site, queries, first=1)", "angle = _angles(site, queries)", f"{MASTER} -k forms"
    ),
    Mutation("physics/projection.py", "by_lag.at[:, 0].set(0)", "by_lag", f"{PROJECTION} -k itself"),
    Mutation("physics/projection.py", "held[:, None] - _own", "held[:, None] + _own", f"{PROJECTION} -k forms"),
    Mutation("physics/projection.py", "+ on_keys * projector", "- on_keys * projector", f"{PROJECTION} -k adjoint"),
    Mutation("physics/products.py", "jnp.linalg.cholesky(metric)", "metric", f"{PRODUCTS} -k attend"),
    Mutation("model/field.py", "pulled * (1 - pulled)", "pulled", f"{BLOCK}::test_kick_adjoint[master]"),
    Mutation("model/field.py", "c_by_lag + cotangent.projector", "c_by_lag - cotangent.projector", f"{OPERATORS} -k adjoint"),
    Mutation("physics/taps.py", "_delay(cotangent, -lag)", "_delay(cotangent, lag)", f"{TAPS} -k adjoint"),
    Mutation("physics/taps.py", "[pad, x[:, :-steps]]", "[x[:, steps:], pad]", f"{TAPS} -k convolution"),
    Mutation(
        "physics/retrieval.py",
        "weight * (c_mixing - jnp.sum(weight * c_mixing, -1, keepdims=True))",
        "weight * c_mixing",
        f"{RETRIEVAL} -k retrieve_adjoint",
    ),
    Mutation("physics/retrieval.py", "return 0.5 * (rows(", "return (rows(", f"{RETRIEVAL} -k adjoint"),
    Mutation("physics/retrieval.py", "jnp.sum(cotangent * length, -1)", "jnp.sum(cotangent, -1)", f"{RETRIEVAL} -k adjoint"),
    Mutation("physics/retrieval.py", "c_cost = -_of_heads", "c_cost = _of_heads", RETRIEVAL),
    Mutation("physics/retrieval.py", "c_temperature = -jnp.sum", "c_temperature = jnp.sum", f"{RETRIEVAL} -k adjoint"),
    Mutation("physics/pairwise.py", "PairCotangent(-pull,", "PairCotangent(pull,", f"{RETRIEVAL} -k adjoint"),
    Mutation("physics/pairwise.py", "2 * c_q_squared * self", "c_q_squared * self", f"{RETRIEVAL} -k adjoint"),
    Mutation("physics/pairwise.py", "rows(by_key) * self.origin", "rows(by_key) * 0", f"{RETRIEVAL} -k adjoint"),
    Mutation(
        "physics/pairwise.py",
        "return jnp.pad(c_values, ((0, 0), (0,",
        "return jnp.pad(c_values, ((0, 0), (1, -1 +",
        f"{RETRIEVAL} -k tiles",
    ),
    Mutation(
        "physics/field_state.py",
        "pairs.product_adjoint(pairs.places",
        "pairs.product_adjoint(-pairs.places",
        RETRIEVAL,
    ),
    Mutation("physics/pairwise.py", "+ columns(_dots(self.origin, self.keys))", "", RETRIEVAL),
    Mutation(
        "physics/pairwise.py",
        "Pairs(queries, keys, keys[:, :, :1], Causal",
        "Pairs(queries, keys, 0 * keys[:, :, :1], Causal",
        f"{RETRIEVAL} -k close_points",
    ),
    Mutation(
        "physics/pairwise.py",
        "Pairs(queries, keys, keys[:, :, :1], Causal",
        "Pairs(queries, keys, keys.mean(2, keepdims=True), Causal",
        f"{RETRIEVAL} -k future",
    ),
    Mutation(
        "physics/pairwise.py",
        "bool), self.length - self.rows)",
        "bool), self.length - self.rows + 1)",
        f"{NETWORK} -k future",
    ),
    Mutation("physics/pairwise.py", "bool), self.length - self.rows)", "bool))", f"{RETRIEVAL} -k tiles"),
    Mutation("physics/tiling.py", "whole.at[:, : start.shape[1]].add(start)", "whole", f"{RETRIEVAL} -k tiles"),
    Mutation("physics/tiling.py", "(jnp.add, sums, more)", "(lambda x, y: y, sums, more)", f"{RETRIEVAL} -k tiles"),
    Mutation("physics/tiling.py", "begin + rows * jnp.arange", "begin + 0 * jnp.arange", f"{RETRIEVAL} -k tiles"),
    Mutation("physics/pairwise.py", "self.first + own[:, None]", "self.first + own[:, None] + 1", f"{RETRIEVAL} -k tiles"),
    Mutation("physics/lags.py", "((0, 0), (ahead, 0))), first", "((0, 0), (0, ahead))), first", f"{KERNEL} -k by_tiles"),
    Mutation("physics/lags.py", "cotangent, first, 1)[:, ahead:]", "cotangent, first, 1)[:, :length]", f"{KERNEL} -k tiles"),
    Mutation("physics/lags.py", "table[:, 0, length - 1 :: -1]", "table[:, 0, :length]", f"{LAGS} -k sum_by_lag"),
    Mutation("physics/lags.py", "table[:, power - rows :]", "table[:, :rows]", f"{LAGS} -k spread"),
    Mutation(
        "physics/pairwise.py",
        "[None, :, :, self.longest - self.length :]",
        "[None, :, :, : self.length]",
        f"{RETRIEVAL} -k tiles",
    ),
    Mutation("physics/hamiltonian.py", "return 0.5 * jnp.sum(p * p", "return jnp.sum(p * p", f"{HAMILTONIAN} -k energies"),
    Mutation(
        "physics/hamiltonian.py", "jnp.sum(p.mean * p.slope", "0.5 * jnp.sum(p.mean * p.slope", f"{HAMILTONIAN} -k system"
    ),
    Mutation("physics/potential/direction.py", "- curvature * s", "+ curvature * s", f"{POTENTIAL} -k negative_gradient"),
    Mutation("physics/potential/direction.py", "return 0.5 * curvature", "return curvature", f"{POTENTIAL} -k formula"),
    Mutation(
        "physics/potential/direction.py", "jnp.sum(s.mean * s.slope)", "-jnp.sum(s.mean * s.slope)", f"{POTENTIAL} -k literal"
    ),
    Mutation(
        "physics/potential/direction.py",
        " + correlate(x.mean, self.pair.slope, precision)",
        "",
        f"{POTENTIAL} -k literal",
    ),
    Mutation(
        "physics/potential/direction.py",
        "return correlate(x.slope, self.pair.mean, precision) + correlate(x.mean, self.pair.slope, precision)",
        "return 1e3 * sum(sign * correlate(a, b, precision) for sign, a, b in zip((1, -1), x.ends(1e-3), self.hats))",
        f"{POTENTIAL} -k cancel",
    ),
    Mutation("physics/potential/gated.py", "features=-nudged", "features=nudged", f"{POTENTIAL} -k literal"),
    Mutation("physics/pair.py", "x + middle * y", "x - middle * y", f"{POTENTIAL} -k kept_units"),
    Mutation(
        "physics/potential/gated.py",
        "beside(free.gate, gate_slope, middle)",
        "beside(free.z, gate_slope, middle)",
        f"{POTENTIAL} -k kept_units",
    ),
    Mutation(
        "physics/potential/hopfield.py",
        "beside(free.overlap, project",
        "beside(2 * free.overlap, project",
        f"{POTENTIAL} -k kept_units",
    ),
    Mutation(
        "physics/flow.py",
        "system.keeping.kick_contrast(s, span, kept, middle)",
        "system.keeping.kick_contrast(s, span, kept, 0.0)",
        f"{ECHO} -k change_nothing[gated-one_sided]",
    ),
    Mutation("physics/potential/gated.py", "bias=-jnp.sum", "bias=jnp.sum", f"{POTENTIAL} -k literal"),
    Mutation("physics/potential/hopfield.py", "patterns=-nudged", "patterns=nudged", f"{POTENTIAL} -k literal"),
    Mutation("physics/potential/hopfield.py", "0.5 * difference", "difference", f"{POTENTIAL} -k literal"),
    Mutation("physics/potential/hopfield.py", "/ (1 + total)", "", f"{POTENTIAL} -k literal"),
    Mutation("physics/potential/hopfield.py", "(jnp.log1p(total) / span - by_mean)", "(-by_mean)", f"{POTENTIAL} -k literal"),
    Mutation("physics/potential/hopfield.py", "/ beta**2", "/ beta", f"{POTENTIAL} -k literal"),
    Mutation("physics/potential/hopfield.py", "- log_sum / potential.sharpness", "- log_sum", f"{POTENTIAL} -k formula"),
    Mutation("physics/potential/hopfield.py", "c_sharpness + by_restraint", "c_sharpness", f"{POTENTIAL} -k prepare_adjoint"),
    Mutation(
        "physics/potential/hopfield.py",
        "-0.5 * jnp.sum(cotangent",
        "0.5 * jnp.sum(cotangent",
        f"{POTENTIAL} -k prepare_adjoint",
    ),
    Mutation("physics/potential/hopfield.py", "BEND, PULL = 0.5", "BEND, PULL = 5.0", f"{POTENTIAL} -k longest"),
    Mutation("physics/potential/hopfield.py", "jnp.where(mask > 0, a + ", "jnp.where(mask > -1, a + ", f"{POTENTIAL} -k mask"),
    Mutation("physics/pair.py", "0.5 * span * slope", "span * slope", "physics/test_pair.py"),
    Mutation(
        "physics/integrators.py",
        "VERLET: Coefficients = (0.5, 1.0, 0.5)",
        "VERLET: Coefficients = (1.0, 1.0, 0.0)",
        INTEGRATORS,
    ),
    Mutation("physics/integrators.py", "_INNER = 1 - 2 * _OUTER", "_INNER = 1 - _OUTER", INTEGRATORS),
    Mutation("physics/integrators.py", "2 ** (1 / 3)", "2 ** (1 / 5)", f"{INTEGRATORS} -k yoshida"),
    Mutation("physics/integrators.py", "kicks[-1] + kicks[0]", "kicks[0]", f"{INTEGRATORS} -k schedule"),
    Mutation(
        "physics/flow.py",
        "if times.final_kick:\n        p, by_kicks",
        "if False:\n        p, by_kicks",
        f"{FLOW} -k adjoint_of_the_flow",
    ),
    Mutation("physics/flow.py", "_move(p, -length, forces)", "_move(p, length, forces)", f"{FLOW} -k adjoint_of_the_flow"),
    Mutation(
        "physics/flow.py", "_move(by_drifts, drift, local)", "_move(by_drifts, 1, local)", f"{FLOW} -k adjoint_of_the_flow"
    ),
    Mutation("physics/action.py", "(cotangent / length(displacement))", "cotangent", f"{ACTION} -k adjoint"),
    Mutation("physics/action.py", "GAIN * excess", "-GAIN * excess", ACTION),
    Mutation("physics/flow.py", "p = push(p, c_after)", "pass", f"{FLOW} -k source"),
    Mutation("physics/flow.py", "p = push(p, c_before)", "pass", f"{FLOW} -k source"),
    Mutation("physics/flow.py", "_move(p.slope, 1, by)", "_move(p.slope, -1, by)", f"{FLOW} -k source"),
    # --- model -------------------------------------------------------------------------------------------------------
    Mutation(
        "model/operators.py",
        "jax.tree.map(jnp.add, metric_by_query, metric_by_key)",
        "metric_by_query",
        f"{OPERATORS} -k prepare_adjoint",
    ),
    Mutation("model/block.py", "final_kick=own.carry_momentum", "final_kick=False", f"{NETWORK} -k dense"),
    Mutation("model/block.py", "return p if config.flow.carry_momentum else", "return p if True else", f"{NETWORK} -k dense"),
    Mutation("model/charts.py", "c_direction) + c_s_by_law", "c_direction)", f"{BLOCK} -k kick_adjoint"),
    Mutation("model/charts.py", "c_query + c_query_by_law", "c_query", f"{BLOCK} -k kick_adjoint"),
    Mutation(
        "model/charts.py",
        "gain=jnp.sum(c_context * seen.kept",
        "gain=jnp.sum(c_context * seen.context",
        f"{BLOCK} -k kick_adjoint",
    ),
    Mutation(
        "model/terms.py",
        "_scaled(cotangent._replace(form=two_form_adjoint(cotangent.form)), config)",
        "_scaled(cotangent, config)",
        f"{OPERATORS} -k prepare_adjoint",
    ),
    Mutation("model/terms.py", "else action.prior_shift(state)", "else -action.prior_shift(state)", f"{OPERATORS} -k order"),
    Mutation("model/terms.py", "return _scaled(raw, config)", "return raw", f"{OPERATORS} -k formula"),
    Mutation(
        "model/block.py", "c_begin, c_before, c_law = -c_end", "c_begin, c_before, c_law = c_end", f"{BLOCK} -k action_adjoint"
    ),
    Mutation("model/operators.py", "action.step(actions / tau, tau, state)", "action.step(actions, tau, state)", OPERATORS),
    Mutation("model/operators.py", "frame.axes @ relaxed @ jnp", "relaxed @ jnp", OPERATORS),
    Mutation("model/operators.py", '"mn,bhmd->bhnd"', '"nm,bhmd->bhnd"', f"{OPERATORS} -k prepare_adjoint"),
    Mutation(
        "model/operators.py",
        "moment / (stretch[..., :, None] * stretch[..., None, :])",
        "moment",
        f"{OPERATORS} -k keys_covariance",
    ),
    Mutation("model/block.py", "return jnp.mean(action", "return jnp.sum(action", f"{BLOCK} -k observed_action"),
    Mutation("model/parameters.py", "params._replace(carried=Carried(None, None))", "params", f"{NETWORK} -k number_of"),
    Mutation(
        "learning/echo.py",
        "jax.tree.map(jnp.add, gradient.resilience, by_action.resilience)",
        "gradient.resilience",
        f"{ECHO} -k weight_on_the_action_is_the",
    ),
    Mutation("learning/echo.py", "jax.tree.map(jnp.zeros_like, params.carried)", "params.carried", f"{ECHO} -k not_learned"),
    Mutation("learning/echo.py", "pulls.append(c_after)", "pulls.append(0 * c_after)", f"{ECHO} -k hardly"),
    Mutation(
        "physics/flow.py", "Pair(_move(p.mean, middle, by)", "Pair(_move(p.mean, 0, by)", f"{ECHO} -k one_sided_echo_with"
    ),
    Mutation("physics/flow.py", "before = _move(s.mean, -drift", "before = _move(s.mean, drift", f"{FLOW} -k source"),
    Mutation("model/network.py", ".at[tokens].add(", ".at[tokens].set(", f"{NETWORK} -k embed_adjoint"),
    Mutation("model/network.py", ") - one_hot) / targets.size", ") - one_hot)", f"{NETWORK} -k readout_loss_and_adjoint"),
    Mutation("model/network.py", "(jax.nn.softmax(logits) - one_hot)", "(one_hot - jax.nn.softmax(logits))", GRADIENT_AT_INIT),
    # --- learning ----------------------------------------------------------------------------------------------------
    Mutation("learning/nudge.py", '"centred": (1.0, -1.0)', '"centred": (-1.0, 1.0)', NUDGE),  # harmless, but not as documented
    Mutation("learning/nudge.py", '"centred": (1.0, -1.0)', '"centred": (1.0, 0.0)', f"{ECHO} -k order"),
    Mutation("learning/nudge.py", "jax.tree.map(jnp.negative, c_p)", "c_p", GRADIENT_AT_INIT),
    Mutation("learning/nudge.py", "s - shift * c, s", "s + shift * c, s", NUDGE),
    Mutation("learning/nudge.py", "p + shift * c, p", "p - shift * c, p", f"{ECHO} -k one_sided"),
    Mutation("learning/nudge.py", "mean - shift * slope", "mean + shift * slope", NUDGE),
    Mutation("learning/nudge.py", "jnp.maximum(push, tiny**0.5)", "push", f"{ECHO} -k pull"),
    Mutation("learning/nudge.py", "jnp.minimum(mean_square(s), start)", "mean_square(s)", f"{BIAS} -k bears"),
    Mutation("learning/nudge.py", "jnp.maximum(smaller, RMS_EPSILON)", "smaller", f"{NUDGE} -k floor"),
    Mutation("learning/bias.py", "jnp.array([1.0, 2.0])", "jnp.array([1.0, 1.5])", f"{BIAS} -k distance"),
    Mutation("learning/nudge.py", "map(mean_square, pulls[1:])", "map(mean_square, pulls[:0])", NUDGE),
    Mutation("learning/echo.py", "p_pair.slope, -s_pair.slope", "p_pair.slope, s_pair.slope", GRADIENT_AT_INIT),
    Mutation("learning/echo.py", "c_s + c_s_by_kick", "c_s", GRADIENT_AT_INIT),
    Mutation("learning/echo.py", "epsilon, sides) - kicked", "epsilon, sides)", GRADIENT_AT_INIT),
    Mutation("learning/echo.py", "p=stored.p_out, c_p=jnp.zeros_like(end.p)", "p=stored.p_out", GRADIENT_AT_INIT),
    Mutation("learning/chunks.py", "jax.tree.map(jnp.add, gradient, local)", "local", f"{ECHO} -k chunks"),
    Mutation(
        "learning/echo.py",
        "_rms(start.s - s_first) / _rms(s_first)",
        "_rms(start.s) / _rms(s_first)",
        f"{ECHO} -k test_info",
    ),
    Mutation("learning/optimizer.py", "mask=decay_mask", "mask=None", OPTIMIZER),
    Mutation("learning/optimizer.py", "_ADAM_RMS * math.sqrt(size)", "math.sqrt(size)", OPTIMIZER),
    Mutation("learning/optimizer.py", "else optimizer.adam_learning_rate / optimizer.learning_rate", "else 1.0", OPTIMIZER),
    Mutation("learning/optimizer.py", "1.0 - kept)", "kept)", OPTIMIZER),
    Mutation("learning/optimizer.py", "(1.0 + step)", "(2.0 + step)", OPTIMIZER),
    Mutation(
        "learning/optimizer.py",
        "steps - round(optimizer.decay_fraction * steps)",
        "round(optimizer.decay_fraction * steps)",
        OPTIMIZER,
    ),
    Mutation("model/parameters.py", "matrix((1, 2), (3,))", "matrix((2,), (3,))", OPTIMIZER),
    Mutation("model/parameters.py", "matrix((3,), (1, 2))", "matrix((3,), (2,))", OPTIMIZER),
    Mutation("learning/optimizer.py", "optax.clip_by_global_norm(optimizer.clip_norm),", "", OPTIMIZER),
    Mutation("learning/optimizer.py", "optimizer.learning_rate * optimizer.final_fraction", "0.0", f"{OPTIMIZER} -k schedule"),
    Mutation("learning/systems.py", "c_s=p_pair.slope", "c_s=s_pair.slope", f"{SYSTEMS} -k echo_is"),
    Mutation("learning/systems.py", "jax.tree.map(jnp.negative, s_pair.slope)", "s_pair.slope", f"{SYSTEMS} -k echo_is"),
    Mutation("learning/systems.py", "jax.tree.map(jnp.add, *contrast)", "contrast[0]", f"{SYSTEMS} -k echo_is"),
    Mutation("learning/systems.py", "kinetic_statistic or still", "still", f"{SYSTEMS} -k echo_is"),
    Mutation(
        "learning/systems.py",
        "source, middle, along",
        "source, 0.0, along",
        f"{SYSTEMS} -k order",
    ),
    Mutation("learning/systems.py", "_norm((c_s, c_p)) + path_pull", "_norm((c_s, c_p))", f"{SYSTEMS} -k share"),
    Mutation("learning/systems.py", "minus), span).slope", "minus), span).mean", f"{SYSTEMS} -k equilibrium_is"),
    Mutation(
        "learning/systems.py",
        "lambda s: pull,",
        "lambda s: jax.tree.map(jnp.negative, pull),",
        f"{SYSTEMS} -k equilibrium_is",
    ),
    Mutation(
        "physics/flow.py",
        "along, kept), reverse=True)",
        "jax.tree.map(lambda x: x[::-1], along), kept), reverse=True)",
        f"{SYSTEMS} -k echo_is",
    ),
    # --- structure ---------------------------------------------------------------------------------------------------
    Mutation("learning/echo.py", "from jax import Array, lax", "from jax import Array, lax, vjp", "test_structure.py"),
    Mutation(
        "physics/action.py",
        "from jax import Array",
        "from jax import Array\nfrom lior_jax.model import network",
        "test_structure.py",
    ),
    # --- recurrence and decoding -------------------------------------------------------------------------------------
    Mutation(
        "physics/kernel.py",
        "age = (lengths[:, None] - 1 -",
        "age = (lengths[:, None] -",
        f"{RECURRENCE}::test_chunks_of_different_lengths_are_the_parallel_network[memory]",
    ),
    Mutation(
        "physics/field_state.py",
        "reader = (system.weight * jnp.exp(-system.rate))[None] * decay\n    reader",
        "reader = system.weight[None] * decay\n    reader",
        f"{RECURRENCE}::test_chunks_of_different_lengths_are_the_parallel_network[field]",
    ),
    Mutation(
        "physics/retrieval.py", "by_distance = -_of_heads", "by_distance = _of_heads", f"{RETRIEVAL} -k displacement_form"
    ),
    Mutation(
        "physics/pairwise.py", "jnp.clip(self.lag, 0, values", "jnp.clip(self.lag + 1, 0, values", f"{RETRIEVAL} -k window"
    ),
    Mutation(
        "physics/pairwise.py",
        "Pairs(queries, keys, queries[:, :, :1], Window",
        "Pairs(queries, keys, 0 * queries[:, :, :1], Window",
        f"{RETRIEVAL} -k window_of_close",
    ),
    Mutation("model/recurrence.py", "(lag < ring))[None]", "(lag <= ring))[None]", f"{RECURRENCE} -k chunks"),
    Mutation("model/recurrence.py", "lag[None] <= history.count", "lag[None] < history.count", f"{RECURRENCE} -k single"),
    Mutation(
        "model/recurrence.py",
        "jnp.roll(heads_first(x), -history.slot, axis=1)",
        "jnp.roll(heads_first(x), history.slot, axis=1)",
        f"{RECURRENCE} -k between",
    ),
    Mutation(
        "model/recurrence.py", "along[:, 1:] if lengths is None", "along[:, :-1] if lengths is None", f"{RECURRENCE} -k single"
    ),
    Mutation("model/recurrence.py", "queries[-1], history.query", "queries[0], history.query", f"{RECURRENCE} -k queried"),
    Mutation(
        "inference/sampling.py",
        "jnp.where(logits > 0, logits / penalty",
        "jnp.where(logits < 0, logits / penalty",
        f"{SAMPLING} -k penalty",
    ),
    Mutation(
        "inference/sampling.py", "sampling.min_p * descending[0]", "sampling.min_p * descending[1]", f"{SAMPLING} -k min_p"
    ),
    Mutation(
        "inference/decoder.py",
        "jax.vmap(jax.random.fold_in)(keys, drawn)",
        "jax.vmap(jax.random.fold_in)(keys, drawn + history.count)",
        f"{ENGINE} -k continuation_draws",
    ),
    Mutation("inference/explanation.py", "place = first - 1 + row", "place = first + row", f"{ENGINE} -k explanations"),
    Mutation("inference/text.py", "return text[: min(ends)]", "return text[: max(ends)]", "inference/test_text.py"),
    # --- memory and export -------------------------------------------------------------------------------------------
    Mutation("physics/bank.py", "index * tile + jnp.arange(tile) < present", "index + jnp.arange(tile) < present", BANK),
    Mutation("physics/bank.py", "lax.top_k(-of_chunks.T", "lax.top_k(of_chunks.T", f"{BANK} -k nearest_keys_are"),
    Mutation("physics/bank.py", "jnp.where(place < present, squared", "jnp.where(True, squared", f"{BANK} -k nearest"),
    Mutation(
        "physics/bank.py", "squared = jnp.sum((near - relative", "squared = jnp.sum((near + relative", f"{BANK} -k nearest"
    ),
    Mutation("physics/bank.py", "squares[:, None] + jnp.sum", "squares[:, None] - jnp.sum", BANK),
    Mutation("physics/bank.py", "set(jnp.sum(rows * rows, -1)", "set(jnp.sum(rows, -1)", f"{BANK} -k belong"),
    Mutation("inference/remembering.py", "2 * jnp.mean(queries, 0)", "jnp.mean(queries, 0)", f"{REMEMBERING} -k grid"),
    Mutation("inference/memory_bank.py", "bank.written == 0, points", "bank.written != 0, points", MEMORY),
    Mutation("model/network.py", "(slice(-1), -1)", "(slice(-1), 0)", f"{MEMORY} -k observing"),
    Mutation(
        "model/network.py",
        "see(last, s, config).query",
        "see(last, 2 * s**3, config).query",
        f"{MEMORY} -k learned",
    ),
    Mutation("inference/memory_bank.py", "(bank.written + order) %", "order %", f"{MEMORY} -k ring"),
    Mutation("inference/memory_bank.py", "jnp.log1p(-weight) + log_model", "log_model", f"{MEMORY} -k mixture"),
    Mutation("inference/memory_bank.py", "cost - log_total[:, None]", "cost", f"{MEMORY} -k recalled"),
    Mutation("inference/memory_bank.py", 'if about.get("model") !=', "if None ==", f"{MEMORY} -k another_model"),
    Mutation(
        "inference/remembering.py",
        "_log_probabilities(bank, logits",
        "_log_probabilities(_commit(jax.tree.map(jnp.copy, bank), points, batch), logits",
        f"{REMEMBERING} -k planted",
    ),
    Mutation("inference/remembering.py", "1 if commit else _WINDOWS_AT_ONCE", "_WINDOWS_AT_ONCE", f"{REMEMBERING} -k earlier"),
    Mutation("inference/remembering.py", "pick(some.targets)", "pick(some.tokens)", f"{REMEMBERING} -k token_by"),
    Mutation(
        "inference/remembering.py", "- 2 * jnp.mean(queries, 0)", "+ 2 * jnp.mean(queries, 0)", f"{REMEMBERING} -k best_of"
    ),
    Mutation("inference/remembering.py", "weight * p_memory / (", "weight * p_model / (", f"{REMEMBERING} -k maximises"),
    Mutation(
        "inference/export.py", "wanted.keys() ^ saved.keys()", "wanted.keys() - saved.keys()", f"{EXPORT} -k another_conf"
    ),
    # --- analysis ----------------------------------------------------------------------------------------------------
    Mutation(
        "analysis/conservation.py",
        "- (end(2) - end(-2))",
        "+ (end(2) - end(-2))",
        "analysis/test_conservation.py -k automatic_differentiation",
    ),
    Mutation(
        "analysis/conservation.py", "[[0, 1], [-1, 0]]", "[[0, 1], [1, 0]]", "analysis/test_conservation.py -k keeps_volume"
    ),
    Mutation(
        "analysis/conservation.py",
        "jnp.linalg.det(phi)",
        "1 / jnp.linalg.det(phi)",
        "analysis/test_conservation.py -k friction",
    ),
    Mutation(
        "analysis/conservation.py", "for sign in (1, -1)", "for sign in (1, 1)", "analysis/test_conservation.py -k blocks"
    ),
    Mutation("analysis/probe.py", "._replace(mixing=())", "", "analysis/test_probe.py -k weights"),
    Mutation("model/charts.py", "return context + operators", "return context - operators", "analysis/test_probe.py"),
    Mutation("inference/engine.py", "nats * per_character,", "nats / per_character,", f"{ENGINE} -k spreads"),
    Mutation("inference/engine.py", "alone * per_character)", "alone / per_character)", f"{ENGINE} -k spreads"),
    Mutation(
        "inference/engine.py",
        "mixture.weight * recalled.weight",
        "recalled.weight",
        "inference/test_engine_memory.py -k recollections_weigh",
    ),
    Mutation("learning/nudge.py", "jnp.sum(powers * tokens", "jnp.sum(tokens", f"{NUDGE} -k random_signs"),
    Mutation(
        "analysis/conservation.py",
        "distance / jnp.sqrt(_squares(s) + _squares(p))",
        "distance / jnp.sqrt(_squares(s))",
        "analysis/test_conservation.py -k way_back",
    ),
    Mutation(
        "analysis/conservation.py",
        "_squares(start_s - s) + _squares(start_p - p)",
        "_squares(start_s - s)",
        "analysis/test_conservation.py -k way_back",
    ),
    Mutation("analysis/probe.py", "whiten(metric, base,", "whiten(metric, base.T,", "analysis/test_probe.py -k metrics"),
    Mutation("analysis/spectrum.py", "root[:, None] * right", "right", "analysis/test_spectrum.py -k nearest"),
    Mutation(
        "analysis/spectrum.py",
        "np.asarray(getattr(potential, name))",
        "np.asarray(getattr(potential, potential.MATRICES[0]))",
        "analysis/test_spectrum.py -k block_applies",
    ),
    Mutation("analysis/pairs.py", "bool), -1)", "bool), 0)", "analysis/test_pairs.py -k past"),
    Mutation("analysis/pairs.py", "1 - left / np.var", "left / np.var", "analysis/test_pairs.py -k decides"),
    Mutation("analysis/pairs.py", "cost - (np.where", "cost + (np.where", "analysis/test_pairs.py -k past"),
    Mutation("analysis/compare.py", "np.diff(ends) * pace", "pace", "analysis/test_compare.py -k speeds"),
    Mutation("analysis/compare.py", "steps - ends[-1], 0)", "steps, 0)", "analysis/test_compare.py -k speeds"),
    Mutation("analysis/page.py", "<pre>{html.escape(text)}", "<pre>{text}", "analysis/test_report.py"),
    Mutation("analysis/plots/geometry.py", "bool), 1)", "bool), 0)", "analysis/test_plots.py -k future"),
    Mutation("analysis/plots/geometry.py", "axes.T @ covariance @ axes", "covariance", "analysis/test_plots.py -k correlation"),
    Mutation("analysis/plots/geometry.py", "(scale[:, None] * scale)", "scale", "analysis/test_plots.py -k correlation"),
    Mutation("analysis/plots/geometry.py", "circle[0] / stretch[0]", "circle[0] * stretch[0]", "analysis/test_plots.py"),
    # --- runs that cannot be lost ------------------------------------------------------------------------------------
    Mutation(
        "learning/soundness.py", "info.reversibility <= residual_limit(learning)]", "True]", f"{BAD_DRAWS} -k passed_over"
    ),
    Mutation("learning/soundness.py", "(info.loss, info.gradient_norm,", "(info.loss,", f"{BAD_DRAWS} -k infinite"),
    Mutation("training/step.py", "applied = sound & proceed", "applied = sound", f"{BAD_DRAWS} -k passed_over"),
    Mutation("training/step.py", "applied = sound & proceed", "applied = proceed", f"{BAD_DRAWS} -k never_trains"),
    Mutation("training/loop.py", "self.bad_steps.in_a_row = 0", "pass", f"{BAD_DRAWS} -k too_many"),
    Mutation("training/loop.py", "return None, True", "return None, False", f"{SIGNALS} -k due"),
    Mutation(
        "training/loop.py",
        "None, yes, None\n                leaving = self.agree()",
        "None, yes, None",
        f"{SIGNALS} -k sample",
    ),
    Mutation(
        "training/loop.py",
        "self.checkpoints.wait()\n            self.report_saves(last",
        "self.report_saves(last",
        f"{EVENTS} -k disk",
    ),
    Mutation(
        "training/loop.py",
        "self.checkpoints.wait()\n        self.report_saves()\n        self.checkpoints.save(",
        "self.checkpoints.save(",
        f"{EVENTS} -k rhythm",
    ),
    Mutation("training/run.py", "checkpoints.set_aside(after=step)", "pass", f"{RESUME} -k aside"),
    Mutation("training/run.py", "if saved.forced or saved", "if False and saved", f"{RESUME} -k by_force"),
    Mutation(
        "training/events.py",
        "if index not in self._failed:\n                    failing",
        "if True:\n                    failing",
        f"{EVENTS} -k once",
    ),
    Mutation(
        "training/events.py", "isinstance(event, SubscriberFailed) and index in self._failed", "False", f"{EVENTS} -k once"
    ),
    Mutation("training/reporting.py", "self._writer.write(kind, event.step, values)", "pass", f"{EVENTS} -k disk"),
    Mutation("training/reporting.py", "        stop.check()\n", "", f"{EVENTS} -k gives_up"),
    Mutation(
        "training/step.py",
        "stepped.replace(params=stepped.params._replace(carried=info.carried))",
        "stepped",
        "training/test_loop.py -k estimate_then_optimizer",
    ),
    Mutation("training/step.py", "@cache\n", "", f"{EVENTS} -k same_optimizer"),
    Mutation("training/rate.py", "_state(beginning, factor)", "_state(beginning, 1.0)", f"{RATE} -k nothing_is_left"),
    Mutation("training/rate.py", "factor**step / config.optimizer.learning_rate", "factor**step", f"{RATE} -k update"),
    Mutation("training/rate.py", "np.gradient(smoothed, np.log(rates))", "np.gradient(smoothed, rates)", f"{RATE} -k fastest"),
    Mutation("training/tracking.py", "self._works = False", "pass", f"{TRACKING} -k whole_run"),
    Mutation("training/loop.py", "self.biases.pop(step)", "self.biases.popitem()[1]", f"{CHECKS} -k due"),
    Mutation(
        "training/origin.py", "data.load(config, kept, True, report)", "data.load(config, report=report)", f"{ORIGIN} -k best"
    ),
    Mutation("training/origin.py", "here[key] != there[key]]", "False]", f"{ORIGIN} -k another_model"),
    Mutation(
        "training/run.py", "team.share(lambda: _finished(config)) if resume else None", "None", f"{RESUME} -k finished_run"
    ),
    Mutation("training/run.py", "for x in (saved.config, config)", "for x in (config, saved.config)", f"{RESUME} -k longer"),
    Mutation("training/run.py", " or (step == steps and checkpoints.validation_loss(step) is None)", "", f"{RESUME} -k cut"),
    Mutation("learning/layer.py", "cotangent, jnp.zeros_like(cotangent))", "jnp.zeros_like(cotangent), cotangent)", LAYER),
    Mutation("learning/layer.py", "p=kept.p_out, ", "", LAYER),
    Mutation("cli/output.py", 'errors="backslashreplace"', 'errors="strict"', f"{OUTPUT} -k escaped"),
    Mutation(
        "cli/output.py",
        "os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())",
        "pass",
        f"{OUTPUT} -k unwritten_rest",
    ),
    Mutation("cli/sentences.py", "RULES[config.learning.rule]", 'RULES["echo"]', f"{OUTPUT} -k names_its_rule"),
    Mutation(
        "analysis/report.py",
        'RULES[_record(run)["learning"]["rule"]]',
        'RULES["echo"]',
        "analysis/test_report.py -k learned_by",
    ),
    Mutation("training/run_folder.py", 'if change.split(":")[0] not in FREE | {LENGTH}]', "]", f"{RESUME} -k without_force"),
    Mutation("training/run_folder.py", "if changed and not force:", "if False:", f"{RESUME} -k by_force"),
    Mutation(
        "training/environment.py", '"clean": not changes', '"clean": bool(changes)', "training/test_environment.py -k commit"
    ),
    Mutation("training/environment.py", "[*sessions[:-1], ", "[*sessions, ", "training/test_environment.py -k own_entry"),
    Mutation("options.py", '"above {}"', '"at least {}"', "test_options.py -k words"),
    Mutation(
        "registry.py",
        "if name not in self._entries:\n                raise ValueError",
        "if False:\n                raise ValueError",
        "test_options.py -k refused",
    ),
    Mutation("training/run_folder.py", "if _saves(run):", "if False:", f"{RESUME} -k worth_keeping"),
    Mutation("training/run_folder.py", "lock.FILE not in names or ", "", f"{RESUME} -k worth_keeping"),
    Mutation("training/signals.py", "signal.getsignal(number) != signal.SIG_IGN", "True", f"{SIGNALS} -k nohup"),
    Mutation(
        "training/memory.py", "copies * model.count(params) // cut + batch", "batch", "training/test_memory.py -k do_without"
    ),
    Mutation("training/memory.py", "return 4 * numbers", "return 16 * numbers", "training/test_memory.py -k do_without"),
    Mutation("data/batches.py", "        if place < count:", "        if place <= count:", f"{CORPUS} -k permutation"),
    Mutation("data/batches.py", "_mixed(low ^ key)", "_mixed(key)", f"{CORPUS} -k as_good"),
    Mutation("data/batches.py", "random.permutation(windows).item", "np.arange(windows).item", f"{CORPUS} -k have_been"),
    Mutation("data/sources.py", r"(?<=\S)[ \n\t\r]", r"[ \n\t\r]", "data/test_tokenizer.py -k as_the_whole"),
    Mutation("data/sources.py", "rest.append(piece[left:])", "rest.append(piece)", "data/test_tokenizer.py -k lose_nothing"),
    Mutation("data/readers.py", "read - pending + problem", "read + problem", "data/test_sources.py -k place_of"),
    Mutation("data/readers.py", "if self._frame is not None:", "if False:", "data/test_sources.py -k cut_short"),
    Mutation("data/shards.py", "vocab_size <= 2**16", "vocab_size <= 2**17", f"{SHARDS} -k 32_bits"),
    Mutation("data/shards.py", "if place % every == 0", "if place < every", f"{SHARDS} -k evenly"),
    Mutation("data/shards.py", "if problem := manifest.damage(folder)", "if problem := None", f"{SHARDS} -k damaged"),
    Mutation(
        "inference/scoring.py", "len(self.text) - 1 - np.asarray", "len(self.text) - np.asarray", "inference/test_scoring.py"
    ),
    Mutation("data/text.py", '"utf-8-sig"', '"utf-8"', "data/test_corpus.py -k every_reader_keeps"),
    Mutation("inference/export.py", "    _check_vacant(folder)", "    pass", f"{EXPORT} -k no_export_wrote"),
    Mutation("training/signals.py", "if deadline is not None:", "if False:", f"{SIGNALS} -k second_signal"),
    Mutation(
        "training/metrics.py", "written, self._pending = self._pending, []", "written = []", f"{FAILING} -k takes_no_more"
    ),
    Mutation("data/corpus.py", "fingerprint and not another", "fingerprint and False", f"{RESUME} -k another_corpus"),
    # --- storage -----------------------------------------------------------------------------------------------------
    Mutation("storage/manifest.py", "if content != _signed(body):", "if False:", f"{MANIFEST} -k flipped"),
    Mutation("storage/manifest.py", "if not _is_inside(name):", "if False:", f"{MANIFEST} -k outside"),
    Mutation("storage/manifest.py", "*sorted(found - listed.keys() - {NAME})", "", f"{MANIFEST} -k addition"),
    Mutation("storage/manifest.py", "path.lstat()", "path.stat()", f"{MANIFEST} -k links"),
    Mutation(
        "storage/snapshot.py",
        "np.array if writers.count == 1 else",
        "(lambda x: x) if writers.count == 1 else",
        f"{CHECKPOINT} -k beside",
    ),
    Mutation(
        "storage/checkpoint.py", "other % self._keep_every == 0", "other % self._keep_every == 1", f"{CHECKPOINT} -k latest_k"
    ),
    Mutation("storage/checkpoint.py", "| {self.best}", "", f"{CHECKPOINT} -k latest_k"),
    Mutation(
        "storage/files.py",
        '(stat.S_ISDIR, "a folder")',
        '(stat.S_ISREG, "a folder")',
        "test_config_junk.py -k no_configuration",
    ),
    Mutation(
        "storage/lock.py", "    try:\n        lock.acquire()\n", "    try:\n        pass\n", "storage/test_lock.py -k named"
    ),
    Mutation("storage/lock.py", "timeout=0, preserve_lock_file=True", "timeout=0", "storage/test_lock.py -k no_other_kind"),
    Mutation("storage/files.py", "        _flush_file(unfinished)\n", "", f"{FILES} -k on_the_disk"),
    Mutation("storage/files.py", "        _flush_all(saving)\n", "", f"{FILES} -k on_the_disk"),
    Mutation("storage/files.py", "    _flush_folder(folder)\n\n", "    pass\n\n", f"{FILES} -k on_the_disk"),
    Mutation("storage/files.py", "    _flush_folder(path.parent)\n", "    pass\n", f"{FILES} -k on_the_disk"),
    Mutation("storage/files.py", "            unfinished.unlink()", "            pass", f"{FILES} -k refused"),
    Mutation("storage/files.py", "            path.rename(place)", "            pass", f"{FILES} -k put_back"),
    Mutation("storage/files.py", "{secrets.token_hex(4)}", "once", f"{FILES} -k do_not_meet"),
    Mutation("storage/files.py", "unfinished.chmod(mode)", "pass", f"{EXPORT} -k umask"),
    Mutation("storage/files.py", '"r+b"', '"rb"', f"{FILES} -k posix"),
    Mutation("storage/snapshot.py", ".free < size", ".free < 0", f"{FILES} -k posix"),
    Mutation("storage/arrays.py", 'yield array.data.cast("B") if array.size else b""', "pass", f"{EXPORT} -k damaged"),
    Mutation("storage/lock.py", "import os\n", "import fcntl\nimport os\n", "test_windows.py"),
    # --- equilibrium -------------------------------------------------------------------------------------------------
    Mutation("physics/relaxation.py", "return s_in + like(", "return s_in - like(", f"{RELAXATION} -k formula"),
    Mutation("physics/relaxation.py", "0.5 * jnp.sum(stretch", "jnp.sum(stretch", f"{RELAXATION} -k formula"),
    Mutation(
        "physics/relaxation.py",
        "- potential.force(parameters",
        "+ potential.force(parameters",
        f"{RELAXATION} -k ends_in_a_minimum",
    ),
    Mutation(
        "physics/relaxation.py",
        "descent.momentum * v - descent.rate * u",
        "-descent.momentum * v - descent.rate * u",
        f"{NETWORK} -k dense_forward_pass[relaxed]",
    ),
    Mutation("physics/relaxation.py", "(1 + potential.stiffness", "(1 - potential.stiffness", f"{RELAXATION} -k draws_it"),
    Mutation(
        "physics/relaxation.py",
        "(plus * x - minus * y) / (plus - minus)",
        "(plus * x - minus * y)",
        f"{RELAXATION} -k both_ends",
    ),
    Mutation(
        "physics/relaxation.py",
        "0.5 * epsilon * (plus * x + minus * y)",
        "epsilon * (plus * x + minus * y)",
        f"{RELAXATION} -k both_ends",
    ),
    Mutation("physics/relaxation.py", "mass, -s.slope,", "mass, s.slope,", f"{RELAXATION} -k literal"),
    Mutation("physics/relaxation.py", "(-s.slope /", "(s.slope /", f"{RELAXATION} -k literal"),
    Mutation("physics/relaxation.py", "by_mass = -jnp", "by_mass = jnp", f"{RELAXATION} -k literal"),
    Mutation("physics/potential/gated.py", "c_size = -jnp", "c_size = jnp", f"{POTENTIAL} -k prepare_adjoint"),
    Mutation("physics/potential/gated.py", "** 0.125", "** 0.25", f"{POTENTIAL} -k singular"),
    Mutation(
        "physics/potential/gated.py",
        'rms_normalize(s, softness)\n    z, gate = _projected(potential, s_hat, "float32")',
        'rms_normalize(s)\n    z, gate = _projected(potential, s_hat, "float32")',
        f"{POTENTIAL} -k formula",
    ),
    Mutation("model/block.py", "observe(s, relaxed)", "observe(relaxed, s)", f"{BLOCK} -k straight_way"),
    Mutation(
        "model/operators.py",
        "hamiltonian.prepare_adjoint(potential, raw, relaxes, c)",
        "hamiltonian.prepare_adjoint(potential, raw, False, c)",
        f"{OPERATORS} -k adjoint[relaxed]",
    ),
    Mutation(
        "learning/equilibrium.py",
        "contrast.s_in + c_s_by_kick + c_before",
        "contrast.s_in + c_before",
        f"{EQUILIBRIUM} -k implicit_gradient[plain]",
    ),
    Mutation(
        "learning/equilibrium.py",
        "contrast.s_in + c_s_by_kick + c_before",
        "contrast.s_in + c_s_by_kick",
        f"{EQUILIBRIUM} -k implicit_gradient[action]",
    ),
    Mutation("learning/equilibrium.py", "c_s = c_s + c_after", "c_s = c_s", f"{EQUILIBRIUM} -k implicit_gradient[action]"),
    Mutation("learning/equilibrium.py", "anew * (end.targets.size / size)", "anew", f"{EQUILIBRIUM} -k chunks"),
    Mutation("learning/equilibrium.py", "_at(blocks, -1)", "_at(blocks, 0)", f"{EQUILIBRIUM} -k force_at_every_step"),
    Mutation("learning/equilibrium.py", "zip((1, -1), s.ends", "zip((1, 1), s.ends", f"{EQUILIBRIUM} -k geometry_alone_moves"),
    Mutation(
        "learning/equilibrium.py",
        "jnp.maximum(observed.residual, health.residual)",
        "observed.residual",
        f"{EQUILIBRIUM} -k settled",
    ),
    Mutation(
        "learning/equilibrium.py",
        "jnp.maximum(observed.residual, health.residual)",
        "health.residual",
        f"{EQUILIBRIUM} -k settled",
    ),
    Mutation(
        "learning/equilibrium.py",
        'params.carried if learning.pull == "off" else carry(',
        "carry(",
        f"{EQUILIBRIUM} -k off_changes",
    ),
    Mutation(
        "learning/equilibrium.py",
        "gradient = jax.tree.map(jnp.zeros_like, gradient)",
        'gradient = _geometry_only(gradient) if learning.update == "geometry" else gradient',
        f"{EQUILIBRIUM} -k whatever_the_rounding",
    ),
    Mutation("learning/optimizer.py", "learning.learns_all and ", "", f"{EQUILIBRIUM} -k all_that_a_step"),
    Mutation(
        "learning/nudge.py",
        "(direction - target) / s.size",
        "(target - direction) / s.size",
        f"{EQUILIBRIUM} -k target_embedding",
    ),
    Mutation(
        "learning/nudge.py",
        "return sign, jnp.zeros_like(sign)",
        "return jnp.abs(sign), jnp.zeros_like(sign)",
        f"{EQUILIBRIUM} -k both_sides",
    ),
    Mutation("registry.py", 'dynamics="dissipative"', 'dynamics="symplectic"', "test_config.py -k follow"),
    # --- dropout -----------------------------------------------------------------------------------------------------
    Mutation("model/dropout.py", "LEVELS / (LEVELS - dropped)", "1.0", f"{DROPOUT} -k share"),
    Mutation("model/dropout.py", "halves < dropped", "halves >= dropped", f"{DROPOUT} -k share"),
    Mutation("model/dropout.py", "below[0], below[1:]", "below[0], below[:1].repeat(blocks, 0)", f"{DROPOUT} -k of_their_own"),
    Mutation("model/dropout.py", "max(round(rate * LEVELS), 1)", "round(rate * LEVELS)", f"{DROPOUT} -k extreme"),
    Mutation(
        "model/dropout.py", "(1 + blocks, sequences))", "(1 + blocks, 1)).repeat(sequences, 1)", f"{DROPOUT} -k of_their_own"
    ),
    Mutation("model/network.py", "add(masked(cotangent, mask))", "add(cotangent)", f"{DROPOUT} -k masked_loss[plain]"),
    Mutation(
        "model/block.py", "c_pushed = masked(cotangent, masks.kick)", "c_pushed = cotangent", f"{DROPOUT} -k masked_loss[plain]"
    ),
    Mutation(
        "model/block.py",
        "    kicked = masked(push(operators, retrieved, config), masks.kick)",
        "    kicked = push(operators, retrieved, config)",
        f"{DROPOUT} -k carried",
    ),
    Mutation(
        "physics/potential/gated.py",
        "(masked(x, mask) for x in gelu_and_slope(z + like(potential.bias, z)))",
        "gelu_and_slope(z + like(potential.bias, z))",
        f"{DROPOUT} -k is_hamiltonian",
    ),
    Mutation(
        "physics/potential/gated.py",
        "[masked(x, mask) for x in gelu_and_slope(z)]",
        "gelu_and_slope(z)",
        f"{POTENTIAL} -k every_units_term",
    ),
    Mutation(
        "learning/echo.py",
        "masks = dropout.block_masks(keys, end.s",
        "keys = None if keys is None else keys[::-1]\n    masks = dropout.block_masks(keys, end.s",
        f"{DROPOUT} -k masked_loss[plain]",
    ),
    Mutation("learning/echo.py", "c_p, model, masks)", "c_p, model)", f"{DROPOUT} -k masked_loss[plain]"),
    Mutation(
        "learning/echo.py",
        "block.system(operators, model, masks)",
        "block.system(operators, model)",
        f"{DROPOUT} -k masked_loss[plain]",
    ),
    Mutation("learning/equilibrium.py", "start.c_s, kept)", "start.c_s)", f"{DROPOUT} -k implicit"),
    Mutation("learning/equilibrium.py", "contrast.push, model, masks)", "contrast.push, model)", f"{DROPOUT} -k implicit"),
    Mutation(
        "learning/equilibrium.py",
        "stored.kicked, model, masks)",
        "stored.kicked, model)",
        f"{DROPOUT} -k implicit",
    ),
    Mutation("training/step.py", "_DRAWS), step)", "_DRAWS), 0)", f"{DROPOUT} -k each_applied"),
    Mutation(
        "training/step.py",
        "jax.random.key(config.run.seed), _DRAWS",
        "jax.random.key(0), _DRAWS",
        f"{DROPOUT} -k each_applied",
    ),
]


def run_tests(tree: Path, tests: str) -> tuple[int, str]:
    """Exit status of pytest (0 passed, 1 failed, more if it could not run), and its line about the failure."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-n",
        "0",
        "-m",
        "slow or not slow",
        "-p",
        "no:cacheprovider",
        *tests.split(),
    ]
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
    part, parts = 1, 1
    if words[:1] == ["--part"]:
        part, parts = map(int, words[1].split("/"))
        words = words[2:]
    chosen = [
        m
        for m in MUTATIONS[part - 1 :: parts]
        if not words or any(word in m.file or word in m.new or word in m.tests for word in words)
    ]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        ignored = shutil.ignore_patterns("__pycache__", ".*", "runs")
        for name in ("lior_jax", "tests", "docs"):
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
