"""Figures: functions that take arrays and return a matplotlib figure. Nothing is shown or saved here."""

from lior_jax.analysis.plots.comparison import Curve, loss_over
from lior_jax.analysis.plots.dynamics import conserved, energies, field_maps, gradient_error, phase_portrait
from lior_jax.analysis.plots.geometry import (
    by_token,
    cost_maps,
    frame_of_keys,
    lag_priors,
    metric_ellipses,
    pair_maps,
    retrieval_map,
)
from lior_jax.analysis.plots.run import action_by_depth, action_over_training, health, learning_rates, loss_curve, spectra

__all__ = [
    "Curve",
    "action_by_depth",
    "action_over_training",
    "by_token",
    "conserved",
    "cost_maps",
    "energies",
    "field_maps",
    "frame_of_keys",
    "gradient_error",
    "health",
    "lag_priors",
    "learning_rates",
    "loss_curve",
    "loss_over",
    "metric_ellipses",
    "pair_maps",
    "phase_portrait",
    "retrieval_map",
    "spectra",
]
