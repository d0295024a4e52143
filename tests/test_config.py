"""The configuration: what is accepted, what is refused, and how it is said."""

from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lior_jax import config as configuration
from lior_jax import model
from lior_jax.errors import UserError
from lior_jax.registry import RULES
from lior_jax.settings import REQUIRED, Config

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


@pytest.mark.parametrize(("name", "low", "high"), [("shakespeare", 0.5e6, 1e6), ("gpu", 2e6, 4e6)])
def test_shipped_models_have_the_promised_size(name, low, high):
    shapes = configuration.load(f"configs/{name}.yaml", ["model.vocab_size=65"]).model
    params = jax.eval_shape(lambda key: model.init(key, shapes), jax.random.key(0))
    assert low <= model.count(params) <= high


@pytest.mark.parametrize("name", ["shakespeare", "gpu"])
def test_configurations_for_a_text_of_ones_own_require_it(name):
    assert configuration.load(f"configs/{name}.yaml").data.path == REQUIRED


def test_unknown_key_is_named_with_its_path_the_nearest_spelling_and_what_is_allowed():
    message = complaint("model: {widht: 128}")
    assert "some.yaml" in message
    assert "model.widht" in message
    assert "did you mean width?" in message
    assert "flow" in message


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
        ("model: {flow: {carry_momentum: 1}}", "model.flow.carry_momentum"),
        ("model: {heads: 3}", "model.heads"),
        ("model: {geometry: {chart_dim: 4, rotor_layers: 4}}", "model.geometry.rotor_layers"),
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
        ("model: {geometry: {chart-dim: 3}}", "unknown key model.geometry.chart-dim; did you mean chart_dim?"),
        ("optimizer: {learning_rate: .inf}", "optimizer.learning_rate"),
        ("optimizer: {learning_rate: .nan}", "optimizer.learning_rate"),
        ("model: {width: 100000000000}", "model.width"),
        ("training: {steps: 100000000000000000000}", "training.steps"),
        ("data: {tokenizer: 'bpe:999999999999999999999'}", "data.tokenizer"),
        ("run: {directory: ''}", "run.directory"),
        (r'run: {directory: "a\0b"}', "run.directory: a path contains neither NUL"),
        (r'data: {path: "\ud800"}', "data.path: a path contains neither NUL nor lone surrogates"),
        ("learning: {residual_limit: 0}", "learning.residual_limit is 0"),
        ("training: {patience: 0}", "training.patience is 0"),
        ("training: {keep_every: 0}", "training.keep_every is 0"),
        (
            "model: {geometry: {chart_dim: 6, metric: block_rot, block: 3}}",
            "model.geometry.block: blocks of 3 coordinates must be even",
        ),
        ("model: {geometry: {chart_dim: 6, metric: block_rot, block: 4}}", "divide chart_dim, 6"),
        ("model: {geometry: {frame: learned_lowrank, rank: 0}}", "model.geometry.rank"),
        (
            "model: {geometry: {frame: learned_lowrank, metric: block_rot}}",
            "model.geometry.metric: block_rot has no rotors",
        ),
        (
            "model: {geometry: {chart_dim: 2, rotor_layers: 1, base_metric: [[1, 0]]}}",
            "model.geometry.base_metric: The base metric is 1 x 2",
        ),
        ("model: {geometry: {chart_dim: 2, rotor_layers: 1, base_metric: [[1, 2], [0, 1]]}}", "must be symmetric"),
        ("model: {geometry: {chart_dim: 2, rotor_layers: 1, base_metric: [[1, 2], [2, 1]]}}", "not positive definite"),
        (
            "model: {geometry: {chart_dim: 2, rotor_layers: 1, base_metric: [[1, 2], [3]]}}",
            "model.geometry.base_metric: The base metric has rows of",
        ),
        (
            "model: {geometry: {chart_dim: 2, rotor_layers: 1, base_metric: [[1, x], [x, 1]]}}",
            "model.geometry.base_metric.0.1 is 'x'",
        ),
        ("model: {geometry: {base_metric: 3}}", "model.geometry.base_metric is 3"),
        ("model: {retrieval: {fractional_order: 1.0}}", "model.retrieval.fractional_order is 1.0"),
        ("model: {retrieval: {fractional_order: 0}}", "model.retrieval.fractional_order is 0"),
        ("model: {retrieval: {adaptive_order: true, lag_prior: false}}", "model.retrieval.adaptive_order"),
        ("model: {flow: {step_size: 2.0}}", "model.flow.step_size: verlet is unstable at 2"),
        ("model: {flow: {integrator: yoshida4, step_size: 1.6}}", "model.flow.step_size: yoshida4 is unstable at 1.6"),
        (
            "model: {flow: {integrator: euler}}",
            "model.flow.integrator: 'euler' is not a known integrator; choose one of",
        ),
        ("model: {field: {evolution: off, project: true}}", "project: without a field there is nothing to project"),
        ("model: {flow: {potential: flat}}", "model.flow.potential: 'flat' is not a known potential; choose one of gated"),
        (
            "{model: {flow: {integrator: yoshida4}}, learning: {rule: equilibrium}}",
            "model.flow.integrator: a relaxation has no momentum and no integrator",
        ),
        ("model: {retrieval: {products: [tensor, vedge]}}", "model.retrieval.products: 'vedge' is not a known score term"),
        (
            "model: {retrieval: {products: [tensor, tensor]}}",
            "model.retrieval.products: lag_prior, tensor, tensor contains one of them twice",
        ),
        ("model: {retrieval: {products: vedge}}", "model.retrieval.products: 'vedge' is not a known score term"),
        ("model: {retrieval: {products: {wedge: 1}}}", "model.retrieval.products is {'wedge': 1}"),
        ("training: {steps: 1e400}", "training.steps"),
        ("training: {steps: 1e30}", "training.steps"),
        ("run: {seed: -1e0}", "run.seed is -1"),
        ("data: {path: ''}", "data.path"),
        ("model: {geometry: {resilience: ricci}}", "model.geometry.resilience is 'ricci'"),
        ("model: {geometry: {curvature_terms: 0}}", "model.geometry.curvature_terms"),
        ("learning: {action_weight: -0.1}", "learning.action_weight"),
        ("model: {dynamics: dissipative}", "model.dynamics: is derived from learning.rule (symplectic for echo)"),
        ("learning: {rule: equilibrium}\nmodel: {dynamics: symplectic}", "(dissipative for equilibrium); leave the key out"),
        ("learning: {rule: backward}", "learning.rule: 'backward' is not a known learning rule; choose one of echo"),
        (
            "learning: {keep: units}\nmodel: {flow: {carry_momentum: true}}",
            "learning.keep: with model.flow.carry_momentum nothing of a block is stored",
        ),
        ("learning: {keep: units, rule: equilibrium}", "learning.keep: equilibrium has no flow"),
        (
            "learning: {rule: equilibrium}\nmodel: {flow: {carry_momentum: true}}",
            "model.flow.carry_momentum: a relaxation has no",
        ),
        ("learning: {rule: equilibrium}\nmodel: {flow: {steps: 2}}", "model.flow.steps: a relaxation has no"),
        ("learning: {nudge: random_sign}", "learning.nudge: random_sign does not apply to echo"),
        ("learning: {pull: force}", "learning.pull: force does not apply to echo"),
        ("learning: {update: geometry}", "learning.update: geometry does not apply to echo"),
        ("learning: {nudged_steps: 3}", "learning.nudged_steps: 3 does not apply to echo"),
        ("learning: {rule: equilibrium, pull: off, action_weight: 0.1}", "learning.action_weight: has no effect"),
        ("learning: {rule: equilibrium, update: geometry, action_weight: 0.1}", "learning.action_weight: has no effect"),
        ("model: {relaxation: {momentum: 1.0}}", "model.relaxation.momentum"),
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
        ("learning: {rule: echo}", "echo", "symplectic"),
    ],
)
def test_the_dynamics_follow_from_the_rule(text, rule, dynamics):
    config = configuration.parse(text, "x")
    assert (config.learning.rule, config.model.dynamics) == (rule, dynamics)
    assert configuration.validate(config.model_dump(), "saved") == config
    for other in ("equilibrium", "echo"):
        changed = configuration.replace(config, "learning", rule=other)
        assert changed.model.dynamics == RULES[other].dynamics


@pytest.mark.parametrize("old", configuration.MOVED)
def test_a_key_in_its_old_place_is_refused_with_its_new_one(old):
    values = {"model.field": "false", "model.memory": "true"}
    text = f"model: {{{old.removeprefix('model.')}: {values.get(old, '3')}}}"
    if old != "model.field":
        assert f"{old} is now {configuration.MOVED[old]}" in complaint(text)
    assert f"{old} is now {configuration.MOVED[old]}" in complaint("{}", f"{old}={values.get(old, '3')}")


def test_overrides_reach_any_depth():
    config = configuration.parse("model: {flow: {units: 8}}", "x", ["model.flow.steps=2", "model.geometry.chart_dim=6"])
    assert (config.model.flow.units, config.model.flow.steps, config.model.geometry.chart_dim) == (8, 2, 6)
    assert "--set model.flow" not in complaint("{}", "model.flow.stepz=2")
    assert "did you mean steps?" in complaint("{}", "model.flow.stepz=2")


def test_several_mistakes_are_told_at_once():
    message = complaint("model: {widht: 1, heads: x}\ntraining: {stesp: 1}")
    assert all(key in message for key in ("model.widht", "model.heads", "training.stesp"))


def test_malformed_yaml_and_repeated_keys_are_told_with_their_line():
    assert "line 2" in complaint("model:\n  width: [")
    assert "appears twice" in complaint("model: {width: 8}\nmodel: {width: 16}")


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


TEXTS = ["data.path", "run.directory", "sample.prompt", "data.tokenizer", "learning.rule"]


def set_to(key: str, value: str) -> str:
    section, name = key.split(".")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configuration, "validate", lambda values, _: values)  # as it is read, before anything is refused
        return configuration.parse("{}", "x", [f"{key}={value}"])[section][name]


LITERAL = ["a #2", "The ", " a", "~", "ROMEO:", "*.txt", "&a", "!b", "- x", "a: b", "{a}", "[b", "yes", "1e3", "0x10", "a=b"]
LITERAL += ["", " ", "nothing", "Null", "#", "a\nb", "a\tb", "'", '"', "'a' or 'b'", '"a" or "b"', "é", "a\r\n", "%", "@", "`"]


@pytest.mark.parametrize("value", LITERAL)
@pytest.mark.parametrize("key", ["data.path", "sample.prompt", "data.tokenizer"])
def test_a_text_is_what_follows_the_sign_to_the_character(key, value):
    assert set_to(key, value) == value
    assert set_to(key, "'" + value.replace("'", "''") + "'") == value


@given(st.text())
def test_any_text_is_taken_literally_and_in_quotes(value):
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if value != "null" and not quoted:
        assert set_to("sample.prompt", value) == value
    assert set_to("sample.prompt", "'" + value.replace("'", "''") + "'") == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (r'"a\nb"', "a\nb"),
        ('"The "', "The "),
        ("'null'", "null"),
        ('"null"', "null"),
        ("null", None),
        ('"a\nb"', "a\nb"),
        ('"a\r\n\u2028b"', "a\r\n\u2028b"),
        ('""', ""),
    ],
)
def test_quotes_are_optional_and_null_is_the_way_to_nothing(value, text):
    assert set_to("sample.prompt", value) == text


def test_all_texts_of_the_settings_are_known_as_such():
    texts = [key for key in configuration.flat(Config()) if configuration._holds_text(key.split("."))]
    assert set(TEXTS) <= set(texts)
    assert not {"training.steps", "model.retrieval.products", "model.precision", "model.flow.carry_momentum"} & set(texts)


def test_integral_numbers_are_integers_and_one_item_is_a_list_of_one():
    config = configuration.parse(
        "model: {context: 1e2, retrieval: {products: wedge}}\nrun: {seed: 3.0}\noptimizer: {learning_rate: 1}",
        "x",
        ["training.steps=1e3", "training.eval_windows=2e1", "model.retrieval.tile=null"],
    )
    assert (config.model.context, config.run.seed, config.training.steps, config.training.eval_windows) == (100, 3, 1000, 20)
    assert all(type(value) is int for value in (config.model.context, config.run.seed, config.training.steps))
    assert config.model.retrieval.products == ("wedge",)
    assert config.model.retrieval.tile is None
    assert configuration.parse("{}", "x", ["model.retrieval.products=spinor"]).model.retrieval.products == ("spinor",)
    assert configuration.parse("{}", "x", ["model.retrieval.products=[]"]).model.retrieval.products == ()
    assert "training.steps is 1.5" in complaint("{}", "training.steps=1.5")
    assert "model.flow.carry_momentum is 1" in complaint("{}", "model.flow.carry_momentum=1.0")


def test_a_file_as_windows_writes_it_is_a_configuration(tmp_path):
    """A byte order mark, carriage returns, and numbers in the notations that people use."""
    file = tmp_path / "windows.yaml"
    file.write_bytes(b"\xef\xbb\xbfrun:\r\n  directory: winrun\r\nmodel:\r\n  context: 1e2\r\ntraining:\r\n  steps: 1_000\r\n")
    config = configuration.load(file)
    assert (config.run.directory, config.model.context, config.training.steps) == ("winrun", 100, 1000)


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("data: {path: ~/x.txt}")
    config = configuration.load("~/a.yaml", ["run.directory=~/r1"])
    assert (config.data.path, config.run.directory) == (f"{tmp_path}/x.txt", f"{tmp_path}/r1")
    assert configuration.parse("{}", "x", ["data.path=./~/x"]).data.path == "./~/x"
    assert configuration.parse("{}", "x", ["data.path=~"]).data.path == str(tmp_path)


def test_overrides_replace_values_and_create_sections():
    config = configuration.parse("model: {width: 64}", "x", ["model.width=96", "training.steps=1000", "data.path=null"])
    assert (config.model.width, config.training.steps, config.data.path) == (96, 1000, None)


@pytest.mark.parametrize("override", ["model", "model=3", "model.width", "a..c=1", "=1", ".=1"])
def test_malformed_overrides_are_refused(override):
    assert "section.key=value" in complaint("{}", override)


def test_unknown_override_is_refused_like_a_key():
    assert "model.widht" in complaint("{}", "model.widht=3")


def test_missing_file_suggests_the_nearest():
    with pytest.raises(UserError, match=r"did you mean configs/quickstart\.yaml"):
        configuration.load("configs/quickstrt.yaml")


def test_a_bare_name_is_that_of_a_shipped_configuration(tmp_path, monkeypatch):
    shipped = configuration.load("configs/quickstart.yaml", ["model.width=64"])
    monkeypatch.chdir(tmp_path)
    assert configuration.load("quickstart", ["model.width=64"]) == shipped
    (tmp_path / "quickstart").mkdir()
    assert configuration.load("quickstart", ["model.width=64"]) == shipped
    with pytest.raises(UserError, match=r"There is no configuration quikstart; did you mean quickstart\?"):
        configuration.load("quikstart")
    with pytest.raises(UserError, match=r"no configuration x/quickstart;"):
        configuration.load("x/quickstart")
    (tmp_path / "quickstart").rmdir()
    (tmp_path / "quickstart").write_text("model: {width: 16}")
    assert configuration.load("quickstart").model.width == 16  # one's own comes first


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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.tokenizer=words"], r"must be byte, char, bpe:N \(for example bpe:2048\) or PATH/tokenizer.json"),
        (["data.tokenizer=byte", "data.unknown=replace"], "replace does not apply to the tokenizer 'byte', only to char"),
        (["data.unknown=skip"], "data.unknown"),
        (['data.tokenizer="a\\0b.json"'], "a path contains neither NUL nor lone surrogates"),
        (["data.field="], "data.field"),
    ],
)
def test_what_is_no_way_to_tokens_is_told(overrides, message):
    with pytest.raises(UserError, match=message):
        configuration.parse("{}", "x", overrides)
    assert configuration.parse("{}", "x", ["data.tokenizer=own/tokenizer.json"]).data.tokenizer == "own/tokenizer.json"


@pytest.mark.parametrize("value", ["0", "-3", "fast", "1.5", "true"])
def test_a_tile_that_is_none_is_refused_in_one_sentence(value):
    with pytest.raises(
        UserError, match=r"model\.retrieval\.tile: .* must be auto, null, or a whole number of positions"
    ) as told:
        configuration.parse("{}", "x", [f"model.retrieval.tile={value}"])
    assert "literal" not in str(told.value)
