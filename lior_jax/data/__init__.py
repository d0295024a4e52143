"""From texts to batches: reading, tokenising, splitting."""

from lior_jax.data.batches import batch_at, windows_per_epoch
from lior_jax.data.corpus import Corpus, check_sample, load, with_vocabulary
from lior_jax.data.sources import read_text
from lior_jax.data.text import read_file, read_stream

__all__ = [
    "Corpus",
    "batch_at",
    "check_sample",
    "load",
    "read_file",
    "read_stream",
    "read_text",
    "windows_per_epoch",
    "with_vocabulary",
]
