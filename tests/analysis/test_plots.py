"""The loss curve draws what the metrics say."""

import numpy as np

from lior_jax.analysis import plots


def test_loss_curve_draws_every_point_and_marks_the_best():
    steps = np.arange(1, 201)
    lines = [{"kind": "train", "step": int(step), "loss": 4 / step + 1.5} for step in steps]
    lines += [
        {"kind": "validation", "step": step, "nats_per_token": value} for step, value in ((100, 1.9), (150, 1.7), (200, 1.8))
    ]
    axes = plots.loss_curve(lines, "a title").axes[0]
    drawn = {line.get_label(): line.get_xydata() for line in axes.lines}
    np.testing.assert_allclose(drawn["training, one batch"], np.stack([steps, 4 / steps + 1.5], 1))
    np.testing.assert_allclose(drawn["validation"], [(100, 1.9), (150, 1.7), (200, 1.8)])
    assert [text.get_text() for text in axes.texts] == ["1.700"]
    assert axes.get_title(loc="left") == "a title"


def test_loss_curve_of_a_run_without_validation():
    axes = plots.loss_curve([{"kind": "train", "step": 10, "loss": 3.0}]).axes[0]
    assert len(axes.lines) == 1
