"""The base of all sections of a configuration: conversion of plain values to settings, and which settings are texts.

YAML and the command line write the same value in several ways. A section accepts an integral number such as `1e3` as an
integer, a single item as a list of one, and a list as a tuple; no other conversions are made.
"""

import os
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

REQUIRED = "required"
"""The value of a path without a default, which the user of the configuration must set. A file of that name is written
`./required`."""


class Section(BaseModel):
    """Base of all sections: no unknown keys, no conversions except of notation, immutable."""

    # The docstring below a key is its description in the reference of options.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _notation(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        return {name: _noted(value, fields[name].annotation) if name in fields else value for name, value in values.items()}


def is_text(annotation: Any) -> bool:
    """Whether a field is a text, or a text or null."""
    return {kind for kind in _kinds(annotation) if kind is not type(None)} == {str}


def _noted(value: Any, annotation: Any) -> Any:
    """A value converted to the notation of the field's type."""
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
    """The types allowed by an annotation."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for choice in get_args(annotation) for kind in _kinds(choice)]
    return [annotation]


def system_path(value: str) -> str:
    """A valid path, with `~` expanded. Raises `ValueError` if it is invalid."""
    try:
        if b"\0" not in os.fsencode(value):
            return os.path.expanduser(value)
    except UnicodeEncodeError:
        pass
    raise ValueError("a path contains neither NUL nor lone surrogates")


PathText = Annotated[str, AfterValidator(system_path)]
"""A path of a file or folder."""


def off(value: Any) -> Any:
    """Undo YAML's reading of a bare `off` as false."""
    return "off" if value is False else value
