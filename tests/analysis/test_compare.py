"""Runs side by side: figures as they were recorded, time as the speeds give it, and only what differs."""

import json

import numpy as np
import pytest
import yaml

from lior_jax import config as configuration
from lior_jax.analysis import compare
from lior_jax.errors import UserError
from lior_jax.training import environment
from tests.runs import TINY

TOKENS = 4 * 16
"""Tokens per step of the tiny configuration."""


def train(step, speed=None):
    line = {"kind": "train", "step": step, "loss": 3.0 - step / 10}
    return line if speed is None else line | {"tokens_per_second": speed}


def validation(step, nats):
    return {"kind": "validation", "step": step, "nats_per_token": 2 * nats, "nats_per_character": nats}


def write_run(folder, lines, *overrides, summary=None):
    folder.mkdir(parents=True)
    config = configuration.parse(TINY, "tiny", [f"run.directory={folder}", *overrides])
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump()))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def rows_of(text):
    """Cells by label."""
    lines = [line.split("  ") for line in text.splitlines() if line.strip()]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:] if cell.strip()] for cells in lines}


def test_a_table_has_what_was_recorded_and_what_differs(tmp_path):
    lines = [train(2, 100.0), validation(2, 1.75), train(4, 300.0), validation(4, 1.875)]
    one = write_run(tmp_path / "one", lines, "data.path=a", summary={"nats_per_character": 1.5, "parameters": 12345})
    two = write_run(tmp_path / "two", lines[:2], "data.path=a", "model.retrieval.products=[wedge]", "model.flow.units=8")
    text, path = compare.compare([one, two])
    rows = rows_of(text)
    assert rows["whole validation part, best, nats/char"] == ["1.5000", "–"]
    assert rows["evaluations, best, nats/char"] == ["1.7500 (step 2)", "1.7500 (step 2)"]
    assert rows["evaluations, last, nats/char"] == ["1.8750", "1.7500"]
    assert rows["training, last lines, nats/token"] == ["2.7000", "2.8000"]
    assert rows["parameters"] == ["12,345", "–"]
    assert rows["tokens read"] == [str(4 * TOKENS), str(2 * TOKENS)]
    assert rows["tokens/s, median"] == ["200", "100"]
    assert rows["model.flow.units"] == ["16", "8"]
    assert rows["model.retrieval.products"] == ["[]", "[wedge]"]
    assert not [label for label in rows if label.startswith(("run.", "data.", "optimizer."))]
    assert "minutes of all sessions" not in rows  # no run has a record of them
    assert path == one / "comparison.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_seconds_come_from_the_speeds(tmp_path):
    """Two steps at 64 tokens/s are 2 s; one without a speed is as fast as the median of 64 and 32; then two at 32."""
    lines = [train(2, 64.0), train(3), train(5, 32.0), validation(1, 3.0), validation(3, 2.0), validation(5, 1.0)]
    (run,) = compare.read([write_run(tmp_path / "one", [*lines, validation(6, 0.5)])])
    curve = compare.curve(run)
    middle = TOKENS / 48
    np.testing.assert_allclose(curve.seconds, [1, 2 + middle, 2 + middle + 4, 2 + middle + 4 + middle])
    np.testing.assert_allclose(curve.tokens, np.array([1, 3, 5, 6]) * TOKENS)
    np.testing.assert_allclose(curve.nats, [3, 2, 1, 0.5])


def test_time_of_all_sessions_is_theirs(tmp_path):
    run = write_run(tmp_path / "one", [train(1, 10.0)])
    times = [("2026-01-01T10:00:00Z", "2026-01-01T10:30:00Z"), ("2026-01-02T23:50:00Z", "2026-01-03T00:05:00Z")]
    sessions = [{"begin": begin, "end": end} for begin, end in times] + [{"begin": "2026-01-04T00:00:00Z", "end": None}]
    (run / environment.FILE).write_text(json.dumps({"sessions": sessions}))
    assert rows_of(compare.table(compare.read([run])))["minutes of all sessions"] == ["45.0"]


def test_the_picture_draws_every_run_over_steps_tokens_and_seconds(tmp_path):
    lines = [train(2, 64.0), validation(2, 2.0), train(4, 64.0), validation(4, 1.0)]
    runs = compare.read([write_run(tmp_path / name, lines) for name in ("one", "two")])
    panels = compare.picture(runs).axes
    for panel, expected in zip(panels, ([2, 4], [2 * TOKENS, 4 * TOKENS], [2, 4]), strict=True):
        assert [line.get_label() for line in panel.lines] == ["one", "two"]
        np.testing.assert_allclose(panel.lines[1].get_xdata(), expected)
        np.testing.assert_allclose(panel.lines[1].get_ydata(), [2, 1])


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    folders = [write_run(tmp_path / name, [train(1)]) for name in ("a/run", "b/run")]
    assert [run.name for run in compare.read(folders)] == ["a/run", "b/run"]
    with pytest.raises(UserError, match="same run is named twice"):
        compare.read([folders[0], folders[0]])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [("data.path=b", "different texts"), ("training.eval_windows=3", "different windows"), ("run.seed=1", "")],
)
def test_losses_that_cannot_be_compared_are_named(tmp_path, override, sentence):
    runs = [write_run(tmp_path / "one", [train(1)]), write_run(tmp_path / "two", [train(1)], override)]
    text = compare.table(compare.read(runs))
    assert (sentence in text) if sentence else ("different" not in text)


def test_a_run_that_has_not_begun_is_no_fault(tmp_path):
    text, _ = compare.compare([write_run(tmp_path / "one", []), write_run(tmp_path / "two", [])])
    assert "The configurations are the same." in text


def test_a_finished_run_is_read_as_it_is(finished_run):
    (run,) = compare.read([finished_run])
    summary = json.loads((finished_run / "summary.json").read_text())
    rows = rows_of(compare.table([run]))
    assert rows["whole validation part, best, nats/char"] == [f"{summary['nats_per_character']:.4f}"]
    assert rows["steps"] == ["12"]
    curve = compare.curve(run)
    assert np.all(np.diff(curve.seconds) > 0)


def test_no_run_and_a_damaged_one_are_named(tmp_path):
    with pytest.raises(UserError, match="There is no run"):
        compare.read([tmp_path / "none"])
    run = write_run(tmp_path / "one", [train(1)])
    (run / "summary.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        compare.read([run])
