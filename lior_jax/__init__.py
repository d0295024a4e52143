"""A language model on a learned Riemannian manifold that learns without back-propagation.

    config.load, Config         settings from YAML
    init, logits, loss          the network: pure functions of its parameters
    estimate                    the contrastive estimate of the gradient
    train                       a run from start to end
    Engine                      a trained model: generate, stream, score, remember

Each is imported on first use, so that importing the package does not need JAX.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PUBLIC = {
    "Config": "lior_jax.settings",
    "init": "lior_jax.model",
    "logits": "lior_jax.model",
    "loss": "lior_jax.model",
    "estimate": "lior_jax.learning",
    "train": "lior_jax.training",
    "Engine": "lior_jax.inference",
}

__all__ = ["Config", "Engine", "__version__", "estimate", "init", "logits", "loss", "train"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name == "__version__":
        try:
            return version("lior-jax")
        except PackageNotFoundError:  # a source tree without installation
            return "unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
