"""Files of every kind as one text, and what is said of those that are none."""

import builtins
import gzip
import json
import sys

import pytest

from lior_jax import config as configuration
from lior_jax import data
from lior_jax.data import readers
from lior_jax.errors import UserError
from lior_jax.registry import READERS

TEXTS = ["first\r\nline", "naïve — 中文 𝔤\n", "third"]
LINES = "".join(json.dumps({"id": 3, "text": text}, ensure_ascii=False) + "\n" for text in TEXTS)
JOINED = "\n\n".join(TEXTS)


def packed_by(end, content):
    if end == ".gz":
        return gzip.compress(content)
    if end == ".zst":
        return pytest.importorskip("zstandard").compress(content)
    return content


def written(path, content: bytes):
    path.write_bytes(packed_by(path.suffix, content))
    return str(path)


@pytest.mark.parametrize("chunk", [1, 2, 3, 2**18])
@pytest.mark.parametrize("end", ["", ".gz", ".zst"])
def test_every_packing_and_every_chunk_gives_every_character(tmp_path, monkeypatch, end, chunk):
    monkeypatch.setattr(readers, "_CHUNK", chunk)
    content = b"\xef\xbb\xbf" + JOINED.encode()
    assert data.read_text(written(tmp_path / f"text.txt{end}", content))[0] == JOINED
    assert data.read_text(written(tmp_path / f"lines.jsonl{end}", LINES.encode()))[0] == JOINED


def test_json_lines_have_texts_in_a_field_and_empty_ones_are_passed_over(tmp_path):
    lines = ['{"body": ""}', "", '{"body": "one"}', "  ", '{"body": "two", "text": 3}', '{"body": ""}']
    path = written(tmp_path / "lines.JSONL", "\n".join(lines).encode())
    assert data.read_text(path, "body")[0] == "one\n\ntwo"


def test_parquet(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(readers, "_ROWS", 2)
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"body": ["", *TEXTS], "n": [1, 2, 3, 4]}), path)
    assert data.read_text(str(path), "body")[0] == JOINED
    for field, message in (("text", 'has no column "text"; set data.field'), ("n", 'Row 1 of .* has no text "n"')):
        with pytest.raises(UserError, match=message):
            data.read_text(str(path), field)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"rows\.parquet is damaged"):
        data.read_text(str(path), "body")


def test_a_folder_holds_files_of_all_kinds(tmp_path):
    written(tmp_path / "a.txt", b"plain")
    written(tmp_path / "b.jsonl.gz", LINES.encode())
    written(tmp_path / "c.jsonl", b"")
    written(tmp_path / "d.md.gz", b"last")
    expected = "\n\n".join(["plain", JOINED, "last"])
    assert data.read_text(str(tmp_path))[0] == expected
    assert data.read_text(str(tmp_path / "*.gz"))[0] == f"{JOINED}\n\nlast"
    config = configuration.parse("model: {context: 2}", "x", [f"data.path={tmp_path}"])
    corpus = data.load(config)
    assert corpus.tokenizer.decode(corpus.train) + corpus.tokenizer.decode(corpus.validation) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"prose", r'Line 3 of .* is not JSON; write {"text": "..."} on each line'),
        (b"[" * 100_000, "Line 3 of .* is not JSON"),
        (b'{"txt": "a"}', r'Line 3 of .* has no text "text"; set data\.field to the key'),
        (b'["text"]', 'Line 3 of .* has no text "text"'),
        (b'{"text": 3}', 'Line 3 of .* has no text "text"'),
        (b'{"text": "\\ud800"}', "Line 3 of .* has half a character"),
        (b'{"text": "\xff"}', "Line 3 of .* is not UTF-8"),
        (b'{"text": "' + b"x" * 200 + b'"}', "Line 3 of .* has more than 100 bytes"),
    ],
)
def test_a_line_without_a_text_is_told_by_its_number(tmp_path, monkeypatch, line, message):
    if "100" in message:
        monkeypatch.setattr(readers, "_LONGEST_LINE", 100)
    path = written(tmp_path / "lines.jsonl", b'{"text": "a"}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=r"^data\.path: " + message) as told:
        data.read_text(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("end", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["text.txt", "lines.jsonl"])
def test_a_packed_file_that_is_damaged_or_cut_short_is_told(tmp_path, name, end):
    path = tmp_path / (name + end)
    written(path, LINES.encode() * 50)
    whole = path.read_bytes()
    for damaged in (whole[:-3], whole[: len(whole) // 2], b"never packed " * 10):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"is damaged or cut short \("):
            data.read_text(str(path))


def test_several_frames_are_one_text(tmp_path):
    for end in (".gz", ".zst"):
        path = tmp_path / f"text{end}"
        path.write_bytes(b"".join(packed_by(end, part.encode()) for part in ("one ", "two ", "three")))
        assert data.read_text(str(path))[0] == "one two three"


@pytest.mark.parametrize(("name", "package"), [("text.zst", "zstandard"), ("rows.parquet", "pyarrow")])
def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch, name, package):
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    found = builtins.__import__

    def missing(name, *rest):
        if name.split(".")[0] in (package, "compression"):
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"needs the package {package}, which is not installed: pip install {package}"):
        data.read_text(str(tmp_path / name))


@pytest.mark.parametrize("chunk", [1, 4, 2**18])
def test_the_place_of_what_is_no_utf8_is_that_in_the_file(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(readers, "_CHUNK", chunk)
    broken = {b"ab\xff": 2, "é中".encode() + b"\xe4\xb8": 5, ("中" * 9).encode() + b"\x80x": 27, b"ab\xc3(": 2}
    for content, place in broken.items():
        (tmp_path / "text").write_bytes(content)
        with pytest.raises(UserError, match=rf"is not UTF-8 \(byte {place}\)"):
            data.read_text(str(tmp_path / "text"))


def test_a_reader_of_ones_own(tmp_path):
    def shouted(path, field):
        yield path.read_text().upper(), 3

    READERS.register(".loud", shouted)
    try:
        (tmp_path / "text.loud").write_text("quiet")
        assert data.read_text(str(tmp_path))[0] == "QUIET"
    finally:
        del READERS._entries[".loud"]
