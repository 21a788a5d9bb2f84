"""Operations on values with named axes, over any layout of them."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.attention._flat import Unsupported
from pallas_kernels.attention._values import (
    FEATURE,
    LOG2E,
    Axes,
    Each,
    Layout,
    Value,
    array,
    astype,
    floating,
    is_narrow,
    pair,
    same_width,
)


def over_the_rest(size: int, function: Callable, first: jax.Array) -> jax.Array:
    """What a function of a feature's number and of what was found before makes of all but the first feature."""
    return lax.fori_loop(1, size, lambda feature, x: function(jnp.int32(feature), x), first)


def _wide(dtype: Any) -> Any:
    """The type of 32 bits for numbers, or truth values, of a type."""
    return jnp.promote_types(dtype, jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else jnp.int32)


class Operations:
    """What a tile function's equations do, in a layout."""

    def __init__(self, layout: Layout):
        self.layout = layout

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

    # --- features

    def pick(self, value: Value, axis: int, feature: Any, shape: tuple[int, ...]) -> Value:
        """A value of some shape at one feature."""
        if value.axes[axis] is None:
            return value
        if isinstance(value.data, Each):
            return value.data.at(feature)
        dtype = value.data.dtype
        wide = _wide(dtype)
        number = Value(feature, (None,) * len(shape))
        only = lambda x, places, number: jnp.where(places == number, x, jnp.zeros((), x.dtype))
        alone = self.elementwise(only, [self.convert(value, wide), self._features(axis, shape), number], shape, wide)
        total = self.reduce("sum", alone, (axis,), jax.ShapeDtypeStruct(shape, wide))
        axes = (*total.axes[:axis], None, *total.axes[axis:])
        return dataclasses.replace(self.convert(Value(total.data, axes), dtype), base2=value.base2, narrow=None)

    def solid(self, value: Value, shape: tuple[int, ...], dtype: Any) -> Value:
        """A value of some shape with all its features at once."""
        if not isinstance(value.data, Each):
            return value
        if len(self.held(value)) > 2:
            raise Unsupported(f"a block of {' x '.join(self.held(value))} numbers; a kernel holds matrices only")
        axis, wide = value.axes.index(FEATURE), _wide(dtype)
        put = lambda new, old, places, number: jnp.where(places == number, new, old)

        def placed(feature: Any, old: Value) -> Value:
            number = Value(feature, (None,) * len(shape))
            new = self.convert(self.natural(value.data.at(feature)), wide)
            return self.elementwise(put, [new, old, self._features(axis, shape), number], shape, wide)

        first = placed(jnp.int32(0), Value(np.zeros((), wide)[()], (None,) * len(shape)))
        put_in = lambda feature, x: placed(feature, Value(x, first.axes)).data
        return self.convert(Value(over_the_rest(value.data.size, put_in, first.data), first.axes), dtype)

    def _features(self, axis: int, shape: Sequence[int]) -> Value:
        """Numbers of features along an axis."""
        return Value(self.layout.index(shape[axis]), tuple(FEATURE if i == axis else None for i in range(len(shape))))

    def numbers(self, axis: int, shape: tuple[int, ...], dtype: Any) -> Value:
        """Numbers of features along an axis, one at a time."""
        none = (None,) * len(shape)
        if shape[axis] == 1:
            return Value(np.zeros((), dtype)[()], none)
        each = Each(shape[axis], lambda feature: Value(feature.astype(dtype), none))
        return Value(each, tuple(FEATURE if i == axis else None for i in range(len(shape))))

    # --- matrices

    def convert(self, value: Value, dtype: Any) -> Value:
        if value.known:
            return dataclasses.replace(value, data=np.asarray(value.data).astype(dtype)[()])
        old = value.data.dtype
        if old == dtype:
            return value
        narrow = value.data if is_narrow(old) and jnp.issubdtype(dtype, jnp.floating) else None
        return Value(astype(value.data, dtype), value.axes, value.base2, narrow)

    def reduce(self, name: str, value: Value, axes: Sequence[int], aval: Any) -> Value:
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

    def dot(self, values: list[Value], params: dict, avals: list, dtype: Any, final: bool) -> Value:
        (over_x, over_y), (batch_x, batch_y) = params["dimension_numbers"]
        x, y = values
        free_x = [i for i in range(len(x.axes)) if i not in over_x and i not in batch_x]
        free_y = [i for i in range(len(y.axes)) if i not in over_y and i not in batch_y]
        axes = (*(x.axes[i] for i in free_x), *(y.axes[i] for i in free_y))
        if (
            not batch_x
            and (found := self._dot_of_row(x, y, (over_x, over_y), avals, dtype, params["precision"])) is not None
        ):
            return Value(found, axes)
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

    def _dot_of_row(self, x: Value, y: Value, over: tuple, avals: list, dtype: Any, precision: Any) -> Any:
        """A product with the features of one position, which are a matrix of one row; None for other products."""
        held, wide = (self.held(x), self.held(y)), jnp.promote_types(dtype, jnp.float32)
        inner = [(x.axes[i], y.axes[j]) for i, j in zip(*over, strict=True)]
        if held == ((FEATURE,), (FEATURE,)) and all(avals[0].shape[i] == 1 for i in over[0]):
            return self.layout.dot(*same_width(x, y), (0, 0), wide, precision, False)
        if inner != [(FEATURE, FEATURE)] or sorted(map(len, held)) != [1, 2] or set(held[0] + held[1]) != {FEATURE}:
            return None
        one, other, axis = (x, y, over[1][0]) if len(held[0]) == 1 else (y, x, over[0][0])
        return self.layout.dot(
            *same_width(one, other), (1, self.layout.sort(other.axes).index(axis)), wide, precision, False
        )

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
            wider = self.convert(value, wide)
            moved = tuple(None if i is None else wider.axes[i] for i in where)
            order = [i for i in where if i is not None]
            data = self.transpose(wider, order).data
            parts.append(Value(data, moved))
        product = self.elementwise(jnp.multiply, parts, shape, wide)
        last = range(rank - len(over_x), rank)
        return self.reduce("sum", product, tuple(last), jax.ShapeDtypeStruct(shape, wide))

    def take(self, values: list[Value], aval: Any, sizes: Sequence[int]) -> Value:
        """Single entries of axes of features."""
        value, *starts = values
        shape = list(aval.shape)
        for axis, (size, start) in enumerate(zip(sizes, starts, strict=True)):
            if size == shape[axis]:
                continue
            if size != 1 or value.axes[axis] not in (FEATURE, None):
                raise Unsupported("a slice of a block")
            value = self.pick(value, axis, jnp.clip(start.data, 0, shape[axis] - 1), tuple(shape))
            shape[axis] = 1
        return value

    def put(self, values: list[Value], aval: Any, part: tuple[int, ...]) -> Value:
        """Single entries of axes of features, replaced."""
        value, update, *starts = values
        here, whole = [], []
        for axis, (size, start) in enumerate(zip(part, starts, strict=True)):
            if size == aval.shape[axis]:
                continue
            if size != 1 or value.axes[axis] not in (FEATURE, None):
                raise Unsupported("an update of a part of a block")
            here.append(self._features(axis, aval.shape))
            whole.append(Value(jnp.clip(start.data, 0, aval.shape[axis] - 1), (None,) * len(part)))
        if not here:
            return update
        new = lambda new, old, *x: jnp.where(
            functools.reduce(jnp.logical_and, map(jnp.equal, x[: len(here)], x[len(here) :])), new, old
        )
        return self.elementwise(new, [update, value, *here, *whole], aval.shape, aval.dtype)

    def broadcast(self, value: Value, old: tuple, new: tuple, dims: Sequence[int]) -> Value:
        axes: list[str | None] = [None] * len(new)
        for i, dim in enumerate(dims):
            axes[dim] = value.axes[i] if old[i] == new[dim] else None
        return dataclasses.replace(value, axes=tuple(axes))

    def transpose(self, value: Value, permutation: Sequence[int]) -> Value:
        axes = tuple(value.axes[i] for i in permutation)
        before = [permutation.index(i) for i in self.layout.sort(value.axes)]
        if list(self.layout.sort(axes)) == before:
            return dataclasses.replace(value, axes=axes)
        narrow = None if value.narrow is None else self.layout.transpose(value.narrow)
        return Value(self.layout.transpose(value.data), axes, value.base2, narrow)
