"""The reference of all configuration keys, generated from the settings, for a terminal and as a page.

`python -m lior_jax.cli.options > docs/options.md` regenerates the page after a change of the settings.
"""

import textwrap
import types
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import annotated_types as bounds
import yaml
from pydantic.fields import FieldInfo

from lior_jax.errors import UserError
from lior_jax.registry import Registry
from lior_jax.settings import DERIVED, Config, Section

_WIDTH = 100
"""Width of the terminal output."""
_WORDS = {int: "integer", float: "number", bool: "true or false", str: "text", type(None): "null"}
_LIMITS = {
    bounds.Ge: ("ge", "at least {}"),
    bounds.Gt: ("gt", "above {}"),
    bounds.Le: ("le", "at most {}"),
    bounds.Lt: ("lt", "below {}"),
    bounds.MinLen: ("min_length", "not empty"),
}


class Option(NamedTuple):
    """A key of a configuration."""

    key: str
    """Full name, such as `model.flow.units`."""
    default: str
    """The default in YAML's notation."""
    allowed: str
    """Type, range or choices."""
    meaning: str


class Group(NamedTuple):
    """A section of a configuration."""

    name: str
    """Full name, such as `model.flow`."""
    meaning: str
    options: list[Option]
    """Its own keys, without those of nested sections."""


def groups(section: type[Section] = Config, name: str = "") -> Iterator[Group]:
    """A section and its nested sections, outer ones first, without those that have no keys of their own."""
    prefix = f"{name}." if name else ""
    inner = {key: kind for key, field in section.model_fields.items() if (kind := _section_of(field))}
    keys = {key: field for key, field in section.model_fields.items() if key not in inner}
    options = [_option(prefix + key, field) for key, field in keys.items() if field.json_schema_extra is not DERIVED]
    if options:
        yield Group(name, _line(section.__doc__ or ""), options)
    for key, kind in inner.items():
        yield from groups(kind, prefix + key)


def text(name: str | None = None) -> str:
    """The reference for a terminal: everything, or a section with nested ones, or one key.

    Raises:
        UserError: there is no such section or key.
    """
    found = list(groups())
    if name is not None:
        found = _within(found, name)
    return "\n\n".join(_block(group) for group in found)


def page() -> str:
    """The reference in Markdown, as `docs/options.md` has it."""
    return _HEAD + "".join(f"\n## {group.name}\n\n{group.meaning}\n\n{_table(group)}" for group in groups())


def written(value: Any) -> str:
    """A setting's value in YAML, on one line."""
    words = yaml.safe_dump(_plain(value), default_flow_style=True, allow_unicode=True, width=float("inf"))
    return words.removesuffix("...\n").strip()


_HEAD = """# Options

Every key of a configuration, with its default, allowed values and meaning. In a YAML file sections are nested; on the command
line a key is set as `--set model.flow.units=512`. `lior options model.flow` shows a section of this page in the
terminal. The page is generated from the docstrings of `lior_jax/settings` by
`python -m lior_jax.cli.options > docs/options.md`.
"""


def _within(found: list[Group], name: str) -> list[Group]:
    """The groups or the key with a given name."""
    chosen = [group for group in found if f"{group.name}.".startswith(f"{name}.")]
    if chosen:
        return chosen
    for group in found:
        for option in group.options:
            if option.key == name:
                return [group._replace(options=[option])]
    names = [group.name for group in found]
    keys = [option.key for group in found for option in group.options]
    ends = [key for key in [*names, *keys] if key.split(".")[-1] == name]  # a key by its last name only
    close = ends or get_close_matches(name, [*names, *keys], n=1, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}? The sections are" if close else "the sections are"
    raise UserError(f"There is no section or key {name!r}; {hint} {', '.join(names)}.")


# --- one key ---------------------------------------------------------------------------------------------------------


def _option(key: str, field: FieldInfo) -> Option:
    return Option(key, written(field.default), _allowed(field.annotation, field.metadata), _line(field.description or ""))


def _allowed(kind: Any, metadata: list[Any]) -> str:
    """The allowed values of a type, in words."""
    if hasattr(kind, "__metadata__"):  # Annotated
        return _allowed(kind.__origin__, [*kind.__metadata__, *metadata])
    for one in metadata:
        if isinstance(one, Registry):
            return ("list of " if get_origin(kind) is tuple else "") + _choices(list(one))
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return _choices(arguments)
    if get_origin(kind) in (Union, types.UnionType):
        words = [_allowed(one, metadata if one is arguments[0] else []) for one in arguments]
        return (", or " if "," in words[0] else " or ").join(words)
    if get_origin(kind) is tuple:
        return "list of " + _plural(arguments[0])
    limits = [_limit(one) for one in metadata if type(one) in _LIMITS]
    return ", ".join([_WORDS.get(kind, getattr(kind, "__name__", str(kind))), *limits])


def _plural(kind: Any) -> str:
    """The elements of a list, in words."""
    if get_origin(kind) is tuple:
        return "lists of " + _plural(get_args(kind)[0])
    words = _allowed(kind, [])
    return f"{words}s" if kind in (int, float) else words


def _choices(names: Any) -> str:
    quoted = [f"`{name}`" for name in names]
    return " or ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))


def _limit(one: Any) -> str:
    name, words = _LIMITS[type(one)]
    return words.format(_number(getattr(one, name)))


def _number(value: float) -> str:
    """Large powers of two as `2^N`."""
    if isinstance(value, int) and value >= 2**16 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _section_of(field: FieldInfo) -> type[Section] | None:
    """The section class of a field; None for a key."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


# --- rendering -------------------------------------------------------------------------------------------------------


def _line(words: str) -> str:
    return " ".join(words.split())


def _block(group: Group) -> str:
    """A section in a terminal."""
    lines = [group.name, *textwrap.wrap(group.meaning, _WIDTH - 2, initial_indent="  ", subsequent_indent="  ")]
    for option in group.options:
        lines += ["", *_hanging(f"  {option.key}: {option.default}", option.allowed)]
        lines += textwrap.wrap(option.meaning, _WIDTH, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines).replace("`", "")


def _hanging(left: str, right: str) -> list[str]:
    """The allowed values, beside the key and its default, or below if they do not fit."""
    side = f"{left:<48}  {right}"
    return [side] if len(side) <= _WIDTH else [left, *textwrap.wrap(right, _WIDTH, initial_indent=" " * 6)]


def _table(group: Group) -> str:
    """A section's keys in Markdown."""
    rows = (
        f"| `{option.key}` | `{option.default}` | {_cell(option.allowed)} | {_cell(option.meaning)} |\n"
        for option in group.options
    )
    return "| key | default | allowed | meaning |\n|---|---|---|---|\n" + "".join(rows)


def _cell(words: str) -> str:
    return words.replace("|", r"\|")
