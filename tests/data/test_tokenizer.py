"""Tokenizers: round trips, saved copies, and what they refuse."""

import json

import numpy as np
import pytest
import tokenizers as tokenizers_library
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers, processors

from lior_jax.data import sources
from lior_jax.data import tokenizer as tokenizers
from lior_jax.errors import UserError

CORPUS = "The quick brown fox — naïve, déjà vu — jumps over the lazy dog. " * 30
KINDS = ["byte", "char", "bpe:300"]
BLANKS = tokenizers.build("bpe:300", "", ["a\n\n\n    é!\n \t\n b1  \n" * 30])
"""Which has tokens of several blanks."""
BUILT = {kind: tokenizers.build(kind, CORPUS, [CORPUS]) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_decode_inverts_encode_and_tokens_are_in_range(kind):
    tokens = BUILT[kind].encode(CORPUS)
    assert BUILT[kind].decode(tokens) == CORPUS
    assert tokens.dtype == np.int32
    assert tokens.min() >= 0
    assert tokens.max() < BUILT[kind].vocab_size


@pytest.mark.parametrize("kind", ["byte", "bpe:300"])
@given(text=st.text(max_size=40))
def test_byte_level_tokenizers_take_any_text(kind, text):
    assert BUILT[kind].decode(BUILT[kind].encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_copy_gives_the_same_tokens(kind):
    copy = tokenizers.from_json(json.loads(json.dumps(BUILT[kind].to_json())))
    np.testing.assert_array_equal(copy.encode(CORPUS), BUILT[kind].encode(CORPUS))
    assert copy.vocab_size == BUILT[kind].vocab_size


def test_char_vocabulary_is_the_sorted_alphabet():
    tokenizer = tokenizers.build("char", "hello", ["hell"])
    assert tokenizer.vocab_size == 4
    assert tokenizer.encode("hello").tolist() == [1, 0, 2, 2, 3]


def test_bpe_learns_from_the_training_part_only_and_compresses_it():
    tokenizer = tokenizers.build("bpe:300", CORPUS + "zebra " * 500, [CORPUS])
    assert len(tokenizer.encode("zebra")) > 3
    assert len(tokenizer.encode(CORPUS)) < 0.6 * len(CORPUS)
    assert tokenizer.vocab_size <= 300


def test_bpe_cuts_runs_that_are_longer_than_any_word_and_no_others():
    """Merging within runs would take the square of their length, hours for a genome on one line."""
    run = "".join(np.random.default_rng(0).choice(list("acgt"), 100_000))
    tokenizer = tokenizers.build("bpe:1000", run, [run])
    cut = tokenizer._tokenizer.pre_tokenizer.pre_tokenize_str
    assert max(len(piece) for piece, _ in cut(run)) == 256
    assert tokenizer.decode(tokenizer.encode(run)) == run
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    for text in (CORPUS, f" {'x' * 254} {'-' * 255}\n{' ' * 255}y {'7' * 255}"):
        assert [piece for piece, _ in cut(text)] == [piece for piece, _ in whole(text)]


@pytest.mark.parametrize("character", ["é", "中", " ", "\n", "𝔤"])
def test_bpe_gives_long_runs_of_any_character_back(character):
    for length in (255, 256, 257, 1000):
        text = character * length
        assert BUILT["bpe:300"].decode(BUILT["bpe:300"].encode(text)) == text


def test_unknown_character_is_named():
    with pytest.raises(UserError, match="'@' is not among"):
        BUILT["char"].encode("me@home")
    assert BUILT["char"].unknown("me@home") == {"@": 1}


def test_unknown_characters_are_replaced_and_counted():
    tokenizer = tokenizers.build("char", "abcd", ["ab", "c"], "replace")
    assert tokenizer.alphabet == "abc\ufffd"
    assert tokenizer.encode("adbdX").tolist() == [0, 3, 1, 3, 3]
    assert tokenizer.unknown("adbdX") == {"d": 2, "X": 1}
    assert tokenizers.replaced(tokenizer, {}) is None
    assert tokenizers.replaced(tokenizer, {"X": 1}) == "1 character outside the vocabulary ('X') is replaced by '\ufffd'."
    said = tokenizers.replaced(tokenizer, tokenizer.unknown("xyzzyvw!?"))
    assert said == "9 characters outside the vocabulary ('y', 'z', '!', '?', 'v' and 2 more) are replaced by '\ufffd'."
    copy = tokenizers.from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert copy.encode("aX").tolist() == [0, 3]
    with pytest.raises(UserError, match="'X' is not among"):
        tokenizers.with_unknown(copy, "refuse").encode("aX")


@pytest.mark.parametrize(("alphabet", "stand_in"), [("a\ufffd", "\ufffd"), (" ?a", "?"), (" a", " "), ("ab", "a")])
def test_a_vocabulary_without_a_replacement_takes_the_next_best(alphabet, stand_in):
    tokenizer = tokenizers.with_unknown(tokenizers.CharTokenizer(alphabet), "replace")
    assert tokenizer.decode(tokenizer.encode("a`")) == "a" + stand_in


@given(st.lists(st.text(st.sampled_from("ab1' \n\t\x1c\x85\u00a0!é"), max_size=30), max_size=8))
@example(["a\n\n\n    é!\n \t\n b1  \n"] * 5)
def test_parts_of_a_text_are_tokenised_as_the_whole_is(pieces):
    """Where a text is cut into pieces, no token of the whole reaches across."""
    text = "".join(pieces)
    library = BLANKS._tokenizer
    for parts in (sources.parted(text, 3), list(sources.cut(pieces, 10**9))):
        assert "".join(parts) == text
        assert [token for part in parts for token in library.encode(part).ids] == library.encode(text).ids


@given(st.lists(st.text(st.sampled_from("a \n"), max_size=30), max_size=8), st.integers(1, 9))
def test_pieces_have_one_to_two_times_their_size_and_lose_nothing(pieces, size):
    found = list(sources.cut(pieces, size))
    assert "".join(found) == "".join(pieces)
    assert all(size <= len(piece) <= 2 * size for piece in found[:-1])
    for at in range(len("".join(pieces)) + 1):
        before, after = sources.split(pieces, at)
        assert ("".join(before), "".join(after)) == ("".join(pieces)[:at], "".join(pieces)[at:])


def test_a_file_of_the_library_is_a_tokenizer(tmp_path):
    """Whose truncation, padding and special tokens are for other purposes."""
    library = tokenizers_library.Tokenizer.from_str(BUILT["bpe:300"].to_library())
    library.add_special_tokens(["<s>"])
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 300)])
    library.enable_truncation(5)
    library.enable_padding(length=5)
    library.save(str(tmp_path / "own.json"))
    tokenizer = tokenizers.build(str(tmp_path / "own.json"), "", [])
    assert tokenizer.vocab_size == 301
    np.testing.assert_array_equal(tokenizer.encode(CORPUS), BUILT["bpe:300"].encode(CORPUS))
    assert tokenizer.decode(tokenizer.encode(CORPUS)) == CORPUS
    copy = tokenizers.from_json(json.loads(json.dumps(tokenizer.to_json())))
    np.testing.assert_array_equal(copy.encode("The fox"), tokenizer.encode("The fox"))


@pytest.mark.parametrize("content", [b"{}", b"[", b"\xff", b"", b'{"version": "1.0", "model": {"type": "Magic"}}', None])
def test_a_file_that_is_no_tokenizer_is_told(tmp_path, content):
    if content is not None:
        (tmp_path / "own.json").write_bytes(content)
    with pytest.raises(UserError, match=r"^data\.tokenizer: .*own\.json is not a readable tokenizer\.json") as told:
        tokenizers.build(str(tmp_path / "own.json"), "", [])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", KINDS)
def test_token_out_of_range_is_named(kind):
    with pytest.raises(UserError, match="The token 100000 is outside"):
        BUILT[kind].decode(np.array([0, 100000]))
    with pytest.raises(UserError, match="The token -1 is outside"):
        BUILT[kind].decode(np.array([-1]))


@pytest.mark.parametrize("kind", ["byte", "bpe:300"])
def test_lone_surrogates_are_refused(kind):
    with pytest.raises(UserError, match="not valid Unicode"):
        BUILT[kind].encode("a\ud800")


def test_bytes_that_are_no_utf8_become_replacement_characters():
    assert BUILT["byte"].decode(np.array([0x61, 0xC3])) == "a�"


@pytest.mark.parametrize("damaged", [{}, {"kind": "char"}, {"kind": "bpe", "serialized": "{"}, {"kind": "words"}])
def test_a_damaged_saved_tokenizer_is_told(damaged):
    with pytest.raises(UserError, match="saved with this run"):
        tokenizers.from_json(damaged)
