"""How sums are held while they grow."""

from typing import Any

import jax.numpy as jnp

LOWEST = -3e38
"""A running log scale before anything was seen: finite, so that a difference of two is a number. A row whose scores are
all below it (times ln 2, where they are kept in base 2) counts as having seen nothing."""


def sum_dtype(dtype: Any) -> Any:
    """The type in which numbers of a type are added up."""
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else jnp.dtype(dtype)
