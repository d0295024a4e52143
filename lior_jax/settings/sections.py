"""What all sections of a configuration have in common: how plain values become settings, and which settings are texts.

YAML and the command line write the same value in several ways. A section takes an integral number such as `1e3` for an integer,
one item for a list of one, and a list for a tuple, and nothing else for anything but what it is.
"""

import os
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

REQUIRED = "required"
"""The value of a path for which a configuration has no default, so that whoever uses it gives one. A file of that name is
`./required`."""


class Section(BaseModel):
    """Base of all sections: no unknown keys, no silent conversions but of notation, no changes."""

    # The text below a key is its description: the reference of options is made of them.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _notation(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        return {name: _noted(value, fields[name].annotation) if name in fields else value for name, value in values.items()}


def is_text(annotation: Any) -> bool:
    """Whether a field holds a text, or a text or nothing."""
    return {kind for kind in _kinds(annotation) if kind is not type(None)} == {str}


def _noted(value: Any, annotation: Any) -> Any:
    """A value in the notation that the field's type has."""
    kinds = _kinds(annotation)
    if isinstance(value, float) and value.is_integer() and int in kinds and float not in kinds:
        return int(value)
    items = next((get_args(kind)[0] for kind in kinds if get_origin(kind) is tuple), None)
    if items is None:
        return value
    if isinstance(value, list):
        return tuple(_noted(item, items) for item in value)
    is_one = isinstance(value, str | int | float) and not any(get_origin(kind) is tuple for kind in _kinds(items))
    return (value,) if is_one else value


def _kinds(annotation: Any) -> list[Any]:
    """The types that an annotation allows."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for choice in get_args(annotation) for kind in _kinds(choice)]
    return [annotation]


def system_path(value: str) -> str:
    """A path that the system can be asked for, with `~` written out. Raises `ValueError` if it is none."""
    try:
        if b"\0" not in os.fsencode(value):
            return os.path.expanduser(value)
    except UnicodeEncodeError:
        pass
    raise ValueError("a path has neither NUL nor lone surrogates")


PathText = Annotated[str, AfterValidator(system_path)]
"""A path of a file or folder."""


def off(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value
