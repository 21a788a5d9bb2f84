"""cuDNN's fused attention, through ``jax.nn``."""

from typing import Any

import jax
import jax.numpy as jnp

from attnjax.attention import masks, normalizers, scores

_SUPPORTED = "plain softmax of scaled dot products in float16 or bfloat16, unmasked or causal() with offset 0"


def refusal(request: Any) -> str | None:
    """Why cuDNN cannot run this call, or None."""
    if jax.default_backend() != "gpu":
        return f"needs an NVIDIA GPU, this is {jax.default_backend()}; use implementation='auto'"
    return "unsupported"


def attend(request: Any) -> jax.Array:
    raise NotImplementedError
