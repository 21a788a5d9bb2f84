"""Synthetic data as pure functions of a key."""

from attnjax.tasks._linear_regression import (
    Prompts as Prompts,
    geometric_spectrum as geometric_spectrum,
    linear_regression as linear_regression,
    prompt_tokens as prompt_tokens,
    random_rotation as random_rotation,
    rotated as rotated,
)
