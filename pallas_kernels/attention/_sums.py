"""How sums are held while they grow."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention._plan import Plan
from pallas_kernels.attention._values import LOG2E

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


def changes(old: jax.Array, new: jax.Array, powers: Sequence[int | float], base2: bool) -> list[jax.Array]:
    """What the sums of a scaled fold are multiplied by as its log scale changes: ``exp(power * (old - new))``; of an
    infinite power what is not at the new scale is dropped."""
    factor = (jnp.exp2 if base2 else jnp.exp)(old - new)
    return [(old == new).astype(factor.dtype) if math.isinf(p) else factor if p == 1 else factor**p for p in powers]


def log_scale(scale: jax.Array, base2: bool) -> jax.Array:
    """A running log scale as it is written: natural, -inf where nothing was seen."""
    return jnp.where(scale > LOWEST, scale * jnp.asarray(1 / LOG2E if base2 else 1, scale.dtype), -jnp.inf)


def divisor(mass: jax.Array) -> jax.Array:
    """What sums are divided by to be at a mass of one; one where there is no mass."""
    return jnp.where(mass > 0, mass, jnp.ones((), mass.dtype))


def at_mass(scale: jax.Array, mass: jax.Array) -> jax.Array:
    """The log scale at which the mass is one; without mass it stays."""
    return jnp.where(mass > 0, scale + jnp.log(divisor(mass)), scale)
