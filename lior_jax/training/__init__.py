"""Training runs."""

from lior_jax.training.run import train
from lior_jax.training.run_folder import resume_config
from lior_jax.training.summaries import Summary

__all__ = ["Summary", "resume_config", "train"]
