"""A tile function on named axes: the same numbers, held the way the hardware likes them.

A fold's tile function is a jaxpr over blocks. Inside a kernel each of its values has at most two axes that are really
there (queries, keys, or features; everything else is the same along an axis, or of size one), so it fits one matrix.
`Evaluator` walks the jaxpr and keeps, for every value, the names of its axes and a matrix laid out by a `Layout`.

Two things are changed on the way: exponentials are taken in base 2 (see `_flat`), and a product with one operand in a
16-bit type takes the other one in that type too, while sums stay float32.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from pallas_kernels.attention._flat import HOMOGENEOUS, SUMS, VISIBLE, Flat, Unsupported, is_scalar
from pallas_kernels.attention._labels import same_axes
from pallas_kernels.attention._operations import Operations, over_the_rest
from pallas_kernels.attention._values import (
    COL,
    FEATURE,
    LOG2E,
    ROW,
    Axes,
    Each,
    Layout,
    Value,
    array,
    folded,
    never_equal,
    reshape,
)

ELEMENTWISE = {
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh",
    "bitcast_convert_type", "ceil", "clamp", "cos", "cosh", "div", "eq", "erf", "erf_inv", "erfc", "exp",
    "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt",
    "max", "min", "mul", "ne", "neg", "nextafter", "not", "one_minus_square", "or", "population_count", "pow",
    "rem", "round", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign",
    "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh", "xor",
}  # fmt: skip
WHOLE = {"dot_general", "dynamic_slice", "dynamic_update_slice", "iota"}
"""Operations on all features of an operand at once."""
REDUCTIONS = {"reduce_sum": "sum", "reduce_max": "max", "reduce_min": "min", "reduce_and": "min", "reduce_or": "max"}
_COMBINED = {
    ("sum", False): jnp.add, ("max", False): jnp.maximum, ("min", False): jnp.minimum,
    ("max", True): jnp.logical_or, ("min", True): jnp.logical_and,
}  # fmt: skip


def traced_shape(atom: Any) -> tuple[int, ...]:
    """The shape that a variable was traced with."""
    return atom.aval.shape


def _like(axis: tuple, pairs: Sequence[tuple]) -> dict[Any, int]:
    """For each variable of an equation its axis that is the same as another, given the pairs that are."""
    found = {axis}
    while more := {other for x, y in pairs for one, other in ((x, y), (y, x)) if one in found} - found:
        found |= more
    axes = dict(found)
    if len(axes) != len(found):
        raise Unsupported("a product of a block's features with each other")
    return axes


class Evaluator(Operations):
    """Runs a flat tile function in a layout.

    Attributes:
        flat: the function.
        layout: how its values are held.
        exponential: type in which matrices are exponentiated.
        shape: of a variable, in the blocks that it is run on.
    """

    def __init__(
        self,
        flat: Flat,
        layout: Layout,
        exponential: str = "float32",
        shape: Callable[[Any], tuple[int, ...]] = traced_shape,
    ):
        super().__init__(layout)
        self.flat, self.exponential, self.shape = flat, exponential, shape

    def real(self, atom: Any) -> jax.ShapeDtypeStruct:
        """Shape and type of a variable."""
        return jax.ShapeDtypeStruct(self.shape(atom), atom.aval.dtype)

    # --- the walk

    def prepare(self, values: Sequence[Value | None], fold: bool) -> dict:
        """What follows from some of the inputs alone (the others are None): values for ``__call__`` to start from.

        With ``fold`` the number that a product is multiplied by on its way to an exponential multiplies the known
        operand instead, in that operand's type: one multiplication for a row instead of one for each score.
        """
        flat = self.flat
        known = {v: x for v, x in zip(flat.jaxpr.invars, values, strict=True) if x is not None}
        env = known | self._constants()
        found: dict[Any, Value] = {}
        for equation in flat.jaxpr.eqns:
            (variable, *_) = equation.outvars
            if fold and variable in flat.scaled:
                number = self._read(flat.scaled[variable][0], env)
                for place, atom in enumerate(equation.invars):
                    operand = self._read(atom, env)
                    if number is not None and operand is not None and len(self.held(operand)) == 2:
                        found[variable, place] = self._multiplied(operand, number, self.real(atom))
                        break
            operands = [x for a in equation.invars if (x := self._read(a, env)) is not None]
            if len(operands) == len(equation.invars) and equation.primitive.name != VISIBLE:
                env[variable] = found[variable] = self.apply(equation, operands, variable in flat.base2)
        return found

    def _multiplied(self, operand: Value, number: Value, aval: Any) -> Value:
        """A matrix times a number and log2(e), in the matrix's type."""
        factor = Value(self.times(self.natural(number), LOG2E, False).data, (None,) * len(aval.shape))
        wide = self.convert(operand, jnp.promote_types(aval.dtype, jnp.float32))
        product = self.elementwise(jnp.multiply, [wide, factor], aval.shape, wide.data.dtype)
        return self.convert(product, operand.data.dtype if operand.narrow is None else operand.narrow.dtype)

    def _constants(self) -> dict:
        jaxpr, constants = self.flat.jaxpr, self.flat.consts
        return {v: Value(c, (None,) * np.ndim(c)) for v, c in zip(jaxpr.constvars, constants, strict=True)}

    def _read(self, atom: Any, env: dict) -> Value | None:
        if not isinstance(atom, core.Literal):
            return env.get(atom)
        if np.size(atom.val) != 1:
            raise Unsupported("an array constant")
        return Value(np.asarray(atom.val).reshape(())[()], (None,) * np.ndim(atom.val))

    def __call__(self, values: Sequence[Value], prepared: dict, full: bool) -> list[Value]:
        """The function's outputs; of a full tile, everything is visible."""
        flat = self.flat
        env = dict(zip(flat.jaxpr.invars, values, strict=True)) | self._constants() | prepared

        def read(atom) -> Value:
            found = self._read(atom, env)
            assert found is not None
            return found

        for equation in flat.jaxpr.eqns:
            (variable, *_) = equation.outvars
            if variable in env:
                continue
            if equation.primitive.name == VISIBLE:
                rank = equation.outvars[0].aval.ndim
                env[variable] = Value(True, (None,) * rank) if full else read(equation.invars[0])
                continue
            operands = [read(a) for a in equation.invars]
            folded = [(variable, place) for place in (0, 1) if (variable, place) in prepared]
            for key in folded:
                operands[key[1]] = prepared[key]
            env[variable] = self.apply(equation, operands, variable in flat.base2)
            if folded:
                env[flat.scaled[variable][1]] = dataclasses.replace(env[variable], base2=True)
        return [self.solid(read(v), self.shape(v), v.aval.dtype) for v in flat.jaxpr.outvars]

    def apply(self, equation: Any, values: list[Value], kept: bool) -> Value:
        """One equation's only output; in base 2 if it is to be kept so."""
        name, params = equation.primitive.name, equation.params
        shape, dtype = self.shape(equation.outvars[0]), equation.outvars[0].aval.dtype
        if len(equation.outvars) != 1:
            raise Unsupported(f"{name!r}")
        if (block := self._by_feature(equation, values, kept)) is not None:
            return block
        if kept and name in HOMOGENEOUS:
            values = [self.binary(v) for v in values]
        elif kept and name in ("mul", "div") and any(is_scalar(a) for a in equation.invars):
            values = self._scaled(equation, values)
        elif name == "exp" and values[0].base2 and not values[0].known:
            if self.exponential == "float32" or len(self.held(values[0])) < 2:
                return self.elementwise(jnp.exp2, values, shape, dtype)
            rounded = self.elementwise(lambda x: jnp.exp2(x.astype(self.exponential)), values, shape, dtype)
            return self.convert(rounded, dtype)
        else:
            values = [self.natural(v) for v in values]
        if name == "eq" and never_equal(*values):
            return Value(False, (None,) * len(shape))
        found = self._apply(name, params, equation, values, shape, dtype)
        if name == "max" and any(v.finite for v in values):
            found = dataclasses.replace(found, finite=True)
        if not kept:
            return dataclasses.replace(found, base2=False)
        if name in HOMOGENEOUS or name in ("mul", "div") and any(is_scalar(a) for a in equation.invars):
            return dataclasses.replace(found, base2=True, narrow=None)
        return self.binary(found)

    # --- one feature at a time

    def _by_feature(self, equation: Any, values: list[Value], kept: bool) -> Value | None:
        """The output of an equation that looks at one feature at a time; None for all others."""
        (out, *_) = equation.outvars
        name, rank = equation.primitive.name, out.aval.ndim
        if name in WHOLE:
            return None
        lazy = [(a, v.axes) for a, v in zip(equation.invars, values, strict=True) if isinstance(v.data, Each)]
        if not lazy and name in ELEMENTWISE:
            axes = self.merged(values, rank)
            lazy = [(out, axes)] if {ROW, COL, FEATURE} <= set(axes) else []
        if not lazy:
            return None
        if any(axes.count(FEATURE) > 1 for _, axes in lazy):
            raise Unsupported("a block of more than one kind of features")
        (start, axes), *_ = lazy
        looped = _like((start, axes.index(FEATURE)), same_axes(equation))
        size = start.aval.shape[looped[start]]
        place = lambda atom: None if isinstance(atom, core.Literal) else looped.get(atom)
        thin = Evaluator(
            self.flat, self.layout, self.exponential,
            lambda atom: tuple(1 if i == place(atom) else n for i, n in enumerate(self.shape(atom))),
        )  # fmt: skip

        def at(feature: Any) -> Value:
            picked = [
                v if (axis := place(a)) is None else self.pick(v, axis, feature, self.shape(a))
                for a, v in zip(equation.invars, values, strict=True)
            ]
            return thin.apply(equation, picked, kept and out in looped)

        if out in looped:
            return Value(Each(size, at), self._output_axes(equation, values))
        if name not in REDUCTIONS:
            raise Unsupported(f"the operation {name!r} over features of a block")
        combine = _COMBINED[REDUCTIONS[name], out.aval.dtype == jnp.bool_]
        first = at(jnp.int32(0))
        add = lambda feature, x: combine(x, array(at(feature).data, out.aval.dtype))
        found = Value(over_the_rest(size, add, array(first.data, out.aval.dtype)), first.axes)
        return self.binary(found) if kept else found

    def _output_axes(self, equation: Any, values: list[Value]) -> Axes:
        """Names of the axes of an equation's output."""
        (out,) = equation.outvars
        given = {a: v for a, v in zip(equation.invars, values, strict=True) if not isinstance(a, core.Literal)}
        axes: list[str | None] = [None] * out.aval.ndim
        for (x, i), (_, j) in same_axes(equation):
            axes[j] = axes[j] or given[x].axes[i]
        return tuple(axes)

    # --- all at once

    def _scaled(self, equation: Any, values: list[Value]) -> list[Value]:
        """Operands of a product with a number, that number (or the dividend) times log2(e)."""
        values = [self.natural(v) for v in values]
        scalars = [i for i, a in enumerate(equation.invars) if is_scalar(a)]
        one = scalars[0] if equation.primitive.name == "mul" else 0
        return [self.times(v, LOG2E, False) if i == one else v for i, v in enumerate(values)]

    def _apply(self, name: str, params: dict, equation: Any, values: list[Value], shape: tuple, dtype: Any) -> Value:
        if name in ("and", "or", "not", "select_n") and (known := folded(name, values)) is not None:
            return known
        if name in SUMS and equation.outvars[0] in self.flat.finals:
            return Value(self.layout.join(values[0].data, values[1].data), self.merged(values, len(shape)))
        avals = [self.real(v) for v in equation.invars]
        if name == "convert_element_type":
            return self.convert(values[0], dtype)
        if name in ELEMENTWISE and avals[0].ndim in (0, len(shape)):  # a bitcast may add or take an axis
            bind = lambda *x: equation.primitive.bind(*x, **equation.primitive.get_bind_params(params))
            operand_dtype = equation.invars[-1].aval.dtype
            return self.elementwise(self.layout.function(name) or bind, values, shape, operand_dtype)
        if name in REDUCTIONS:
            axes = [int(a) for a in params["axes"]]
            return self.reduce(REDUCTIONS[name], values[0], axes, avals[0])
        if name in WHOLE - {"dynamic_slice"}:
            values = [self.solid(v, self.shape(a), a.aval.dtype) for v, a in zip(values, equation.invars, strict=True)]
        if name == "dot_general":
            return self.dot(values, params, avals, dtype, equation.outvars[0] in self.flat.finals)
        if name == "broadcast_in_dim":
            dims = [int(d) for d in params["broadcast_dimensions"]]
            return self.broadcast(values[0], avals[0].shape, shape, dims)
        if name in ("reshape", "squeeze", "expand_dims"):
            return reshape(values[0], avals[0].shape, shape)
        if name == "transpose":
            return self.transpose(values[0], [int(i) for i in params["permutation"]])
        if name == "iota":
            return self.numbers(params["dimension"], shape, dtype)
        if name == "dynamic_slice":
            return self.take(values, avals[0], params["slice_sizes"])
        if name == "dynamic_update_slice":
            return self.put(values, avals[0], avals[1].shape)
        if name == "iota" and math.prod(shape) == 1:
            return Value(np.zeros((), dtype)[()], (None,) * len(shape))
        raise Unsupported(f"the operation {name!r} on blocks")
