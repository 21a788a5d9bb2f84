"""Steps made flat: calls inlined, dead code gone."""

from typing import Any

import jax
from jax.extend import core

from pallas_kernels.attention._flat import IDENTITIES, _inner


def flatten(closed: Any, outputs: int | None = None) -> Any:
    """The equations of a closed jaxpr without calls, of its first outputs or of all."""

    def walk(jaxpr, consts, arguments):
        values = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, arguments, strict=True))
        read = lambda atom: atom.val if isinstance(atom, core.Literal) else values[atom]
        for equation in jaxpr.eqns:
            operands = [read(a) for a in equation.invars]
            inner = _inner(equation)
            same = equation.primitive.name == "reshape" and operands[0].shape == equation.outvars[0].aval.shape
            if same or equation.primitive.name in IDENTITIES:
                found = operands
            elif equation.primitive.name == "add_any":
                found = [operands[0] + operands[1]]
            elif inner is not None:
                found = walk(*inner, operands)
            else:
                params = equation.primitive.get_bind_params(equation.params)
                found = equation.primitive.bind(*operands, **params)
                found = found if equation.primitive.multiple_results else [found]
            values |= dict(zip(equation.outvars, found, strict=True))
        return [read(v) for v in jaxpr.outvars]

    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in closed.in_avals]
    jaxpr = jax.make_jaxpr(lambda *arguments: walk(closed.jaxpr, closed.consts, arguments)[:outputs])(*shapes).jaxpr
    needed, kept = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}, []
    for equation in reversed(jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            kept.append(equation)
            needed |= {v for v in equation.invars if not isinstance(v, core.Literal)}
    return jaxpr.replace(eqns=kept[::-1])
