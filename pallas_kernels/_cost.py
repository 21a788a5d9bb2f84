"""What a kernel costs, told to XLA: it plans by that what else can happen meanwhile, such as transfers."""

import math
from collections.abc import Iterable
from typing import Any

from jax.experimental import pallas as pl

_TRANSCENDENTAL = {
    "exp",
    "exp2",
    "log",
    "log1p",
    "expm1",
    "tanh",
    "logistic",
    "erf",
    "sin",
    "cos",
    "rsqrt",
    "sqrt",
    "pow",
}


def _counts(jaxpr: Any) -> tuple[int, int]:
    """Operations of products, and transcendental functions, of one run of equations without calls."""
    flops = transcendentals = 0
    for equation in jaxpr.eqns:
        size = sum(math.prod(v.aval.shape) for v in equation.outvars)
        if equation.primitive.name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            flops += 2 * size * math.prod(equation.invars[0].aval.shape[d] for d in summed)
        elif equation.primitive.name in _TRANSCENDENTAL:
            transcendentals += size
    return flops, transcendentals


def estimate(jaxpr: Any, times: int, arrays: Iterable[Any]) -> pl.CostEstimate:
    """The cost of a kernel.

    Args:
        jaxpr: of one step.
        times: how many steps there are.
        arrays: what is read or written, once each.
    """
    flops, transcendentals = _counts(jaxpr)
    moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)
    return pl.CostEstimate(flops=flops * times, transcendentals=transcendentals * times, bytes_accessed=moved)
