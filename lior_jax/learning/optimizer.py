"""What optax does with an estimate: clipping, AdamW, warm-up and cosine decay."""

import optax

from lior_jax.config import Config
from lior_jax.model.parameters import decay_mask


def make_schedule(config: Config) -> optax.Schedule:
    """Learning rate of every step: linear warm-up to the peak, then a cosine to `final_fraction` of it."""
    optimizer = config.optimizer
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=optimizer.learning_rate,
        warmup_steps=optimizer.warmup_steps,
        decay_steps=config.training.steps,
        end_value=optimizer.learning_rate * optimizer.final_fraction,
    )


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW without decay on metric parameters, biases and scalars, or on anything that must not
    change."""
    optimizer = config.optimizer
    return optax.chain(
        optax.clip_by_global_norm(optimizer.clip_norm),
        optax.adamw(
            make_schedule(config),
            b1=optimizer.beta1,
            b2=optimizer.beta2,
            weight_decay=optimizer.weight_decay if config.learning.learns_all else 0.0,
            mask=decay_mask,
        ),
    )
