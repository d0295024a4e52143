"""Long texts: what is in the cache is what would have been in memory, made once, and not believed when it has changed."""

import errno
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lior_jax import config as configuration
from lior_jax import data
from lior_jax.data import corpus as corpora
from lior_jax.data import shards, sources
from lior_jax.data import tokenizer as tokenizers
from lior_jax.errors import UserError
from lior_jax.storage import checkpoint

ROOT = Path(__file__).parents[2]
TEXT = "".join(f"{i * i % 97} is ‘{i % 7}’ and\n{'é' * (i % 5)}, \n\n" for i in range(700))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of the test's own, and pieces so small that there are many."""
    monkeypatch.setenv("LIOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "PIECE", 100)


def settings(tmp_path, *overrides):
    file = tmp_path / "corpus.txt"
    if not file.exists():
        file.write_text(TEXT)
    return configuration.parse("model: {context: 8}", "test", [f"data.path={file}", *overrides])


def both(config, monkeypatch, saved=None, another=False):
    """The corpus of a configuration in memory, and from the cache."""
    short = data.load(config, saved, another)
    monkeypatch.setattr(corpora, "IN_MEMORY", 1000)
    return short, data.load(config, saved, another)


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe:300"])
def test_a_long_text_is_the_same_corpus_as_a_short_one(tmp_path, monkeypatch, tokenizer):
    short, long = both(settings(tmp_path, f"data.tokenizer={tokenizer}"), monkeypatch)
    assert short.folder is None
    assert long.folder.is_relative_to(tmp_path / "cache" / "text")
    assert long.train.dtype == long.validation.dtype == np.uint16
    for name in ("train", "validation"):
        np.testing.assert_array_equal(getattr(long, name), getattr(short, name))
    assert long.tokenizer.to_json() == short.tokenizer.to_json()
    for name in ("characters_per_token", "fingerprint", "beginning", "unknown"):
        assert getattr(long, name) == getattr(short, name), name
    for step in range(3):
        for a, b in zip(*(data.batch_at(x.train, 1, step, 4, 8) for x in (short, long)), strict=True):
            assert b.dtype == np.int32
            np.testing.assert_array_equal(a, b)


def test_tokens_of_a_large_vocabulary_have_32_bits(tmp_path, monkeypatch):
    (tmp_path / "corpus.txt").write_text("".join(map(chr, range(0x10000, 0x10000 + 70_000))))
    short, long = both(settings(tmp_path), monkeypatch)
    assert long.train.dtype == np.uint32
    np.testing.assert_array_equal(long.train, short.train)
    assert long.train.max() > 2**15


def test_a_tokenizer_of_a_file_is_known_by_what_it_holds(tmp_path, monkeypatch):
    library = tokenizers.BpeTokenizer.train(["is and 7 " * 50], 262).to_library()
    (tmp_path / "own.json").write_text(library)
    config = settings(tmp_path, f"data.tokenizer={tmp_path}/own.json")
    short, long = both(config, monkeypatch)
    np.testing.assert_array_equal(long.train, short.train)
    assert long.tokenizer.to_json() == short.tokenizer.to_json()
    (tmp_path / "own.json").rename(tmp_path / "moved.json")
    moved = configuration.replace(config, "data", tokenizer=str(tmp_path / "moved.json"))
    assert data.load(moved).folder == long.folder
    saved = checkpoint.Metadata({}, long.tokenizer.to_json(), long.fingerprint)
    assert data.load(moved, saved).folder == long.folder
    (tmp_path / "moved.json").write_text(tokenizers.BpeTokenizer.train(["and so on " * 50], 262).to_library())
    assert data.load(moved).folder != long.folder


def test_a_text_is_tokenised_once_wherever_it_lies_and_a_changed_one_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "IN_MEMORY", 1000)
    done = []
    report = lambda what, *_: done.append(what)  # noqa: E731
    first = data.load(settings(tmp_path), report=report)
    assert {"checking", "reading", "tokenising"} <= set(done)
    done.clear()
    (tmp_path / "corpus.txt").rename(tmp_path / "moved.txt")
    moved = configuration.replace(settings(tmp_path), "data", path=str(tmp_path / "moved.txt"))
    second = data.load(moved, report=report)
    assert set(done) == {"checking"}
    assert second.folder == first.folder
    (tmp_path / "moved.txt").write_text(TEXT.replace("is", "@@"))
    third = data.load(moved)
    assert third.folder != first.folder
    assert "@@" in third.tokenizer.decode(third.train)


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "changed":
        content[len(content) // 2] ^= 1
    path.unlink()
    if how != "missing":
        path.write_bytes(content[:-1] if how == "cut short" else content)


@pytest.mark.parametrize("how", ["changed", "cut short", "missing"])
@pytest.mark.parametrize("name", ["train.tokens", "validation.tokens", "about.json"])
def test_damaged_tokens_are_made_anew(tmp_path, monkeypatch, name, how):
    monkeypatch.setattr(corpora, "IN_MEMORY", 1000)
    done, before = [], data.load(settings(tmp_path))
    tokens = before.train.copy()
    damaged(before.folder / name, how)
    after = data.load(settings(tmp_path), report=lambda what, *_: done.append(what))
    np.testing.assert_array_equal(after.train, tokens)
    expected = f"{name} is missing" if how == "missing" else f"{name} has changed"
    assert f"tokenising anew ({expected})" in done


def test_of_two_who_start_at_once_one_makes_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "IN_MEMORY", 1000)
    config, said = settings(tmp_path), [[], []]

    def load(done):
        return data.load(config, report=lambda what, *_: done.append(what))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(load, said)
    np.testing.assert_array_equal(first.train, second.train)
    assert first.folder == second.folder
    assert ["tokenising" in done for done in said].count(True) == 1


@pytest.mark.slow
def test_two_processes_at_once_make_one_text(tmp_path):
    program = (
        "import sys; from lior_jax import config, data; from lior_jax.data import corpus; corpus.IN_MEMORY = 1000\n"
        "said = []; made = data.load(config.load(sys.argv[1]), report=lambda what, *_: said.append(what))\n"
        "print(made.train.sum(), made.folder, 'tokenising' in said)"
    )
    config = settings(tmp_path, "data.tokenizer=bpe:300")
    (tmp_path / "config.yaml").write_text(f"model: {{context: 8}}\ndata: {{path: {config.data.path}, tokenizer: 'bpe:300'}}")
    command = [sys.executable, "-c", program, str(tmp_path / "config.yaml")]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120)[0].split() for process in both]
    assert len({tuple(words[:2]) for words in said}) == 1
    assert sorted(words[2] for words in said) == ["False", "False", "True"]


def test_what_a_killed_process_left_is_no_text_and_no_hindrance(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "IN_MEMORY", 1000)

    class Killed(BaseException):
        pass

    def kill(what, done, total):
        if what == "tokenising" and done > total / 2:
            raise Killed

    monkeypatch.setattr(shards.files, "tidy", lambda *_: None)  # which a killed one has no time for
    with pytest.raises(Killed):
        data.load(settings(tmp_path), report=kill)
    assert list((tmp_path / "cache").rglob(".saving-shards/train.tokens"))
    monkeypatch.undo()
    monkeypatch.setenv("LIOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpora, "IN_MEMORY", 1000)
    made = data.load(settings(tmp_path))
    assert made.tokenizer.decode(made.train) + made.tokenizer.decode(made.validation) == TEXT
    assert not list((tmp_path / "cache").rglob(".saving*"))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "IN_MEMORY", 1000)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "_encode", full)
    with pytest.raises(UserError, match=r"cannot be written to .* \(No space left on device\); make room .* LIOR_CACHE\.$"):
        data.load(settings(tmp_path))
    assert {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()} <= {"lock", "lock.holder"}


def test_a_cache_that_is_no_folder_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "IN_MEMORY", 1000)
    monkeypatch.setenv("LIOR_CACHE", str(tmp_path / "corpus.txt"))
    with pytest.raises(UserError, match=r"cannot be written to .* \(Not a directory\)"):
        data.load(settings(tmp_path))


def test_a_text_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "IN_MEMORY", 1000)

    def change(what, done, total):
        if what == "tokenising" and done == total:
            (tmp_path / "corpus.txt").write_text("another " * 1000)

    with pytest.raises(UserError, match="changed while it was read; start again"):
        data.load(settings(tmp_path), report=change)


def test_a_resumed_run_finds_its_text_and_takes_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "IN_MEMORY", 1000)
    config = settings(tmp_path, "data.tokenizer=bpe:300")
    made = data.load(config)
    saved = checkpoint.Metadata({}, json.loads(json.dumps(made.tokenizer.to_json())), made.fingerprint)
    assert data.load(config, saved).folder == made.folder
    (tmp_path / "corpus.txt").write_text(TEXT.replace("is", "@@"))
    with pytest.raises(UserError, match="is not the corpus that"):
        data.load(config, saved)
    other = data.load(config, saved, another=True)
    assert other.tokenizer.to_json() == made.tokenizer.to_json()
    assert other.tokenizer.decode(other.train).startswith("0 @@")


def test_bpe_learns_from_evenly_spaced_pieces_of_a_long_text(tmp_path, monkeypatch):
    (tmp_path / "corpus.txt").write_text("zebra " * 30_000 + "otter " * 30_000 + "never " * 5000)
    config = settings(tmp_path, "data.tokenizer=bpe:300")
    monkeypatch.setattr(shards, "SAMPLE", 100_000)
    source = sources.find(config.data.path)
    sample = "".join(shards._sample(source, 351_000, "bpe:300"))
    assert 50_000 <= len(sample) <= 100_000 + 2**15
    assert "never" not in sample
    counts = [sample.count(word) for word in ("zebra", "otter")]
    assert max(counts) < 2 * min(counts)


def test_no_piece_is_longer_than_two(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(corpora, "IN_MEMORY", 1000)
    encode = shards._encode
    monkeypatch.setattr(shards, "_encode", lambda words, piece, unknown: seen.append(piece) or encode(words, piece, unknown))
    (tmp_path / "corpus.txt").write_text(TEXT + "x" * 5000)
    data.load(settings(tmp_path))
    assert max(map(len, seen)) <= 200
    assert "".join(seen) == TEXT + "x" * 5000
