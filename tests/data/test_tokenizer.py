"""Tokenizers: round trips, saved copies, and what they refuse."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from lior_jax.data import tokenizer as tokenizers
from lior_jax.errors import UserError

CORPUS = "The quick brown fox — naïve, déjà vu — jumps over the lazy dog. " * 30
KINDS = ["byte", "char", "bpe:300"]
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
