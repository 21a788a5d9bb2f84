"""Jaxprs without calls: what is traced is looked at, and run, one equation after another."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"}
CUSTOM = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
IDENTITIES = {
    "reshard", "sharding_constraint", "mesh_cast", "pvary", "pcast", "name", "optimization_barrier", "copy", "copy_p",
    "stop_gradient",
}  # fmt: skip

Rule = Callable[[Any, Sequence[Any]], Any]
"""Of an equation and the values of its operands: its outputs, or None to compute it as it stands."""


def _inner(equation: Any) -> tuple[Any, Sequence] | None:
    """The jaxpr that an equation calls, and its constants."""
    name = equation.primitive.name
    if name in CALLS:
        found = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    elif name in CUSTOM:
        found = equation.params.get("call_jaxpr", equation.params.get("fun_jaxpr"))
    else:
        return None
    return (found.jaxpr, found.consts) if hasattr(found, "consts") else (found, ())


def _bound(equation: Any, operands: Sequence[Any]) -> list:
    """Outputs of an equation without a call, said by what the kernels' compilers have."""
    if equation.primitive.name == "polynomial":
        x, *coefficients, found = operands  # from the lowest power
        for coefficient in reversed(coefficients):
            found = found * x + coefficient
        return [found]
    params = equation.primitive.get_bind_params(equation.params)
    if "accuracy" in params:
        params["accuracy"] = None  # they have one exponential only
    found = equation.primitive.bind(*operands, **params)
    return found if equation.primitive.multiple_results else [found]


def evaluate(jaxpr: Any, consts: Sequence, arguments: Sequence, rule: Rule | None = None) -> list:
    """Outputs of a jaxpr, by its equations and those of what they call."""
    values = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, arguments, strict=True))
    read = lambda atom: atom.val if isinstance(atom, core.Literal) else values[atom]
    for equation in jaxpr.eqns:
        operands = [read(a) for a in equation.invars]
        inner = _inner(equation)
        if equation.primitive.name in IDENTITIES:
            found = operands
        elif inner is not None:
            found = evaluate(*inner, operands, rule)
        elif rule is None or (found := rule(equation, operands)) is None:
            found = _bound(equation, operands)
        values |= dict(zip(equation.outvars, found, strict=True))
    return [read(v) for v in jaxpr.outvars]


def inlined(closed: Any, outputs: Sequence[int], rule: Rule | None = None) -> Any:
    """Some outputs of a closed jaxpr as a closed jaxpr without calls."""

    def function(*arguments):
        found = evaluate(closed.jaxpr, closed.consts, arguments, rule)
        return [found[i] for i in outputs]

    return jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in closed.in_avals))


def needed(equations: Sequence, outputs: Sequence) -> list:
    """The equations that some variables need."""
    wanted, kept = {v for v in outputs if not isinstance(v, core.Literal)}, []
    for equation in reversed(equations):
        if not wanted.isdisjoint(equation.outvars):
            kept.append(equation)
            wanted |= {v for v in equation.invars if not isinstance(v, core.Literal)}
    return kept[::-1]
