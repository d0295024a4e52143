"""Stored measurements: the tables of docs/results.md are those that the benchmarks print from docs/*.json."""

import shutil
from pathlib import Path

import depth
import gradient_sweep
import language
import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("script", "name"), [(depth, "depth"), (gradient_sweep, "gradient"), (language, "language")])
def test_tables_of_the_docs_are_those_of_the_stored_measurements(script, name, tmp_path, capsys):
    shutil.copy(DOCS / f"{name}.json", tmp_path)
    script.main(["--plot", str(tmp_path / f"{name}.json")])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    page = (DOCS / "results.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) > 4
    assert not set(rows) - set(page)
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
