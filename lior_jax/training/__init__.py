"""Training runs."""

from lior_jax.training.run import Summary, train
from lior_jax.training.run_folder import resume_config

__all__ = ["Summary", "resume_config", "train"]
