"""The benchmark of the estimate: its script prints what it measured, and the measurements are as the docs say."""

import json

import gradient_sweep
import pytest

TINY = ["--axes", "blocks", "--width", "16", "--context", "16", "--tokens", "64", "--repeat", "1"]


@pytest.mark.slow
def test_the_sweep_agrees_with_autodiff_and_keeps_less_the_deeper_the_network(tmp_path, capsys):
    gradient_sweep.main([*TINY, "--at", "2", "8", "--out", str(tmp_path / "swept")])
    results = json.loads((tmp_path / "swept.json").read_text())
    few, many = (results["axes"]["blocks"][blocks] for blocks in ("2", "8"))
    for rows in (few, many):
        for name, row in rows.items():
            assert row["cosine"] > 0.9999, name
            assert row["error"] < 1e-3, name
    grown = {name: many[name]["memory"] - few[name]["memory"] for name in many}
    assert grown["echo, carried momentum"] < grown["echo"] < grown["autodiff"] / 3
    told = capsys.readouterr().out
    (tmp_path / "swept.png").unlink()
    gradient_sweep.main(["--plot", str(tmp_path / "swept.json")])
    assert (tmp_path / "swept.png").stat().st_size > 0
    table = capsys.readouterr().out
    assert told.endswith(table)
    assert table.count("| 8 |") == 1
