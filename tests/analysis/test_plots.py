"""Figures draw what they are given, and name it."""

import numpy as np
import pytest

from lior_jax.analysis import plots


def drawn(axes):
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def train_lines(count, blocks=2):
    rng = np.random.default_rng(0)
    return [
        {
            "kind": "train",
            "step": step,
            "loss": 4 / step + 1.5,
            "reversibility": 1e-7 * step,
            "nudge": rng.uniform(1, 2, blocks).tolist(),
            "gradient_norm": 1 / step,
            "action": rng.uniform(1, 2, blocks).tolist(),
        }
        for step in range(1, count + 1)
    ]


def test_loss_curve_draws_every_point_and_marks_the_best():
    lines = train_lines(200)
    lines += [
        {"kind": "validation", "step": step, "nats_per_token": value} for step, value in ((100, 1.9), (150, 1.7), (200, 1.8))
    ]
    axes = plots.loss_curve(lines, "a title").axes[0]
    steps = np.arange(1, 201)
    np.testing.assert_allclose(drawn(axes)["training, one batch"], np.stack([steps, 4 / steps + 1.5], 1))
    np.testing.assert_allclose(drawn(axes)["validation"], [(100, 1.9), (150, 1.7), (200, 1.8)])
    assert [text.get_text() for text in axes.texts] == ["1.700"]
    assert axes.get_title(loc="left") == "a title"


def test_loss_curve_of_a_run_without_validation():
    axes = plots.loss_curve([{"kind": "train", "step": 10, "loss": 3.0}]).axes[0]
    assert len(axes.lines) == 1


def test_health_and_action_draw_every_block():
    lines = train_lines(5)
    health = plots.health(lines).axes
    np.testing.assert_allclose(health[0].lines[0].get_ydata(), [line["reversibility"] for line in lines])
    np.testing.assert_allclose(drawn(health[1])["block 1"][:, 1], [line["nudge"][1] for line in lines])
    np.testing.assert_allclose(health[2].lines[0].get_ydata(), [line["gradient_norm"] for line in lines])
    action = drawn(plots.action_over_training(lines).axes[0])
    np.testing.assert_allclose(action["block 0"][:, 1], [line["action"][0] for line in lines])


def test_action_by_depth_piles_up_the_heads():
    action = np.array([[1.0, 2.0], [3.0, 4.0], [0.5, 0.5]])
    bars = plots.action_by_depth(action).axes[0].patches
    tops = sorted(bar.get_y() + bar.get_height() for bar in bars)
    assert tops == sorted([1.0, 3.0, 0.5, 3.0, 7.0, 1.0])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_spectra_are_relative_to_the_largest(count):
    values = {f"matrix {index}": [np.array([4.0, 2.0, 1.0])] for index in range(count)}
    figure = plots.spectra(values)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == list(values)
    np.testing.assert_allclose(shown[0].lines[0].get_ydata(), [1, 0.5, 0.25])


def test_retrieval_map_names_tokens():
    weights = np.arange(6.0).reshape(2, 3)
    figure = plots.retrieval_map(weights, ["a", "\n"], ["b", " ", "$c"], "told")
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), weights)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "↵"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["b", "␣", r"\$c"]
    assert axes.get_title(loc="left") == "told"
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("generated token", "past token")
    figure.canvas.draw()  # a dollar is no mathematics


@pytest.mark.parametrize("count", [40, 200, pytest.param(1000, marks=pytest.mark.slow)])
def test_retrieval_maps_stay_legible(count):
    """Letters of at least 9 pixels that do not overlap, each token named as far as there is room."""
    weights = np.random.default_rng(0).random((count, count + 20))
    rows = [f"row{row}" for row in range(count)]
    figure = plots.retrieval_map(weights, rows, [f"{column}" for column in range(count + 20)], memory_share=weights[:, 0])
    figure.draw_without_rendering()
    heat, bars = figure.axes[:2]
    for labels, axis in ((heat.get_yticklabels(), 1), (heat.get_xticklabels(), 0)):
        assert labels[0].get_fontsize() * figure.dpi / 72 >= 9
        middles = np.sort([label.get_window_extent().get_points()[:, axis].mean() for label in labels])
        assert np.diff(middles).min() >= 0.75 * labels[0].get_fontsize() * figure.dpi / 72
        assert len(labels) >= min(count, 200)
    shown = [label.get_text() for label in heat.get_yticklabels()]
    assert shown == rows[:: rows.index(shown[1])]
    np.testing.assert_allclose([bar.get_width() for bar in bars.patches], weights[:, 0])
    np.testing.assert_allclose([bar.get_y() + bar.get_height() / 2 for bar in bars.patches], np.arange(count))


def test_cost_maps_leave_the_future_blank():
    image = np.ones((3, 3))
    shown = plots.cost_maps({"one": image}, list("abc"), "cost").axes[0].images[0].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(np.ma.masked_invalid(shown)), np.triu(np.ones((3, 3), bool), 1))


def test_ellipses_lie_at_metric_distance_one():
    metric = np.diag([4.0, 1.0, 0.25])
    plane, stretches = plots.metric_ellipses(metric[None]).axes
    x, y = drawn(plane)["head 0"].T
    np.testing.assert_allclose(0.25 * x**2 + 4 * y**2, 1)
    np.testing.assert_allclose(stretches.lines[0].get_ydata(), [2, 1, 0.5])


def test_a_frame_of_principal_axes_leaves_the_keys_without_correlation():
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    covariance = turn @ np.diag([4.0, 0.25]) @ turn.T
    chart, frame, turned = (axes.images[0].get_array() for axes in plots.frame_of_keys(covariance, turn).axes[:3])
    np.testing.assert_allclose(chart[0, 1], covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))
    np.testing.assert_array_equal(frame, turn)
    np.testing.assert_allclose(turned, np.eye(2), atol=1e-12)


def test_pair_maps_are_centred_and_blank_where_nothing_is_known():
    image = np.array([[1.0, -3.0], [np.nan, 0.5]])
    axes = plots.pair_maps({"one": image}, ["a", " "], "cost").axes[0]
    assert axes.images[0].get_clim() == (-3.0, 3.0)
    np.testing.assert_array_equal(np.ma.getmaskarray(np.ma.masked_invalid(axes.images[0].get_array())), np.isnan(image))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "␣"]


def test_lag_priors_are_relative_to_their_largest():
    log_priors = np.log(np.array([[[2.0, 1.0, 0.5]], [[1.0, 1.0, 4.0]]]))
    figure = plots.lag_priors(log_priors)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [1, 0.5, 0.25])
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), [0.25, 0.25, 1])


def test_by_token_draws_every_series_over_the_tokens():
    axes = plots.by_token({"head 0": np.array([1.0, 3.0])}, ["a", " "], "R").axes[0]
    np.testing.assert_allclose(drawn(axes)["head 0"], [(0, 1), (1, 3)])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "␣"]


def test_dynamics_draw_what_they_are_given():
    s, p = np.linspace(0, 1, 4), np.linspace(1, 2, 4)
    axes = plots.phase_portrait({"free": (s, p)}, (s, p, np.add.outer(p, s))).axes[0]
    np.testing.assert_allclose(drawn(axes)["free"], np.stack([s, p], 1))
    nudges, error = np.array([1e-3, 1e-2]), np.array([1e-6, 1e-4])
    axes = plots.gradient_error(nudges, {"centred": error}).axes[0]
    np.testing.assert_allclose(drawn(axes)["centred"][:, 1], error)
    np.testing.assert_allclose(drawn(axes)["slope 2"][:, 1], error)
    axes = plots.conserved(s, {"norm": {"unitary": np.array([2.0, 2, 2, 1])}}).axes[0]
    np.testing.assert_allclose(drawn(axes)["unitary"][:, 1], [1, 1, 1, 0.5])
    energy = np.array([[[1.0, 3.0], [2.0, 4.0]], [[0.0, 0.0], [5.0, 5.0]]])
    lines = plots.energies(energy).axes[0].lines
    np.testing.assert_allclose(lines[0].get_ydata(), [2, 3])
    np.testing.assert_allclose(lines[2].get_ydata(), [3, 0])  # from one block to the next


def test_field_maps_share_their_colours():
    figure = plots.field_maps({"start": np.zeros((4, 3)), "end": np.full((4, 3), 2.0)}, "|T|²")
    images = [axes.images[0] for axes in figure.axes[:2]]
    assert {image.get_clim() for image in images} == {(0.0, 2.0)}
    assert images[0].get_array().shape == (3, 4)  # x to the right, y upwards
