"""The reference of options: every key, as the settings have it, in the terminal and on the page."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field

from lior_jax import config as configuration
from lior_jax import options
from lior_jax.errors import UserError
from lior_jax.registry import RULES, Registry
from lior_jax.settings import Config, Section

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).parents[1] / "docs" / "options.md"
COLOURS = Registry("colour", {"red": 1, "blue": 2})


class Inner(Section):
    """An inner
    section."""

    bits: int | None = Field(None, ge=1, lt=2**20)
    """Bits of `x`, in two
    lines."""
    pairs: tuple[tuple[float, ...], ...] = ((1.0, 2.5),)
    """Pairs."""
    colours: Annotated[tuple[str, ...], COLOURS] = ("red",)
    """Several."""
    parts: tuple[Literal["a", "b", "c"], ...] = ()
    """Parts, a | b."""


class Outer(Section):
    """An outer section."""

    share: float = Field(0.5, gt=0, le=1)
    """A share."""
    colour: Annotated[str, COLOURS] = "red"
    """A colour."""
    word: str = Field(" x", min_length=1)
    """A word."""
    on: Literal["yes", "off"] = "off"
    """A choice that YAML would take for false."""
    inner: Inner = Inner()


def test_types_ranges_choices_and_defaults_are_in_words():
    outer, inner = options.groups(Outer, "top")
    assert (outer.name, inner.name, inner.meaning) == ("top", "top.inner", "An inner section.")
    assert outer.options == [
        ("top.share", "0.5", "number, above 0, at most 1", "A share."),
        ("top.colour", "red", "`red` or `blue`", "A colour."),
        ("top.word", "' x'", "text, not empty", "A word."),
        ("top.on", "'off'", "`yes` or `off`", "A choice that YAML would take for false."),
    ]
    assert inner.options == [
        ("top.inner.bits", "null", "integer, at least 1, below 2^20, or null", "Bits of `x`, in two lines."),
        ("top.inner.pairs", "[[1.0, 2.5]]", "list of lists of numbers", "Pairs."),
        ("top.inner.colours", "[red]", "list of `red` or `blue`", "Several."),
        ("top.inner.parts", "[]", "list of `a`, `b` or `c`", "Parts, a | b."),
    ]


def test_every_key_is_there_with_its_own_default_and_a_meaning():
    found = [option for group in options.groups() for option in group.options]
    defaults = configuration.flat(Config())
    assert [option.key for option in found] == sorted(defaults, key=[option.key for option in found].index)
    assert len(found) == len(defaults)
    for option in found:
        value = yaml.safe_load(option.default)
        assert (tuple(value) if isinstance(value, list) else value) == defaults[option.key], option.key
        assert option.meaning.endswith("."), f"{option.key} says nothing"
    assert all(group.meaning.endswith(".") for group in options.groups())


def test_defaults_as_shown_can_be_set():
    shown = [f"{option.key}={option.default}" for group in options.groups() for option in group.options]
    assert configuration.parse("", "nothing", shown) == Config()


def test_a_registered_name_is_taken_and_another_is_refused():
    table = Registry("colour", {"red": 1})

    class Paint(Section):
        one: Annotated[str, table] = "red"
        several: Annotated[tuple[str, ...], table] = ()

    table.register("green", 2)
    assert Paint(one="green", several=("red", "green")).several == ("red", "green")
    for wrong in ({"one": "mauve"}, {"several": ("red", "mauve")}):
        with pytest.raises(ValueError, match="'mauve' is not a known colour; choose one of red, green"):
            Paint(**wrong)


def test_registered_names_are_choices():
    rule = next(option for group in options.groups() for option in group.options if option.key == "learning.rule")
    assert rule.allowed == " or ".join(f"`{name}`" for name in RULES)


def test_a_section_has_its_inner_ones_and_a_key_stands_alone():
    whole, part, key = options.text(), options.text("model.flow"), options.text("model.flow.units")
    assert part in whole
    assert "model.flow.units: 256" in part
    assert "model.convolution" not in part
    assert {"model.width", "model.flow.units"} <= {line.split(":")[0].strip() for line in options.text("model").splitlines()}
    assert "model.flow.units" in key
    assert "model.flow.steps" not in key
    assert max(map(len, whole.splitlines())) <= 100
    assert "`" not in whole


@pytest.mark.parametrize(
    ("name", "hint"), [("taps", "model.convolution.taps"), ("model.flo", "model.flow"), ("nonsense", "the sections are run")]
)
def test_another_name_is_refused_with_what_there_is(name, hint):
    with pytest.raises(UserError, match=f"no section or key '{name}'.*{hint}"):
        options.text(name)


def test_the_page_is_current():
    # In a process of its own: other tests register potentials and rules of theirs.
    command = [sys.executable, "-m", "lior_jax.cli.options"]
    written = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    assert PAGE.read_text(encoding="utf-8") == written, "python -m lior_jax.cli.options > docs/options.md"


def test_a_cell_of_the_page_stays_one():
    table = options._table(next(group for group in options.groups(Outer, "top") if group.name == "top.inner"))
    rows = table.splitlines()
    assert rows[-1].endswith(r"| Parts, a \| b. |")
    assert all(row.replace(r"\|", "").count("|") == 5 for row in rows)
