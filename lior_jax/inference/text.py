"""Streaming tokens as text: only whole characters are shown, and no part of a stop string."""

from collections.abc import Callable, Sequence

import numpy as np

_REPLACEMENT = "�"


class Writer:
    """Turns one sequence's new tokens into text, piece by piece; the pieces together are the whole text.

    Args:
        decode: from tokens to text; invalid UTF-8 becomes U+FFFD.
        stop: strings that end the text; not part of it.
    """

    def __init__(self, decode: Callable[[np.ndarray], str], stop: Sequence[str] = ()):
        self._decode, self._stop = decode, tuple(stop)
        self._tokens: list[int] = []
        self._held = ""
        self.stopped = False
        """Whether a stop string has occurred; no text follows."""
        self.count = 0
        """Number of tokens consumed, up to the end of the stop string."""

    def write(self, token: int) -> str:
        """The text that can be shown after `token`."""
        if self.stopped:
            return ""
        self.count += 1
        self._tokens.append(int(token))
        text = self._decode(np.array(self._tokens))
        if text.endswith(_REPLACEMENT):  # an incomplete character
            return ""
        self._tokens = []
        return self._show(text)

    def end(self) -> str:
        """The remaining text, when no more tokens follow."""
        if self.stopped:
            return ""
        text = self._show(self._decode(np.array(self._tokens, np.int32))) if self._tokens else ""
        held, self._held, self._tokens = self._held, "", []
        return text + ("" if self.stopped else held)

    def _show(self, text: str) -> str:
        text = self._held + text
        ends = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        # A possible beginning of a stop string is held back.
        longest = max(map(len, self._stop), default=1) - 1
        starts = range(max(0, len(text) - longest), len(text))
        begin = next((place for place in starts if any(stop.startswith(text[place:]) for stop in self._stop)), len(text))
        self._held = text[begin:]
        return text[:begin]
