"""Whatever is thrown at the loader, it answers with a configuration or with one sentence, soon."""

import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lior_jax import config as configuration
from lior_jax.errors import UserError
from lior_jax.settings import Config

MANY = settings(max_examples=150)

SECTIONS = list(Config.model_fields)
KEYS = sorted({key for section in Config.model_fields.values() for key in section.annotation.model_fields})
NASTY = ["\0", "\ud800", "\n", "a\nb", "..", "/dev/zero", "~", "é", "𝔤", "-", "1e999", "nan", "0x", "0b", "1_0", "2001-99-99"]

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(NASTY)
    | st.integers(min_value=10**30)
    | st.dates()
    | st.binary(max_size=6)
)
names = st.sampled_from(KEYS) | st.sampled_from(SECTIONS) | st.text(max_size=8) | st.sampled_from(NASTY)
values = st.recursive(scalars, lambda x: st.lists(x, max_size=3) | st.dictionaries(names, x, max_size=3), max_leaves=6)
sections = st.dictionaries(names, values, max_size=5)


def answer(load) -> Config | str:
    """The configuration, or the sentence; whatever else is raised fails the test."""
    begin = time.monotonic()
    try:
        outcome = load()
    except UserError as problem:
        outcome = str(problem)
        assert "\n" not in outcome
        assert outcome.isprintable(), repr(outcome)
        assert len(outcome) < 20_000
    assert time.monotonic() < begin + 5
    assert isinstance(outcome, Config | str)
    return outcome


@MANY
@given(st.dictionaries(st.sampled_from(SECTIONS) | names, values | sections, max_size=5))
def test_junk_values(junk):
    answer(lambda: configuration.validate(junk, "junk"))


@MANY
@given(st.dictionaries(st.sampled_from(SECTIONS), sections, max_size=4))
def test_junk_as_yaml(junk):
    answer(lambda: configuration.parse(yaml.safe_dump(junk, allow_unicode=True), "junk"))


@MANY
@given(st.text(max_size=60) | st.text("&*!<>[]{}:,-?|'\"%@`#~ \nab01.", max_size=60))
def test_junk_text(text):
    answer(lambda: configuration.parse(text, "junk"))


@MANY
@given(st.binary(max_size=60))
def test_junk_bytes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "junk.yaml"
    path.write_bytes(content)
    answer(lambda: configuration.load(path))


@MANY
@given(
    st.lists(
        st.tuples(names, names, st.text(max_size=12) | st.sampled_from(NASTY)).map(lambda x: f"{x[0]}.{x[1]}={x[2]}"),
        max_size=3,
    )
)
def test_junk_overrides(overrides):
    answer(lambda: configuration.parse("model: {width: 64}", "x", overrides))


@MANY
@given(st.text(max_size=30))
def test_junk_override_texts(override):
    answer(lambda: configuration.parse("{}", "x", [override]))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "{a: " * 3000,
        "a: " + "[" * 3000 + "]" * 3000,
        "training: {steps: 2001-99-99}",
        "training: {steps: 2001-12-14t21:59:43.10-99:99}",
        "training: {steps: 0x}",
        "training: {steps: 0b}",
        "training: {steps: " + "9" * 5000 + "}",
        "training: {steps: !!int x}",
        "training: {steps: !!float x}",
        "training: {steps: !!timestamp x}",
        "training: {steps: !!bool x}",
        "training: {steps: !!binary '***'}",
        "training: !!python/object/apply:os.system ['true']",
        "training: !!omap 3",
        "training: !!set {a, b}",
        "model: {<<: 3}",
        "model: {<<: [3]}",
        "&a {model: *a}",
        "&a [*a]",
        "model: &a {width: *a}",
        "? {a: 1}\n: 2",
        "? &a [*a]\n: 2",
        'run: {directory: "\\0"}',
        'run: {directory: "\\ud800"}',
        'data: {path: "\\0"}',
        'data: {tokenizer: "bpe:300\\n"}',
        "data: {tokenizer: 'bpe:३००'}",
        '"a\\nb": 3',
        'model: {"a\\nb": 3}',
        "--- 1\n--- 2",
        "%YAML 9.9\n---\na: b",
        "\0",
        "\ufeff",
    ],
    ids=lambda text: text[:30].encode("unicode_escape").decode(),
)
def test_texts_that_break_parsers(text):
    answer(lambda: configuration.parse(text, "junk"))


def test_a_document_that_grows_when_it_is_read_is_refused_at_once():
    """Ten lines that stand for 10¹⁰ words; the message must not spell them out."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    lines += ["training: {steps: *a9}", "model: *a9", "run: {directory: *a9}"]
    message = answer(lambda: configuration.parse("\n".join(lines), "junk"))
    assert "training.steps" in message


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/dev/zero", "is a device, not a file"),
        ("/dev/null", "is a device, not a file"),
        (".", "is a folder, not a file"),
        ("nowhere/none.yaml", "There is no configuration nowhere/none.yaml"),
        (f"{__file__}/x", "cannot be read"),
        ("\0", "cannot be read"),
        ("x" * 300, "cannot be read"),
    ],
)
def test_paths_that_are_no_configuration(path, message):
    assert message in answer(lambda: configuration.load(path))
