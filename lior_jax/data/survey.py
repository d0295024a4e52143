"""Properties of a text needed before tokenising, from one pass."""

import hashlib
from typing import NamedTuple

import numpy as np

from lior_jax.data.sources import Report, Source
from lior_jax.data.vocabularies import code_points

_BEGINNING = 24
"""Largest length of a text's beginning."""


class Survey(NamedTuple):
    """A text's size and contents."""

    characters: int
    fingerprint: str
    """SHA-256 of its UTF-8 encoding."""
    alphabet: str
    """Its distinct characters, in code point order."""
    beginning: str
    """See `beginning`."""


def survey(source: Source, report: Report) -> Survey:
    """Read a whole text. Raises `UserError` if it cannot be read."""
    total, seen, characters, first, size = hashlib.sha256(), np.zeros(0x110000, bool), 0, "", source.size
    for text, place in source.read():
        report("reading", min(place, size), size)
        total.update(text.encode())
        seen[code_points(text)] = True
        characters += len(text)
        if len(first) < _BEGINNING:
            first += text[:_BEGINNING]
    report("reading", size, size)
    return Survey(characters, total.hexdigest(), "".join(map(chr, np.flatnonzero(seen))), beginning(first))


def beginning(text: str) -> str:
    """The text's first characters, up to the end of its first line unless that is blank."""
    first = text[:_BEGINNING]
    line = first.splitlines()[0]
    return line if line.strip() else first
