"""The configuration: what is accepted, what is refused, and how it is said."""

from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lior_jax import config as configuration
from lior_jax import model
from lior_jax.config import Config
from lior_jax.errors import UserError

SHIPPED = sorted(Path("configs").glob("*.yaml"))


def complaint(text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as raised:
        configuration.parse(text, "some.yaml", overrides)
    return str(raised.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path):
    assert isinstance(configuration.load(path), Config)


def test_the_three_promised_configurations_are_shipped():
    assert {"quickstart", "shakespeare", "gpu"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize(("name", "low", "high"), [("shakespeare", 0.5e6, 1e6), ("gpu", 8e6, 12e6)])
def test_shipped_models_have_the_promised_size(name, low, high):
    shapes = configuration.load(f"configs/{name}.yaml", ["model.vocab_size=65"]).model
    params = jax.eval_shape(lambda key: model.init(key, shapes), jax.random.key(0))
    assert low <= model.count(params) <= high


def test_unknown_key_is_named_with_its_path_the_nearest_spelling_and_what_is_allowed():
    message = complaint("model: {widht: 128}")
    assert "some.yaml" in message
    assert "model.widht" in message
    assert "did you mean width?" in message
    assert "leapfrog_steps" in message


def test_unknown_section_is_named():
    assert "unknown key modle; did you mean model?" in complaint("modle: {width: 128}")


def test_allowed_values_are_listed():
    message = complaint("learning: {nudge: sideways}")
    assert "learning.nudge is 'sideways'" in message
    assert "'centred'" in message
    assert "'one_sided'" in message


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("training: {steps: many}", "training.steps"),
        ("training: {steps: 1.5}", "training.steps"),
        ("training: {steps: true}", "training.steps"),
        ("training: {steps: 0}", "training.steps"),
        ("model: {carry_momentum: 1}", "model.carry_momentum"),
        ("model: {heads: 3}", "model.heads"),
        ("model: {chart_dim: 4, rotor_layers: 4}", "model.rotor_layers"),
        ("optimizer: {warmup_steps: 100}\ntraining: {steps: 100}", "optimizer.warmup_steps"),
        ("learning: {chunk: 3}\ntraining: {batch_size: 8}", "learning.chunk"),
        ("model: {context: 64}\ntraining: {eval_stride: 65}", "training.eval_stride"),
        ("data: {tokenizer: words}", "data.tokenizer"),
        ("data: {tokenizer: 'bpe:200'}", "data.tokenizer"),
        ("data: {validation_fraction: 1.0}", "data.validation_fraction"),
        ("sample: {prompt: ''}", "sample.prompt"),
        ("model: 3", "model"),
        ("model.width: 3", "unknown key model.width"),
        ("my-model: {width: 3}", "unknown key my-model; did you mean model?"),
        ("model: {chart-dim: 3}", "unknown key model.chart-dim; did you mean chart_dim?"),
        ("optimizer: {learning_rate: .inf}", "optimizer.learning_rate"),
        ("optimizer: {learning_rate: .nan}", "optimizer.learning_rate"),
        ("model: {width: 100000000000}", "model.width"),
        ("training: {steps: 100000000000000000000}", "training.steps"),
        ("data: {tokenizer: 'bpe:999999999999999999999'}", "data.tokenizer"),
        ("run: {directory: ''}", "run.directory"),
        (r'run: {directory: "a\0b"}', "run.directory: a path has neither NUL"),
        (r'data: {path: "\ud800"}', "data.path: a path has neither NUL nor lone surrogates"),
        ("learning: {residual_limit: 0}", "learning.residual_limit is 0"),
        ("training: {patience: 0}", "training.patience is 0"),
        ("training: {keep_every: 0}", "training.keep_every is 0"),
        (
            "model: {chart_dim: 6, metric: block_rot, metric_block: 3}",
            "model.metric_block: blocks of 3 coordinates must be even",
        ),
        ("model: {chart_dim: 6, metric: block_rot, metric_block: 4}", "divide chart_dim, 6"),
        ("model: {frame: learned_lowrank, metric_rank: 0}", "model.metric_rank"),
        ("model: {frame: learned_lowrank, metric: block_rot}", "model.metric: block_rot has nothing to turn"),
        ("model: {chart_dim: 2, rotor_layers: 1, base_metric: [[1, 0]]}", "model.base_metric: The base metric is 1 x 2"),
        ("model: {chart_dim: 2, rotor_layers: 1, base_metric: [[1, 2], [0, 1]]}", "must be symmetric"),
        ("model: {chart_dim: 2, rotor_layers: 1, base_metric: [[1, 2], [2, 1]]}", "not positive definite"),
        (
            "model: {chart_dim: 2, rotor_layers: 1, base_metric: [[1, 2], [3]]}",
            "model.base_metric: The base metric has rows of",
        ),
        ("model: {chart_dim: 2, rotor_layers: 1, base_metric: [[1, x], [x, 1]]}", "model.base_metric.0.1 is 'x'"),
        ("model: {base_metric: 3}", "model.base_metric is 3"),
        ("model: {fractional_order: 1.0}", "model.fractional_order is 1.0"),
        ("model: {fractional_order: 0}", "model.fractional_order is 0"),
        ("model: {adaptive_order: true, lag_prior: false}", "model.adaptive_order"),
        ("model: {step_size: 2.0}", "model.step_size: leapfrog is unstable at 2"),
        ("model: {products: [tensor, vedge]}", "model.products.1 is 'vedge'"),
        ("model: {products: [tensor, tensor]}", "model.products: tensor, tensor names one of them twice"),
        ("model: {products: wedge}", "model.products is 'wedge'"),
        ("model: {resilience: ricci}", "model.resilience is 'ricci'"),
        ("model: {curvature_terms: 0}", "model.curvature_terms"),
        ("learning: {action_weight: -0.1}", "learning.action_weight"),
        ("learning: {rule: echo}\nmodel: {dynamics: dissipative}", "learning.rule: echo needs model.dynamics: symplectic"),
        ("learning: {rule: equilibrium}\nmodel: {dynamics: symplectic}", "equilibrium needs model.dynamics: dissipative"),
        ("learning: {rule: equilibrium}\nmodel: {carry_momentum: true}", "model.carry_momentum: a relaxation has no"),
        ("learning: {rule: equilibrium}\nmodel: {leapfrog_steps: 2}", "model.leapfrog_steps: a relaxation has no"),
        ("learning: {nudge: random_sign}", "learning.nudge: random_sign is nothing for the echo"),
        ("learning: {pull: force}", "learning.pull: force is nothing for the echo"),
        ("learning: {update: geometry}", "learning.update: geometry is nothing for the echo"),
        ("learning: {nudged_steps: 3}", "learning.nudged_steps: 3 is nothing for the echo"),
        ("learning: {rule: equilibrium, pull: off, action_weight: 0.1}", "learning.action_weight: it has no say"),
        ("learning: {rule: equilibrium, update: geometry, action_weight: 0.1}", "learning.action_weight: it has no say"),
        ("model: {relaxation_momentum: 1.0}", "model.relaxation_momentum"),
        ("{1: 2}", "the key 1 is not text"),
        ("? [1, 2]\n: 3", "is not text"),
    ],
)
def test_wrong_values_and_impossible_combinations_are_named_by_path(text, path):
    assert path in complaint(text)


@pytest.mark.parametrize(
    ("text", "rule", "dynamics"),
    [
        ("{}", "echo", "symplectic"),
        ("learning: {rule: equilibrium}", "equilibrium", "dissipative"),
        ("model: {dynamics: dissipative}", "equilibrium", "dissipative"),
        ("learning: {rule: echo}\nmodel: {dynamics: symplectic}", "echo", "symplectic"),
    ],
)
def test_rule_and_dynamics_follow_each_other(text, rule, dynamics):
    """What is left out is filled in, so that a model's section alone, as inference reads it, gives the same model."""
    config = configuration.parse(text, "x")
    assert (config.learning.rule, config.model.dynamics) == (rule, dynamics)
    assert configuration.validate({"model": config.model.model_dump()}, "saved").model == config.model


def test_several_mistakes_are_told_at_once():
    message = complaint("model: {widht: 1, heads: x}\ntraining: {stesp: 1}")
    assert all(key in message for key in ("model.widht", "model.heads", "training.stesp"))


def test_malformed_yaml_and_repeated_keys_are_told_with_their_line():
    assert "line 2" in complaint("model:\n  width: [")
    assert "stands twice" in complaint("model: {width: 8}\nmodel: {width: 16}")


def test_yaml_may_merge_sections():
    config = configuration.parse("run: &run {seed: 3}\ndata: {}\nsample: {}\n", "x")
    merged = configuration.parse("run: {<<: {seed: 3}, directory: here}", "x")
    assert config.run.seed == merged.run.seed == 3


def test_a_document_that_is_no_mapping_is_told():
    assert "a list" in complaint("- width")


def test_scientific_notation_is_a_number():
    config = configuration.parse("optimizer: {learning_rate: 3e-3}\nlearning: {nudge_size: 1e-2}", "x")
    assert config.optimizer.learning_rate == 3e-3
    assert config.learning.nudge_size == 1e-2


def test_overrides_replace_values_and_create_sections():
    config = configuration.parse("model: {width: 64}", "x", ["model.width=96", "training.steps=1000", "data.path=null"])
    assert (config.model.width, config.training.steps, config.data.path) == (96, 1000, None)


@pytest.mark.parametrize("override", ["model", "model=3", "model.width", "a.b.c=1", "=1", ".=1"])
def test_malformed_overrides_are_refused(override):
    assert "section.key=value" in complaint("{}", override)


def test_unknown_override_is_refused_like_a_key():
    assert "model.widht" in complaint("{}", "model.widht=3")


def test_missing_file_suggests_the_nearest():
    with pytest.raises(UserError, match=r"did you mean configs/quickstart\.yaml"):
        configuration.load("configs/quickstrt.yaml")


def test_configuration_survives_a_round_trip_and_is_hashable():
    config = configuration.load("configs/quickstart.yaml", ["model.width=64"])
    again = configuration.validate(config.model_dump(), "copy")
    assert again == config
    assert hash(again) == hash(config)


def test_differences_names_keys_and_both_values():
    old = Config()
    new = configuration.parse("model: {width: 64}", "x")
    assert configuration.differences(old, new) == ["model.width: 128 → 64"]
    assert configuration.differences(old, old) == []


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_JUNK = st.recursive(
    _SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3), max_leaves=6
)


@given(
    st.dictionaries(
        st.sampled_from(["run", "data", "model", "learning", "training", "zzz"]),
        _JUNK | st.dictionaries(st.sampled_from(["width", "heads", "steps", "path", "nudge", "chunk"]), _JUNK, max_size=4),
        max_size=4,
    )
)
def test_junk_is_accepted_or_refused_in_one_sentence_never_a_crash(values):
    try:
        outcome = configuration.validate(values, "junk")
    except UserError as problem:
        outcome = str(problem)
    assert isinstance(outcome, Config) or "\n" not in outcome
