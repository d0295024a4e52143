"""Text from tokens as they come."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lior_jax.data.tokenizer import ByteTokenizer
from lior_jax.inference.text import Writer

decode = ByteTokenizer().decode


def pieces(tokens, stop=()) -> list[str]:
    writer = Writer(decode, stop)
    return [*map(writer.write, tokens), writer.end()]


@given(st.lists(st.integers(0, 255), max_size=30))
def test_the_pieces_are_the_text_whatever_the_bytes(tokens):
    assert "".join(pieces(tokens)) == decode(np.array(tokens, np.int32))


@given(st.text(max_size=20))
def test_every_character_is_shown_with_its_last_byte(text):
    tokens = list(text.encode("utf-8", "surrogatepass"))
    shown = pieces(tokens)
    if "\ufffd" in decode(np.array(tokens, np.int32)):
        return
    ends = np.cumsum([len(character.encode()) for character in text]) - 1
    assert [shown[end] for end in ends] == list(text)


@example(".ab.", ["b.", "ab."])  # complete at the same character
@given(st.text("ab.", max_size=30), st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3))
def test_a_stop_string_ends_the_text_and_is_never_shown(text, stop):
    places = [text.find(string) for string in stop if string in text]
    shown = pieces(text.encode(), stop)
    # The first string to be complete ends the text, and of several complete at once, the one that begins first.
    done = [text.find(string) + len(string) for string in stop if string in text]
    if not places:
        assert "".join(shown) == text
        return
    end = min(done)
    expected = min(text[:end].find(string) for string in stop if string in text[:end])
    assert "".join(shown) == text[:expected]
    # Nothing is shown that had to be taken back.
    assert all("".join(shown[: i + 1]) == text[: min(expected, len("".join(shown[: i + 1])))] for i in range(len(shown)))


@pytest.mark.parametrize(("text", "stop", "count"), [("abcd", ["bc"], 3), ("abcd", ["x"], 4), ("abcd", [], 4)])
def test_tokens_are_counted_up_to_the_stop(text, stop, count):
    writer = Writer(decode, stop)
    for token in text.encode():
        writer.write(token)
    writer.end()
    assert (writer.count, writer.stopped) == (count, stop == ["bc"])


def test_only_what_may_begin_a_stop_string_waits():
    writer = Writer(decode, ["\n\nQ:"])
    assert [writer.write(token) for token in b"ab\ncd"] == ["a", "b", "", "\nc", "d"]
