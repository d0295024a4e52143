"""A self-contained HTML report of a run, which works offline."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml

from lior_jax import model
from lior_jax.analysis import conservation, plots, probe, sessions, spectrum
from lior_jax.analysis.page import figures, heading, note, page, picture, table, verbatim
from lior_jax.errors import UserError
from lior_jax.inference import Engine
from lior_jax.model import Params
from lior_jax.model.operators import prepare
from lior_jax.physics.scores import LagPrior
from lior_jax.registry import RULES, Rule
from lior_jax.settings import ModelConfig
from lior_jax.storage import checkpoint, files
from lior_jax.training import metrics as run_metrics
from lior_jax.training.run_folder import RECORD, existing_folder

FILE = "report.html"
_TOKENS = 32
"""Number of tokens of a sample's beginning that are analysed."""
_PROBED = 4
"""Number of its positions at which Jacobians are measured."""


def write(run: str | Path) -> Path:
    """Write `report.html` into a run's folder, from its metrics, its configuration and its best checkpoint, if any.

    Returns:
        The path of the page.

    Raises:
        UserError: no run, a damaged one, or a folder that cannot be written to.
    """
    run = existing_folder(run)
    path, text = run / FILE, render(run)
    try:
        files.write_atomically(path, text)
    except OSError as problem:
        raise UserError(f"{path} cannot be written ({problem.strerror}).") from None
    return path


def render(run: Path) -> str:
    """The page's text."""
    lines = run_metrics.read(run)
    rule = RULES[_record(run)["learning"]["rule"]]
    begin = note(f"A run of lior_jax, which learns by {rule.title}.")
    sections = [*_summary(run, lines), *_curves(lines, rule), *_samples(lines), *_inside(run, lines), *_settings(run)]
    return page(run.resolve().name, [begin, *sections])


# --- sections --------------------------------------------------------------------------------------------------------


def _summary(run: Path, lines: list[dict[str, Any]]) -> Iterator[str]:
    trained = [line for line in lines if line["kind"] == "train"]
    validated = [line for line in lines if line["kind"] == "validation"]
    rows = {"steps": f"{max((line['step'] for line in lines), default=0):,}"}
    first_weights = sessions.first_weights(run)
    if first_weights:
        rows["first weights"] = first_weights
    if trained:
        rows["training loss, last batch"] = f"{trained[-1]['loss']:.4f} nats/token"
    if validated:
        best = min(validated, key=lambda line: line["nats_per_token"])
        rows["best validation, fixed windows"] = (
            f"{best['nats_per_character']:.4f} nats/char = {best['bits_per_character']:.4f} bits/char, step {best['step']:,}"
        )
    if (run / "summary.json").is_file():
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        for which, key in (("best", "nats_per_character"), ("last", "last_nats_per_character")):
            if f"{key}_with_history" not in summary:  # of another version
                continue
            disjoint, with_history = summary[key], summary[f"{key}_with_history"]
            rows[f"whole validation part, {which} checkpoint"] = (
                f"{disjoint:.4f} nats/char = {disjoint / math.log(2):.4f} bits/char in disjoint windows; "
                f"{with_history:.4f} nats/char with half a window of history"
            )
        rows["parameters"] = f"{summary['parameters']:,}"
        rows["time of the last session"] = f"{summary['seconds'] / 60:.1f} minutes"
    speeds = [line["tokens_per_second"] for line in trained if "tokens_per_second" in line]
    if speeds:
        rows["speed, median"] = f"{np.median(speeds):,.0f} tokens/s"
    yield table(rows.items())


def _curves(lines: list[dict[str, Any]], rule: Rule) -> Iterator[str]:
    yield heading("Learning")
    if not any(line["kind"] == "train" for line in lines):
        yield note("No step was logged yet.")
        return
    yield picture(plots.loss_curve(lines), "Cross-entropy against the step.")
    yield heading(f"Health of the {rule.title}")
    yield picture(
        plots.health(lines, residual=rule.residual),
        f"Left: {rule.residual}; an estimate above the rule's limit, {rule.residual_limit:g} by default, is not applied, "
        "and nudge_bias, the change of the estimate when the nudge is doubled, of which the estimate's own bias is about a "
        "third (all of it if the nudge is one-sided). Middle: strength of the nudge at each block. Right: norm of the "
        "gradient estimate before clipping.",
    )
    yield heading("Action")
    yield picture(plots.action_over_training(lines), "Mean LIoR action of each block's flow during training.")


def _samples(lines: list[dict[str, Any]]) -> Iterator[str]:
    samples = [line for line in lines if line["kind"] == "sample"]
    if samples:
        yield heading("Samples over time")
    # The first, the last and some between: a long run has hundreds.
    for index in sorted({round(place) for place in np.linspace(0, len(samples) - 1, min(len(samples), 6))}):
        yield heading(f"step {samples[index]['step']:,}", level=3)
        yield verbatim(samples[index]["text"])


def _inside(run: Path, lines: list[dict[str, Any]]) -> Iterator[str]:
    yield heading("Geometry")
    try:
        with checkpoint.open_run(run) as checkpoints:
            step = checkpoints.best
        engine = Engine.from_checkpoint(run, step)
    except UserError as problem:  # none yet, or a damaged one: the rest of the page is still written
        yield note(str(problem))
        return
    params, config = engine.params, engine.config
    tokens = engine.tokenizer.encode(_text(run, lines))[: min(_TOKENS, config.context)]
    names = [engine.tokenizer.decode(np.array([token])) for token in tokens]
    view = jax.tree.map(np.asarray, probe.look(params, tokens[None], config))
    yield note(f"The checkpoint of step {step:,} on the beginning of a sample.")
    ends = sorted({0, config.blocks - 1})
    for block in ends:
        maps = {f"head {head}": view.weights[block, 0, head] for head in range(min(config.heads, 4))}
        yield picture(
            plots.cost_maps(maps, names, "share of the retrieval", limits=(0, 1)),
            f"Block {block}: what each token retrieves from the earlier ones.",
        )
    maps = {f"block {block}, head 0": view.cost[block, 0, 0] for block in ends}
    yield picture(plots.cost_maps(maps, names, "geodesic cost"), "Distance of each query from each key in the learned metric.")
    stretch = probe.metrics(params, config)
    for block in ends:
        yield picture(plots.metric_ellipses(np.asarray(stretch[block])), f"Block {block}: metrics of the heads.")
    scores = prepare(params, config.context, config).couplings.scores
    for prior in (term.log_prior for term in scores if isinstance(term, LagPrior)):
        shown = np.asarray(prior)[np.array(ends)]
        which = " and ".join(f"block {block}" for block in ends)
        yield picture(plots.lag_priors(shown, names=[f"block {block}" for block in ends]), f"Priors of the lag, {which}.")
    yield picture(plots.action_by_depth(view.action.mean((1, 2))), "LIoR action of the flows along the depth.")

    if config.dynamics != "dissipative":  # a relaxation conserves nothing
        yield from _flows(params, tokens, config)

    yield heading("Spectra")
    spectra = spectrum.of_model(params)
    yield picture(
        plots.spectra({name: [x.singular_values for x in kind] for name, kind in spectra.items()}), "Singular values."
    )
    yield figures(
        ("matrix", "block", "directions", "effective by entropy", "for 0.99 of the energy", "error, bound", "size", "smaller"),
        (
            (
                name,
                str(block),
                str(len(x.singular_values)),
                f"{x.entropy_rank:.0f}",
                str(x.energy_rank),
                f"{x.truncation_error:.3f}, {x.truncation_bound:.3f}",
                f"× {x.parameter_ratio:.2f}",
                "yes" if x.pays else "no",
            )
            for name, kind in spectra.items()
            for block, x in enumerate(kind)
        ),
    )
    yield note(
        "Truncated to the rank that contains 0.99 of its energy Σσ², a matrix has this error, relative to its norm; the bound "
        "is the least error of any matrix of that rank. Size is that of its two factors relative to the matrix: below 1 they "
        f"are smaller. The model has {model.count(params):,} parameters."
    )


def _flows(params: Params, tokens: np.ndarray, config: ModelConfig) -> Iterator[str]:
    """The conservation properties of the blocks' flows."""
    yield heading("Conservation by the flows")
    kept = conservation.of_blocks(params, jnp.asarray(tokens[None, :_PROBED]), config)
    yield figures(
        ("block", "volume", "reversibility", "max |ΦᵀJΦ − J|"),
        (
            (
                str(block),
                f"{kept.volume[block].mean():.6f}",
                f"{kept.reversibility[block].max():.1e}",
                f"{kept.symplectic_error[block].max():.1e}",
            )
            for block in range(config.blocks)
        ),
    )
    yield note(
        "Volume is the factor by which a flow changes phase-space volume (1 if symplectic); reversibility, the relative "
        "distance of the start from its reconstruction by running back; the last column, the deviation of the Jacobian Φ from "
        "symplecticity, measured in float64 at "
        f"{len(tokens[:_PROBED])} positions by finite differences along each axis."
    )
    yield picture(
        plots.energies(kept.energy.reshape(*kept.energy.shape[:2], -1)),
        "Energy: a leapfrog flow preserves volume and is exactly reversible, but conserves energy only to its order.",
    )


def _settings(run: Path) -> Iterator[str]:
    yield heading("Configuration")
    yield verbatim(yaml.safe_dump(_record(run), sort_keys=False, allow_unicode=True))
    yield from sessions.sections(run)


def _text(run: Path, lines: list[dict[str, Any]]) -> str:
    """The newest sample, or the prompt of the samples."""
    samples = [line["text"] for line in lines if line["kind"] == "sample"]
    return samples[-1] if samples else _record(run)["sample"]["prompt"]


def _record(run: Path) -> dict[str, Any]:
    """The configuration that the run was started with."""
    return yaml.safe_load((run / RECORD).read_text(encoding="utf-8"))
