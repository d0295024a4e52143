"""The corpus and its batches."""

import io
import os
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lior_jax import config as configuration
from lior_jax import data
from lior_jax.data import batches
from lior_jax.errors import UserError
from lior_jax.settings import Config


def corpus_of(tmp_path, text: str, *overrides: str):
    file = tmp_path / "corpus.txt"
    file.write_bytes(text.encode("utf-8"))
    return data.load(configuration.parse("model: {context: 8}", "test", [f"data.path={file}", *overrides]))


def test_the_split_keeps_order_and_never_overlaps(tmp_path):
    text = "".join(chr(0x4E00 + i) for i in range(1000))
    corpus = corpus_of(tmp_path, text)
    assert corpus.tokenizer.decode(corpus.train) + corpus.tokenizer.decode(corpus.validation) == text
    assert len(corpus.validation) == 100
    assert not set(corpus.train) & set(corpus.validation)


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("мир хорошо погода\nмир", "мир хорошо погода"),
        ("GCAT" * 50, "GCAT" * 6),
        ("\n\nChapter 1\nIt was", "\n\nChapter 1\nIt was\n\nChap"),
        ("ROMEO:\r\nO ", "ROMEO:"),
        (" \nx", " \nx" * 8),
    ],
)
@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe:300"])
def test_without_a_prompt_of_ones_own_the_beginning_of_the_text_is_it(tmp_path, text, prompt, tokenizer):
    corpus = corpus_of(tmp_path, text * 100, f"data.tokenizer={tokenizer}")
    config = data.with_vocabulary(Config(), corpus)
    assert config.sample.prompt == prompt
    data.check_sample(config, corpus)
    own = data.with_vocabulary(configuration.replace(Config(), "sample", prompt="x"), corpus)
    assert own.sample.prompt == "x"


def test_a_configuration_can_require_its_text(tmp_path, monkeypatch):
    config = configuration.parse("data: {path: required}", "x")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "required").write_text("not that one " * 1000)
    with pytest.raises(UserError, match=r"give it with --set data\.path=FILE"):
        data.load(config)
    assert data.load(configuration.replace(config, "data", path="./required")).train.size
    assert data.load(configuration.replace(config, "data", path=None)).train.size


def test_characters_per_token_counts_characters(tmp_path):
    corpus = corpus_of(tmp_path, "é" * 1000, "data.tokenizer=byte")
    assert corpus.characters_per_token == 0.5


def test_embedded_corpus_is_english_prose_and_needs_no_file():
    text, source = data.read_text(None)
    assert len(text) > 300_000
    assert text.count(" the ") > 1000
    assert "pydoc_data" in source


def test_folder_and_glob_join_files_in_order(tmp_path):
    for name, text in {"b.txt": "second", "a.txt": "first", "c.md": "third", ".hidden": "no"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "d.txt").write_text("fourth")
    assert data.read_text(str(tmp_path))[0] == "first\n\nsecond\n\nthird\n\nfourth"
    assert data.read_text(str(tmp_path / "*.txt"))[0] == "first\n\nsecond"
    assert data.read_text(str(tmp_path / "**" / "*.txt"))[0] == "first\n\nsecond\n\nfourth"


@pytest.mark.parametrize("path", ["nowhere.txt", "nowhere/*.txt"])
def test_missing_files_are_told(path):
    with pytest.raises(UserError, match=r"data\.path: there is no file"):
        data.read_text(path)


def test_a_byte_order_mark_is_no_character(tmp_path):
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfabc")
    assert data.read_text(str(tmp_path / "marked.txt"))[0] == "abc"


CONTENTS = {
    "windows": b"a\r\nb\r\n",
    "mac": b"a\rb\r",
    "mixed": b"\r\n\na\r\r\n",
    "marked": b"\xef\xbb\xbfa\r\nb",
    "blank": b" a \n ",
}


@pytest.mark.parametrize("name", CONTENTS)
def test_every_reader_keeps_every_character(tmp_path, name):
    """A corpus, a text to score or remember, and standard input are the same characters, line ends included."""
    file = tmp_path / "text.txt"
    file.write_bytes(CONTENTS[name])
    expected = CONTENTS[name].decode("utf-8-sig")
    assert data.read_text(str(file))[0] == data.read_file(file) == data.read_stream(io.BytesIO(CONTENTS[name])) == expected
    assert CONTENTS[name].endswith(expected.encode())


def test_every_reader_refuses_what_is_no_utf8_in_the_same_words(tmp_path):
    (tmp_path / "latin").write_bytes("naïve".encode("latin-1"))
    said = []
    for read, source in (
        (data.read_text, str(tmp_path / "latin")),
        (data.read_file, tmp_path / "latin"),
        (data.read_stream, io.BytesIO((tmp_path / "latin").read_bytes())),
    ):
        with pytest.raises(UserError) as refused:
            read(source)
        said.append(str(refused.value))
    assert said == [
        f"data.path: {tmp_path}/latin is not UTF-8 (byte 2); convert it.",
        f"{tmp_path}/latin is not UTF-8 (byte 2); convert it.",
        "Standard input is not UTF-8 (byte 2); convert it.",
    ]


@pytest.mark.parametrize(
    ("path", "message"),
    [("/dev/zero", "is a device"), (".", "is a folder"), ("nowhere", "cannot be read (No such"), ("a\0b", "cannot be read (")],
)
def test_what_is_no_file_is_refused_before_it_is_read(path, message):
    with pytest.raises(UserError, match=re.escape(message)):
        data.read_file(path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/dev/zero", "/dev/zero is a device, not a file"),
        ("/dev/null", "/dev/null is a device, not a file"),
        ("/dev/zer*", "there is no file at"),
        ("corpus.txt/below", "corpus.txt/below cannot be read: Not a directory"),
        ("x" * 300, "cannot be read: File name too long"),
        ("pipe", "pipe is a pipe, not a file"),
        ("empty", "there is no file at 'empty'"),
    ],
)
def test_paths_that_are_no_corpus_are_told_and_never_read(tmp_path, monkeypatch, path, message):
    """A device has no end, and a pipe without a writer no beginning."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=re.escape(message)):
        data.read_text(path)


@pytest.mark.parametrize("letters", ["ab c", "ab"])
@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe:300"])
def test_one_enormous_line_is_a_corpus_as_good_as_another(tmp_path, tokenizer, letters):
    text = "".join(np.random.default_rng(0).choice(list(letters), 300_000))
    corpus = corpus_of(tmp_path, text, f"data.tokenizer={tokenizer}")
    assert corpus.tokenizer.decode(corpus.train) + corpus.tokenizer.decode(corpus.validation) == text


@pytest.mark.parametrize(
    "content", [bytes(range(256)) * 10, b"text" + bytes([255]), "text".encode("utf-16"), "é".encode("latin-1")]
)
def test_what_is_not_utf8_is_told_with_its_place(tmp_path, content):
    (tmp_path / "binary").write_bytes(content)
    with pytest.raises(UserError, match=r"is not UTF-8 \(byte \d+\); convert it"):
        data.read_text(str(tmp_path / "binary"))


@pytest.mark.parametrize(
    ("tokenizer", "message"), [("char", "one character"), ("byte", "has 1 tokens"), ("bpe:300", "has 1 tokens")]
)
def test_a_corpus_of_one_character_is_told(tmp_path, tokenizer, message):
    with pytest.raises(UserError, match=message):
        corpus_of(tmp_path, "a", f"data.tokenizer={tokenizer}")


def test_one_character_over_and_over_is_told(tmp_path):
    with pytest.raises(UserError, match="consists of one character"):
        corpus_of(tmp_path, "a" * 1000)


def test_empty_and_binary_files_are_told(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.dat").write_bytes(b"ab\xff\xfe")
    with pytest.raises(UserError, match="there is no text"):
        data.read_text(str(tmp_path / "empty.txt"))
    with pytest.raises(UserError, match=r"is not UTF-8 \(byte 2\)"):
        data.read_text(str(tmp_path / "binary.dat"))


@pytest.mark.parametrize(("text", "part"), [("abcdefgh", "training"), ("abcdefgh" * 5, "validation")])
def test_too_short_a_text_is_told(tmp_path, text, part):
    with pytest.raises(UserError, match=f"The {part} part"):
        corpus_of(tmp_path, text)


shapes = st.tuples(st.integers(2, 9), st.integers(1, 120), st.integers(1, 7), st.integers(0, 2**32 - 1))


@given(shapes)
def test_batches_are_windows_of_the_text_with_targets_one_later(shape):
    context, extra, batch, seed = shape
    tokens = np.arange(context + extra, dtype=np.int32)
    for step in range(12):
        inputs, targets = data.batch_at(tokens, seed, step, batch, context)
        assert inputs.shape == targets.shape == (batch, context)
        np.testing.assert_array_equal(targets, inputs + 1)
        np.testing.assert_array_equal(np.diff(inputs), 1)
        assert inputs.min() >= 0
        assert targets.max() < len(tokens)


@given(shapes)
def test_batches_depend_on_seed_and_step_alone(shape):
    context, extra, batch, seed = shape
    tokens = np.arange(context + extra, dtype=np.int32)
    forward = [data.batch_at(tokens, seed, step, batch, context)[0] for step in range(6)]
    batches._epoch.cache_clear()
    backward = [data.batch_at(tokens, seed, step, batch, context)[0] for step in reversed(range(6))]
    np.testing.assert_array_equal(forward, backward[::-1])


def test_an_epoch_reads_every_token_once_and_epochs_differ():
    tokens, context = np.arange(1003, dtype=np.int32), 10
    windows = (1003 - context) // context
    rows = np.stack([data.batch_at(tokens, 5, step, 1, context)[0][0] for step in range(3 * windows)])
    epochs = rows.reshape(3, -1)
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == windows * context
    assert not np.array_equal(epochs[0], epochs[1])
    assert len({epoch.min() for epoch in epochs}) > 1


def test_another_seed_gives_another_order():
    tokens = np.arange(5000, dtype=np.int32)
    assert not np.array_equal(data.batch_at(tokens, 0, 0, 8, 16)[0], data.batch_at(tokens, 1, 0, 8, 16)[0])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000])
def test_a_shuffle_without_a_table_is_a_permutation(count):
    for keys in ((1, 2, 3, 4, 5, 6), (2**64 - 1, 0, 7, 7, 2**40, 9)):
        assert sorted(batches.shuffled(place, count, keys) for place in range(count)) == list(range(count))


def test_a_shuffle_without_a_table_is_as_good_as_one_with():
    """Over 4,000 keys every place goes everywhere equally often, and neighbours part: chi-square of 16 and of 240 cells."""
    random, count, draws = np.random.default_rng(0), 16, 4000
    found = np.empty((draws, 2), int)
    for row in found:
        keys = tuple(random.integers(2**64, size=6, dtype=np.uint64).tolist())
        row[:] = batches.shuffled(3, count, keys), batches.shuffled(4, count, keys)
    singles = np.bincount(found[:, 0], minlength=count)
    pairs = np.bincount(found[:, 0] * count + found[:, 1], minlength=count * count)[~np.eye(count, dtype=bool).ravel()]
    for counts in (singles, pairs):
        freedom, expected = len(counts) - 1, draws / len(counts)
        assert abs(((counts - expected) ** 2 / expected).sum() - freedom) < 5 * np.sqrt(2 * freedom)


def test_long_texts_are_gone_through_like_short_ones(monkeypatch):
    """The table of an epoch's order is for speed alone; without it, too, an epoch reads every token once."""
    monkeypatch.setattr(batches, "TABLE", 10)
    batches._epoch.cache_clear()
    test_an_epoch_reads_every_token_once_and_epochs_differ()
    test_another_seed_gives_another_order()
    batches._epoch.cache_clear()


def test_batches_are_what_they_have_been():
    """Runs that were begun with an earlier version go on with the same batches."""
    tokens = np.arange(1000, dtype=np.int32)
    random = np.random.default_rng((7, 0))
    first, order = random.integers(10), random.permutation(99)
    found = [data.batch_at(tokens, 7, step, 3, 10)[0][:, 0] for step in range(33)]
    np.testing.assert_array_equal(np.concatenate(found), first + order * 10)


@given(shapes, st.integers(0, 7), st.integers(0, 7))
def test_a_part_of_a_batch_is_that_of_the_whole(shape, first, last):
    """What each of several processes reads."""
    context, extra, batch, seed = shape
    tokens = np.arange(context + extra, dtype=np.int32)
    for step in range(4):
        whole = data.batch_at(tokens, seed, step, batch, context)
        rows = slice(min(first, batch - 1), max(min(first, batch - 1) + 1, min(last, batch)))
        for part, all_rows in zip(data.batch_at(tokens, seed, step, batch, context, rows), whole, strict=True):
            np.testing.assert_array_equal(part, all_rows[rows])
