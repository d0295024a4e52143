"""What optax does with an estimate: clipping, AdamW, warm-up and cosine decay."""

import optax

from lior_jax.model.parameters import decay_mask
from lior_jax.settings import LearningConfig, OptimizerConfig


def make_schedule(optimizer: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of each of `steps` steps: linear warm-up to the peak, then a cosine to `final_fraction` of it."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=optimizer.learning_rate,
        warmup_steps=optimizer.warmup_steps,
        decay_steps=steps,
        end_value=optimizer.learning_rate * optimizer.final_fraction,
    )


def make_optimizer(optimizer: OptimizerConfig, steps: int, learning: LearningConfig) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW without decay on metric parameters, biases and scalars, or on anything that must not
    change."""
    return optax.chain(
        optax.clip_by_global_norm(optimizer.clip_norm),
        optax.adamw(
            make_schedule(optimizer, steps),
            b1=optimizer.beta1,
            b2=optimizer.beta2,
            weight_decay=optimizer.weight_decay if learning.learns_all else 0.0,
            mask=decay_mask,
        ),
    )
