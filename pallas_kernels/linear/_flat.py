"""Steps made flat, and their equations computed."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from pallas_kernels._jaxpr import evaluate, inlined, needed


def flatten(closed: Any, outputs: int | None = None) -> Any:
    """The equations of a closed jaxpr without calls, of its first outputs or of all."""
    count = len(closed.out_avals) if outputs is None else outputs
    jaxpr = inlined(closed, range(count), _plainer).jaxpr
    return jaxpr.replace(eqns=needed(jaxpr.eqns, jaxpr.outvars))


def _plainer(equation: Any, operands: Sequence) -> list | None:
    """What derivatives bring with them, said in fewer words."""
    if equation.primitive.name == "reshape" and operands[0].shape == equation.outvars[0].aval.shape:
        return list(operands)
    return [operands[0] + operands[1]] if equation.primitive.name == "add_any" else None


def run(jaxpr: Any, arguments: Sequence) -> list:
    """A flat jaxpr, its products as matrix units take them."""
    return evaluate(jaxpr, (), arguments, _product)


def _product(equation: Any, operands: Sequence) -> list | None:
    """A product whose operands are of one type, the 16-bit one if there is any: cotangents are float32."""
    if equation.primitive is not lax.dot_general_p:
        return None
    narrow = [a.dtype for a in operands if a.dtype.itemsize == 2]
    x, y = (a.astype(narrow[0]) for a in operands) if narrow else operands
    found = lax.dot_general(
        x, y, equation.params["dimension_numbers"], precision=None if narrow else lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )  # fmt: skip
    return [found.astype(equation.outvars[0].aval.dtype)]
