"""Training runs."""

from lior_jax.training.loop import Summary, resume_config, train

__all__ = ["Summary", "resume_config", "train"]
