"""JSON lines of prompts."""

import json

import pytest

from lior_jax.errors import UserError
from lior_jax.inference import Engine, prompts


@pytest.fixture(scope="module")
def engine(finished_run):
    return Engine.from_checkpoint(finished_run)


def test_every_line_gets_what_it_gets_alone(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "BATCH", 3)
    texts = ["1 is", "5", "9 is 4 and 1, 16"]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": text, "name": text[0]}) for text in texts) + "\n\n")
    found = list(prompts.complete(prompts.read(file, engine), engine, 2, max_tokens=9, seed=4))
    assert found == [
        {"prompt": text, "name": text[0], "sample": sample}
        | {"completion": engine.generate(text, max_tokens=9, seed=4, sample=sample)}
        for text in texts
        for sample in (0, 1)
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompts"),
        ('{"prompt": "1"}\n{"prompt"', "Line 2 of .* is not JSON"),
        ('["1"]', 'Line 1 of .* has no "prompt"'),
        ('{"prompt": 1}', 'Line 1 of .* has no "prompt"'),
        ('{"prompt": ""}', "Line 1 of .*: The prompt is empty"),
        ('\n{"prompt": "@"}', "Line 2 of .*'@' is not among"),
        ("[" * 100_000, "Line 1 of .* is not JSON"),
        ('{"prompt": "1", "n": ' + "9" * 10_000 + "}", "Line 1 of .* is not JSON"),
        ('{"prompt": "1"}\n{"prompt": "1", "completion": "mine"}', 'Line 2 of .* has a "completion" of its own'),
    ],
)
def test_a_bad_line_is_named_before_anything_is_decoded(engine, tmp_path, text, message):
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        prompts.read(file, engine)


def test_a_missing_file_is_told(engine, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        prompts.read(tmp_path / "nowhere.jsonl", engine)


def test_a_byte_order_mark_and_windows_line_ends_belong_to_no_prompt(engine, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "1 is"}\r\n\r\n{"prompt": "5"}\r\n')
    assert prompts.read(file, engine) == [{"prompt": "1 is"}, {"prompt": "5"}]


def test_the_number_of_a_sample_is_a_key_of_the_users_unless_it_is_added(engine, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "1", "sample": "human"}')
    (found,) = prompts.complete(prompts.read(file, engine), engine, 1, max_tokens=2)
    assert found["sample"] == "human"
    with pytest.raises(UserError, match=r'Line 1 of .* has a "sample" of its own'):
        prompts.read(file, engine, samples=2)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("text", ["plain", "naïve", "привет", "\ud800"])
def test_a_line_is_json_in_every_encoding(encoding, text):
    item = {"prompt": text, text: 1}
    line = prompts.to_line(item, encoding)
    assert json.loads(line.encode(encoding).decode(encoding)) == item
    assert "\n" not in line
