"""The benchmark of deep networks: what it promises of 48 blocks holds at any depth."""

import json

import depth
import pytest

TINY = ["model.blocks=5", "model.width=16", "model.context=16", "model.flow.units=16", "training.steps=8"]


@pytest.mark.slow
def test_the_estimate_stays_exact_and_the_way_back_open(tmp_path, capsys):
    measured = depth.measure([*TINY, "optimizer.warmup_steps=2", "learning.chunk=4"])
    assert min(measured["cosine_before"], measured["cosine_after"]) > 0.999
    assert max(measured["residuals"]) < 1e-4
    assert measured["losses"][-1] < measured["losses"][0]
    (tmp_path / "deep.json").write_text(json.dumps({"step 1": measured}))
    depth.main(["--plot", str(tmp_path / "deep.json")])
    assert f"| {max(measured['residuals']):.0e} | {measured['cosine_before']:.6f} |" in capsys.readouterr().out
    assert (tmp_path / "deep.png").stat().st_size > 0
