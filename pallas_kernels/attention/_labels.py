"""Which axes of a tile function's values run along queries, keys or features.

A value may be the same all along an axis of queries or keys, and so have no such axis in a kernel. Its jaxpr says
nonetheless which one it would be: the axis meets others, in sums and products, that are known. With that a tile
function runs on blocks of other sizes than those it was traced at.
"""

from collections.abc import Sequence
from typing import Any

from jax.extend import core

from pallas_kernels.attention._values import COL, FEATURE, ROW

Names = Sequence[str | None]


class _Classes:
    """Sets of axes that are one (union-find); each has a name, or none yet."""

    def __init__(self):
        self.parent: dict[Any, Any] = {}
        self.name: dict[Any, str] = {}

    def find(self, axis: Any) -> Any:
        while (up := self.parent.get(axis, axis)) != axis:
            axis = up
        return axis

    def unite(self, x: Any, y: Any) -> None:
        x, y = self.find(x), self.find(y)
        if x == y:
            return
        self.parent[x] = y
        if x in self.name:
            self.name.setdefault(y, self.name[x])

    def call(self, axis: Any, name: str | None) -> None:
        if name is not None:
            self.name[self.find(axis)] = name


def labels(jaxpr: Any, inputs: Sequence[Names], outputs: Sequence[Names]) -> dict[Any, tuple[str | None, ...]]:
    """Names of all axes of all variables; None for axes of size one, and for those that meet no named axis.

    Args:
        jaxpr: without calls.
        inputs: names of the axes of its inputs.
        outputs: of its outputs.
    """
    classes = _Classes()
    for equation in jaxpr.eqns:
        for x, y in same_axes(equation):
            if _size(*x) == _size(*y) != 1:
                classes.unite(x, y)
    for variables, names in ((jaxpr.invars, inputs), (jaxpr.outvars, outputs)):
        for variable, own in zip(variables, names, strict=True):
            if not isinstance(variable, core.Literal):
                for axis, name in enumerate(own):
                    if _size(variable, axis) != 1:
                        classes.call((variable, axis), name)
    found = {}
    for variable in (*jaxpr.invars, *jaxpr.constvars, *(v for e in jaxpr.eqns for v in e.outvars)):
        found[variable] = tuple(classes.name.get(classes.find((variable, i))) for i in range(variable.aval.ndim))
    return found


def met_by_feature(jaxpr: Any, names: dict[Any, tuple[str | None, ...]]) -> set:
    """Positions by features that meet the other positions one feature at a time: equations between queries, keys and
    features read them."""
    three = lambda v: {ROW, COL, FEATURE} <= set(names.get(v, ()))
    read = [v for e in jaxpr.eqns if three(e.outvars[0]) for v in e.invars if not isinstance(v, core.Literal)]
    return {v for v in read if FEATURE in names[v] and {ROW, COL} & set(names[v]) and not three(v)}


def _size(variable: Any, axis: int) -> int:
    return variable.aval.shape[axis]


def same_axes(equation: Any) -> list[tuple]:
    """Pairs of axes of an equation's variables that are the same axis."""
    name, params = equation.primitive.name, equation.params
    inputs = [v for v in equation.invars if not isinstance(v, core.Literal)]
    (out,) = equation.outvars[:1]
    if name == "dot_general":
        return _of_product(equation, params["dimension_numbers"])
    if not inputs:
        return []
    x = inputs[0]
    rank = x.aval.ndim
    if name == "broadcast_in_dim":
        return [((x, i), (out, int(d))) for i, d in enumerate(params["broadcast_dimensions"])]
    if name == "transpose":
        return [((x, int(d)), (out, i)) for i, d in enumerate(params["permutation"])]
    if name.startswith("reduce_"):
        kept = [i for i in range(rank) if i not in params["axes"]]
        return [((x, i), (out, n)) for n, i in enumerate(kept)]
    if name in ("reshape", "squeeze", "expand_dims"):
        return list(zip(*([(v, i) for i in range(v.aval.ndim) if _size(v, i) != 1] for v in (x, out)), strict=False))
    return [((v, i), (out, i)) for v in inputs if v.aval.ndim == out.aval.ndim for i in range(out.aval.ndim)]


def _of_product(equation: Any, numbers: Any) -> list[tuple]:
    (over_x, over_y), (batch_x, batch_y) = numbers
    x, y = equation.invars
    (out,) = equation.outvars
    free_x = [(x, i) for i in range(x.aval.ndim) if i not in over_x and i not in batch_x]
    free_y = [(y, i) for i in range(y.aval.ndim) if i not in over_y and i not in batch_y]
    kept = [*((x, i) for i in batch_x), *free_x, *free_y]
    pairs = [((x, i), (y, j)) for i, j in zip((*over_x, *batch_x), (*over_y, *batch_y), strict=True)]
    pairs += [(axis, (out, n)) for n, axis in enumerate(kept)]
    return [pair for pair in pairs if not any(isinstance(v, core.Literal) for v, _ in pair)]
