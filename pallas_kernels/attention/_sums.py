"""How sums are held while they grow."""

from typing import Any

import jax.numpy as jnp

from pallas_kernels.attention._plan import Plan

LOWEST = -3e38
"""A running log scale before anything was seen: finite, so that a difference of two is a number. A row whose scores are
all below it (times ln 2, where they are kept in base 2) counts as having seen nothing."""


def start_of(plan: Plan, output: int) -> float:
    """What an output's sum begins with."""
    if plan.start is not None:
        return float(plan.start[output])
    return LOWEST if plan.scaled and output == 0 else 0.0


def sum_dtype(dtype: Any) -> Any:
    """The type in which numbers of a type are added up."""
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else jnp.dtype(dtype)
