"""A step cut in two: what carries go through, and what is known of a chunk before.

What is known is computed for all chunks at once; the core is left, a few products and multiplications. Of its matrices
it is found out which axes belong together, and whether the last one of the carries is only ever looked at number by
number: then carries can be cut along it.
"""

import dataclasses
import math
from typing import Any

from jax.extend import core

from pallas_kernels._jaxpr import needed
from pallas_kernels.linear._flat import flatten
from pallas_kernels.linear._plan import Step


@dataclasses.dataclass(frozen=True, eq=False)
class Core:
    """The core of a step.

    Attributes:
        before: jaxpr from a chunk's arrays to the known values.
        equations: from carries and known values to the next carries.
        carries: variables of the carries.
        known: variables of the known values.
        outputs: variables, or numbers, of the next carries.
        apart: (variable, axis) of all axes along which the carries can be cut.
    """

    before: Any
    equations: tuple[Any, ...]
    carries: tuple[Any, ...]
    known: tuple[Any, ...]
    outputs: tuple[Any, ...]
    apart: frozenset


def size(atom: Any) -> int:
    """Bytes."""
    return 0 if isinstance(atom, core.Literal) else math.prod(atom.aval.shape) * atom.aval.dtype.itemsize


def cut(step: Step) -> Core:
    """The core of a step, and what is before it."""
    jaxpr, count = flatten(step.jaxpr, step.carries), step.carries
    moving = set(jaxpr.invars[:count])
    inside, makers = [], {}
    for equation in jaxpr.eqns:
        if any(not isinstance(a, core.Literal) and a in moving for a in equation.invars):
            inside.append(equation)
            moving |= set(equation.outvars)
        else:
            makers |= dict.fromkeys(equation.outvars, equation)

    def frontier() -> list:
        made = {*jaxpr.invars[:count]} | {v for e in inside for v in e.outvars}
        read = [a for e in inside for a in e.invars] + list(jaxpr.outvars)
        return list(dict.fromkeys(a for a in read if not isinstance(a, core.Literal) and a not in made))

    # What is smaller before a known equation than after it is computed in the core.
    while larger := [
        v for v in frontier()
        if v in makers and sum(map(size, makers[v].invars)) < size(v)
    ]:  # fmt: skip
        inside[:0] = list(dict.fromkeys(makers[v] for v in larger))
    known = frontier()
    before = jaxpr.replace(
        invars=jaxpr.invars[count:],
        outvars=known,
        eqns=[e for e in needed(jaxpr.eqns, known) if e.outvars[0] in makers],
    )
    carries = tuple(jaxpr.invars[:count])
    return Core(
        before, tuple(inside), carries, tuple(known), tuple(jaxpr.outvars), _apart(inside, carries, jaxpr.outvars)
    )  # fmt: skip


ELEMENTWISE = {
    "add", "sub", "mul", "neg", "div", "exp", "convert_element_type", "select_n", "max", "min",
}  # fmt: skip


def _apart(equations: list, carries: tuple, outputs: Any) -> frozenset:
    """Axes that belong to the last axes of the carries, if no product or sum is over them; else none."""
    groups: dict = {}

    def root(axis: tuple) -> tuple:
        while groups.get(axis, axis) != axis:
            axis = groups[axis]
        return axis

    def join(a: Any, i: int, b: Any, j: int) -> None:
        if not isinstance(a, core.Literal) and not isinstance(b, core.Literal):
            groups[root((a, i))] = root((b, j))

    summed = []
    for equation in equations:
        name, ins, (out,) = equation.primitive.name, equation.invars, equation.outvars
        if name == "dot_general":
            ((left,), (right,)), _ = equation.params["dimension_numbers"]
            join(ins[0], 1 - left, out, 0)
            join(ins[1], 1 - right, out, 1)
            join(ins[0], left, ins[1], right)
            summed.append((ins[0], left))
        elif name == "transpose":
            for n, axis in enumerate(equation.params["permutation"]):
                join(ins[0], axis, out, n)
        elif name == "broadcast_in_dim":
            for axis, n in enumerate(equation.params["broadcast_dimensions"]):
                if ins[0].aval.shape[axis] == out.aval.shape[n]:
                    join(ins[0], axis, out, n)
        elif name in ELEMENTWISE:
            for a in ins:
                for axis in range(len(a.aval.shape)):
                    join(a, axis, out, axis)
        else:
            return frozenset()
    for a, b in zip(carries, outputs, strict=True):
        for axis in (0, 1):
            join(a, axis, b, axis)
    wanted = {root((c, 1)) for c in carries}
    if any(root(axis) in wanted for axis in summed) or any(root((c, 0)) in wanted for c in carries):
        return frozenset()
    axes = {(a, n) for e in equations for a in (*e.invars, *e.outvars) for n in range(len(a.aval.shape))}
    axes |= {(c, n) for c in carries for n in (0, 1)}
    return frozenset(
        x for x in axes if not isinstance(x[0], core.Literal) and root(x) in wanted and x[0].aval.shape[x[1]] > 1
    )
