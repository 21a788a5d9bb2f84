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
from jax import lax
from jax.extend import core

from pallas_kernels.attention._flat import HOMOGENEOUS, SUMS, VISIBLE, Flat, Unsupported, is_scalar
from pallas_kernels.attention._values import (
    FEATURE,
    LOG2E,
    Axes,
    Layout,
    Value,
    array,
    astype,
    floating,
    folded,
    is_narrow,
    never_equal,
    pair,
    reshape,
    same_width,
)

TABLE = 1024
"""Numbers in a table that is looked up at every entry of a block, at most: it costs a pass over the block for each."""

ELEMENTWISE = {
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "ceil", "clamp",
    "cos", "cosh", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt",
    "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter",
    "not", "one_minus_square", "or",
    "population_count", "pow", "rem", "round", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic",
    "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh", "xor",
}  # fmt: skip
REDUCTIONS = {"reduce_sum": "sum", "reduce_max": "max", "reduce_min": "min", "reduce_and": "min", "reduce_or": "max"}


def traced_shape(atom: Any) -> tuple[int, ...]:
    """The shape that a variable was traced with."""
    return atom.aval.shape


class Evaluator:
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
        self.flat, self.layout, self.exponential, self.shape = flat, layout, exponential, shape

    def real(self, atom: Any) -> jax.ShapeDtypeStruct:
        """Shape and type of a variable."""
        return jax.ShapeDtypeStruct(self.shape(atom), atom.aval.dtype)

    # --- small helpers

    def held(self, value: Value) -> tuple[str, ...]:
        """Names of the axes that a value's data has, in order."""
        return tuple(name for i in self.layout.sort(value.axes) if (name := value.axes[i]) is not None)

    def natural(self, value: Value) -> Value:
        return self.times(value, 1 / LOG2E, False) if value.base2 else value

    def binary(self, value: Value) -> Value:
        return value if value.base2 or not floating(value.data) else self.times(value, LOG2E, True)

    def times(self, value: Value, factor: float, base2: bool) -> Value:
        if value.known:
            return Value(value.data * factor, value.axes, base2)
        return Value(value.data * jnp.asarray(factor, value.data.dtype), value.axes, base2)

    def elementwise(self, function: Callable, values: Sequence[Value], shape: tuple[int, ...], dtype: Any) -> Value:
        """A function of numbers at the same place."""
        axes = self.merged(values, len(shape))
        names = self.held(Value(None, axes))
        if len(names) > 2:
            raise Unsupported(f"a block of {' x '.join(names)} numbers; a kernel holds matrices only")
        if names == (FEATURE, FEATURE) and any(len(self.held(v)) == 1 for v in values):
            raise Unsupported("a matrix of features with a vector of them")
        sizes = tuple(shape[i] for i in self.layout.sort(axes))
        datas = [self.layout.spread(array(v.data, dtype), self.held(v), names, sizes) for v in values]
        full = np.broadcast_shapes(*(jnp.shape(d) for d in datas))
        return Value(function(*(jnp.broadcast_to(d, full) for d in datas)), axes)

    def merged(self, values: Sequence[Value], rank: int) -> Axes:
        axes: list[str | None] = [None] * rank
        for value in values:
            for i, name in enumerate(value.axes):
                if name is not None and axes[i] is not None and axes[i] != name:
                    raise Unsupported(f"an axis of {axes[i]}s meets one of {name}s")
                axes[i] = axes[i] or name
        return tuple(axes)

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
        wide = self._convert(operand, jnp.promote_types(aval.dtype, jnp.float32))
        product = self.elementwise(jnp.multiply, [wide, factor], aval.shape, wide.data.dtype)
        return self._convert(product, operand.data.dtype if operand.narrow is None else operand.narrow.dtype)

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
        return [read(v) for v in flat.jaxpr.outvars]

    def apply(self, equation: Any, values: list[Value], kept: bool) -> Value:
        """One equation's only output; in base 2 if it is to be kept so."""
        name, params = equation.primitive.name, equation.params
        shape, dtype = self.shape(equation.outvars[0]), equation.outvars[0].aval.dtype
        if len(equation.outvars) != 1:
            raise Unsupported(f"{name!r}")
        if kept and name in HOMOGENEOUS:
            values = [self.binary(v) for v in values]
        elif kept and name in ("mul", "div") and any(is_scalar(a) for a in equation.invars):
            values = self._scaled(equation, values)
        elif name == "exp" and values[0].base2 and not values[0].known:
            if self.exponential == "float32" or len(self.held(values[0])) < 2:
                return self.elementwise(jnp.exp2, values, shape, dtype)
            rounded = self.elementwise(lambda x: jnp.exp2(x.astype(self.exponential)), values, shape, dtype)
            return self._convert(rounded, dtype)
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
            return self._convert(values[0], dtype)
        if name in ELEMENTWISE:
            bind = lambda *x: equation.primitive.bind(*x, **equation.primitive.get_bind_params(params))
            operand_dtype = equation.invars[-1].aval.dtype
            return self.elementwise(self.layout.function(name) or bind, values, shape, operand_dtype)
        if name in REDUCTIONS:
            axes = [int(a) for a in params["axes"]]
            return self._reduce(REDUCTIONS[name], values[0], axes, avals[0])
        if name == "dot_general":
            return self._dot(values, params, avals, dtype, equation.outvars[0] in self.flat.finals)
        if name == "broadcast_in_dim":
            dims = [int(d) for d in params["broadcast_dimensions"]]
            return self._broadcast(values[0], avals[0].shape, shape, dims)
        if name in ("reshape", "squeeze", "expand_dims"):
            return reshape(values[0], avals[0].shape, shape)
        if name == "transpose":
            return self._transpose(values[0], [int(i) for i in params["permutation"]])
        if name in ("gather", "scatter-add"):
            return self._table(name, values, params, avals, dtype)
        if name == "dynamic_slice":
            return self._slice(values, avals[0], params["slice_sizes"])
        if name == "dynamic_update_slice":
            return self._update(values, avals[0], avals[1].shape)
        if name == "iota" and math.prod(shape) == 1:
            return Value(np.zeros((), dtype)[()], (None,) * len(shape))
        raise Unsupported(f"the operation {name!r} on blocks")

    def _convert(self, value: Value, dtype: Any) -> Value:
        if value.known:
            return dataclasses.replace(value, data=np.asarray(value.data).astype(dtype)[()])
        old = value.data.dtype
        if old == dtype:
            return value
        narrow = value.data if is_narrow(old) and jnp.issubdtype(dtype, jnp.floating) else None
        return Value(astype(value.data, dtype), value.axes, value.base2, narrow)

    def _reduce(self, name: str, value: Value, axes: Sequence[int], aval: Any) -> Value:
        left = tuple(a for i, a in enumerate(value.axes) if i not in axes)
        same = math.prod(aval.shape[i] for i in axes if value.axes[i] is None)
        order = self.layout.sort(value.axes)
        over = tuple(place for place, i in enumerate(order) if i in axes)
        data = value.data
        if name == "sum" and same != 1:
            data = data * same if value.known else data * jnp.asarray(same, data.dtype)
        if over:
            boolean = data.dtype == jnp.bool_
            data = data.astype(jnp.int32) if boolean else data
            data = self.layout.reduce(name, data, self.held(value), over)
            data = data != 0 if boolean else data
        return Value(data, left, value.base2)

    def _dot(self, values: list[Value], params: dict, avals: list, dtype: Any, final: bool) -> Value:
        (over_x, over_y), (batch_x, batch_y) = params["dimension_numbers"]
        x, y = values
        free_x = [i for i in range(len(x.axes)) if i not in over_x and i not in batch_x]
        free_y = [i for i in range(len(y.axes)) if i not in over_y and i not in batch_y]
        axes = (*(x.axes[i] for i in free_x), *(y.axes[i] for i in free_y))
        matrices = not batch_x and len(self.held(x)) == len(self.held(y)) == 2
        if not matrices or len(over_x) != 1 or x.axes[over_x[0]] is None or x.axes[over_x[0]] != y.axes[over_y[0]]:
            return self._dot_by_sum(x, y, (over_x, over_y), (batch_x, batch_y), (free_x, free_y), avals, dtype)
        places = self.layout.sort(x.axes).index(over_x[0]), self.layout.sort(y.axes).index(over_y[0])
        a, b = same_width(x, y)
        ordered = [self.layout.sort(x.axes), self.layout.sort(y.axes)]
        rest = ordered[0][1 - places[0]], ordered[1][1 - places[1]]
        both = self.layout.sort((x.axes[rest[0]], y.axes[rest[1]]))
        if len({x.axes[rest[0]], y.axes[rest[1]]} - {FEATURE}) == 1 and x.axes[rest[0]] == y.axes[rest[1]]:
            raise Unsupported(f"a product of {x.axes[rest[0]]}s with {y.axes[rest[1]]}s")
        wide = jnp.promote_types(dtype, jnp.float32)
        if both == (0, 1):
            data = self.layout.dot(a, b, places, wide, params["precision"], final)
        else:
            data = self.layout.dot(b, a, pair(places[::-1]), wide, params["precision"], final)
        return Value(data, axes)

    def _dot_by_sum(self, x: Value, y: Value, over: tuple, batch: tuple, free: tuple, avals: list, dtype: Any) -> Value:
        """A product of anything but two matrices: multiply, then add up."""
        (over_x, over_y), (batch_x, batch_y), (free_x, free_y) = over, batch, free
        wide = jnp.promote_types(dtype, jnp.float32)
        rank = len(batch_x) + len(free_x) + len(free_y) + len(over_x)
        where_x = [*batch_x, *free_x, *([None] * len(free_y)), *over_x]
        where_y = [*batch_y, *([None] * len(free_x)), *free_y, *over_y]
        shape = tuple(
            avals[0].shape[i] if i is not None else avals[1].shape[j] for i, j in zip(where_x, where_y, strict=True)
        )
        parts = []
        for value, where in ((x, where_x), (y, where_y)):
            wider = self._convert(value, wide)
            moved = tuple(None if i is None else wider.axes[i] for i in where)
            order = [i for i in where if i is not None]
            data = self._transpose(wider, order).data
            parts.append(Value(data, moved))
        product = self.elementwise(jnp.multiply, parts, shape, wide)
        last = range(rank - len(over_x), rank)
        return self._reduce("sum", product, tuple(last), jax.ShapeDtypeStruct(shape, wide))

    def _is_at(self, axis: int, size: int, rank: int, index: Value) -> Value:
        """Whether a place along an axis of features is the one with an index, which is clamped to the axis."""
        axes = tuple(FEATURE if i == axis else None for i in range(rank))
        places = Value(self.layout.index(size), axes)
        here = Value(index.data, (None,) * rank)
        at = lambda p, i: p == jnp.clip(i, 0, size - 1)
        return self.elementwise(at, [places, here], tuple(size if i == axis else 1 for i in range(rank)), jnp.int32)

    def _slice(self, values: list[Value], aval: Any, sizes: Sequence[int]) -> Value:
        """Single entries of axes of features."""
        value, *starts = values
        shape = list(aval.shape)
        for axis, (size, start) in enumerate(zip(sizes, starts, strict=True)):
            if size == shape[axis]:
                continue
            if size != 1 or value.axes[axis] not in (FEATURE, None):
                raise Unsupported("a slice of a block")
            if value.axes[axis] is not None:
                here = self._is_at(axis, shape[axis], len(shape), start)
                pick = lambda h, x: jnp.where(h, x, jnp.zeros((), x.dtype))
                picked = self.elementwise(pick, [here, self._convert_bool(value)], tuple(shape), aval.dtype)
                total = self._reduce("sum", picked, (axis,), jax.ShapeDtypeStruct(tuple(shape), aval.dtype))
                value = Value(total.data, (*total.axes[:axis], None, *total.axes[axis:]))
                value = self._convert(value, aval.dtype)
            shape[axis] = 1
        return value

    def _table(self, name: str, values: list[Value], params: dict, avals: list, dtype: Any) -> Value:
        """A table of features looked up at every entry of a block, or added to: entry by entry of the table."""
        table, places, *rest = values
        size = avals[0].shape[0] if avals[0].ndim == 1 else 0
        numbers = params["dimension_numbers"]
        if name == "gather":
            plain = not numbers.offset_dims and tuple(params["slice_sizes"]) == (1,)
        else:
            plain = not numbers.update_window_dims
        inside = "PROMISE" in str(params["mode"]) or "CLIP" in str(params["mode"])
        if not (plain and inside and 0 < size <= TABLE and avals[1].shape[-1] == 1):
            raise Unsupported(f"the operation {name!r} on blocks, but for tables of at most {TABLE} numbers")
        shape = avals[1].shape[:-1]
        index = dataclasses.replace(places, axes=places.axes[:-1])

        def here(entry):
            return self.elementwise(lambda i: jnp.clip(i, 0, size - 1) == entry, [index], shape, jnp.int32)

        if name == "gather":
            start = self.elementwise(lambda i: (i - i).astype(dtype), [index], shape, jnp.int32)
            look = lambda entry, found: jnp.where(here(entry).data, self.layout.entry(table.data, entry), found)
            return Value(lax.fori_loop(0, size, look, start.data), start.axes)
        entries = self.layout.index(size)
        row = table.data if not table.known and table.data.shape == entries.shape else array(table.data, dtype)
        row = jnp.broadcast_to(row, entries.shape)
        (added,) = rest
        block = jax.ShapeDtypeStruct(shape, dtype)

        def add(entry, found):
            part = self.elementwise(
                lambda h, x: jnp.where(h, x, jnp.zeros((), x.dtype)), [here(entry), added], shape, dtype
            )
            total = self._reduce("sum", part, tuple(range(len(shape))), block).data
            return found + jnp.where(entries == entry, total, jnp.zeros((), dtype))

        return Value(lax.fori_loop(0, size, add, row), (FEATURE if size > 1 else None,))

    def _convert_bool(self, value: Value) -> Value:
        boolean = not value.known and value.data.dtype == jnp.bool_
        return self._convert(value, jnp.int32) if boolean else value

    def _update(self, values: list[Value], aval: Any, part: tuple[int, ...]) -> Value:
        """Single entries of axes of features, replaced."""
        value, update, *starts = values
        here = None
        for axis, (size, start) in enumerate(zip(part, starts, strict=True)):
            if size == aval.shape[axis]:
                continue
            if size != 1 or value.axes[axis] not in (FEATURE, None):
                raise Unsupported("an update of a part of a block")
            at = self._is_at(axis, aval.shape[axis], len(part), start)
            here = at if here is None else self.elementwise(jnp.logical_and, [here, at], aval.shape, jnp.bool_)
        if here is None:
            return update
        return self.elementwise(jnp.where, [here, update, value], aval.shape, aval.dtype)

    def _broadcast(self, value: Value, old: tuple, new: tuple, dims: Sequence[int]) -> Value:
        axes: list[str | None] = [None] * len(new)
        for i, dim in enumerate(dims):
            axes[dim] = value.axes[i] if old[i] == new[dim] else None
        return dataclasses.replace(value, axes=tuple(axes))

    def _transpose(self, value: Value, permutation: Sequence[int]) -> Value:
        axes = tuple(value.axes[i] for i in permutation)
        before = [permutation.index(i) for i in self.layout.sort(value.axes)]
        if list(self.layout.sort(axes)) == before:
            return dataclasses.replace(value, axes=axes)
        narrow = None if value.narrow is None else self.layout.transpose(value.narrow)
        return Value(self.layout.transpose(value.data), axes, value.base2, narrow)
