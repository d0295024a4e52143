"""The benchmark of both rules against exact gradients: what it finds at tiny shapes."""

import json

import fidelity
import pytest

TINY = ["model.context=8", "model.width=12", "model.blocks=2", "model.heads=2", "model.flow.units=8"]
TINY += ["model.geometry.chart_dim=4", "model.geometry.rotor_layers=1", "optimizer.warmup_steps=2", "training.batch_size=2"]


@pytest.mark.slow
def test_both_rules_follow_the_exact_gradient_while_they_train(tmp_path, capsys):
    results = {rule: fidelity.measure(rule, (0, 6), TINY) for rule in fidelity.RULES}
    for rule, by_step in results.items():
        for step, parts in by_step.items():
            assert {"embedding", "readout", "blocks.value", "blocks.value 1"} <= parts.keys(), (rule, step)
            assert min(cosine for cosine, _ in parts.values()) > 0.999, (rule, step)
            assert all(abs(ratio - 1) < 0.02 for _, ratio in parts.values()), (rule, step)
    (tmp_path / "found.json").write_text(json.dumps(results))
    fidelity.main(["--plot", str(tmp_path / "found.json")])
    assert "| equilibrium | 6 |" in capsys.readouterr().out
    assert (tmp_path / "found.png").stat().st_size > 0
