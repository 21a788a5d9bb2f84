"""How operands and sums of a pass lie in a TPU's memories: block specs, and the values that blocks become."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention._evaluate import Evaluator
from pallas_kernels.attention._flat import Unsupported
from pallas_kernels.attention._made import NAMES
from pallas_kernels.attention._plan import COLS, ROWS, Plan
from pallas_kernels.attention._sums import sum_dtype
from pallas_kernels.attention._values import FEATURE, Value
from pallas_kernels.attention.tpu._lanes import LANES, Lanes, row
from pallas_kernels.attention.tpu._passes import Pass


@dataclasses.dataclass(frozen=True)
class At:
    """Where a step is, or one of its tiles.

    Attributes:
        index: along every dimension, of groups of tiles or of tiles.
        entry: of the list of tiles: what is done.
        tile: the number of the tile in its group.
    """

    index: dict[int, Any]
    entry: Any
    tile: Any = 0


class Blocks:
    """Blocks of one pass.

    Attributes:
        outer: dimensions of the grid before the list of tiles.
        fast: the dimension along which the tiles of a group stand next to each other; a group is one step.
        group: tiles in it.
        sizes: lengths of a tile.
    """

    def __init__(self, plan: Plan, order: Pass, layout: Lanes, evaluator: Evaluator):
        self.plan, self.order, self.layout, self.evaluator = plan, order, layout, evaluator
        grid = plan.grid
        self.outer = [d for d in range(len(grid.outer)) if d not in order.inner]
        self.sizes = {ROWS: grid.row_block, COLS: grid.col_block}
        self.counts = {ROWS: grid.rows, COLS: grid.cols}
        self.fast, self.group = (ROWS if order.order == "col" else COLS), order.group
        # A running scale is kept in base 2 if the tile function makes it so.
        self.base2 = plan.scaled and evaluator.flat.jaxpr.outvars[0] in evaluator.flat.base2

    def _block(self, dim: int | None, whole: int) -> int:
        """Length of an axis of a tile's block."""
        return whole if dim is None else self.sizes[dim]

    def _window(self, dim: int | None, whole: int) -> int:
        """Length of that axis for a whole group."""
        return self._block(dim, whole) * (self.group if dim == self.fast else 1)

    def _count(self, dim: int | None) -> int:
        """Blocks along an axis."""
        return 1 if dim is None else self.counts[dim]

    # --- operands

    def operand(self, array: jax.Array, spec: Any) -> tuple[jax.Array | None, Any, Callable]:
        """How an operand is laid out, its block spec (taking an ``At``), and how a block of it becomes a value."""
        dims = spec.dims
        outer = sorted(d for d in dims if d is not None and d >= 0)
        kept = [i for i, d in enumerate(dims) if d is None or d < 0]
        there = [i for i in kept if dims[i] is not None or array.shape[i] > 1]
        names = tuple(_name(dims[i]) if self._block(dims[i], array.shape[i]) > 1 else None for i in kept)
        there.sort(key=lambda i: (ROWS, COLS, None).index(dims[i]))
        dtype = array.dtype
        if spec.index:
            return None, None, functools.partial(self._positions, dims[0], names)
        lead = tuple(self.plan.grid.outer[d] for d in outer)
        array = array.transpose(*(dims.index(d) for d in outer), *there, *(i for i in kept if i not in there))
        array = array.reshape(*lead, *array.shape[len(lead) : len(lead) + len(there)])
        if len(there) > 2:
            raise Unsupported(f"an operand with blocks of {len(there)} axes")
        array = array.astype(_held_dtype(dtype, len(there)))
        if not there:
            flat = array.reshape(-1)

            def number(ref, at: At) -> Value:
                which = jnp.int32(0)
                for d in outer:
                    which = which * self.plan.grid.outer[d] + at.index[d]
                data = ref[which]
                return Value((data != 0) if dtype == jnp.bool_ else data.astype(dtype), names)

            return flat, pl.BlockSpec(memory_space=pltpu.SMEM), number
        lengths = [self._window(dims[i], array.shape[len(lead) + n]) for n, i in enumerate(there)]
        places = [dims[i] for i in there]
        if len(there) == 1:
            array, lengths, places = array[..., None, :], [1, *lengths], [None, *places]

        def place(at: At) -> tuple:
            return (*(at.index[d] for d in outer), *(0 if d is None else at.index[d] for d in places))

        flip = len(there) == 2 and self.layout.sort(tuple(_name(d) for d in places)) != (0, 1)

        def block(ref, at: At) -> Value:
            data = self._view(ref, places, at)
            named = self.evaluator.held(Value(None, names))
            if not named:
                pass  # a matrix of one number
            elif len(named) == 1:
                data = self.layout.vector(data if data.shape[0] == 1 else data.T, named[0])
            elif flip:
                data = data.T if data.dtype != jnp.bool_ else data.astype(jnp.int32).T != 0
            if dtype == jnp.bool_ and data.dtype != jnp.bool_:
                data = data != 0
            elif dtype == jnp.float16:
                return Value(data.astype(dtype), names)
            return Value(data, names)

        return array, ((None,) * len(lead) + tuple(lengths), place), block

    def _view(self, ref: Any, places: list, at: At) -> jax.Array:
        """The part of a group's block that belongs to a tile."""
        if self.group == 1 or self.fast not in places:
            return ref[...]
        size = self.sizes[self.fast]
        start = at.tile * size if isinstance(at.tile, int) else pl.multiple_of(at.tile * size, size)
        return ref[tuple(pl.ds(start, size) if d == self.fast else slice(None) for d in places)]

    def _positions(self, dim: int, names: tuple, ref: Any, at: At) -> Value:
        size, name = self.sizes[dim], NAMES[dim]
        if size == 1:
            return Value(at.index[dim], names)
        first = name == self.layout.first
        shape = (size, LANES) if first else (1, size)
        data = lax.broadcasted_iota(jnp.int32, shape, 0 if first else 1) + at.index[dim] * size
        return Value(data, names)

    # --- outputs

    def places(self, output: int) -> tuple[list, list]:
        """Dimensions of an output's blocks, in the order held (None for features), and their sizes in a block."""
        spec, block = self.plan.outputs[output], self.plan.tile.outputs[output]
        kept = [d for d in spec.dims if d is None or d < 0]
        sizes = [(d, n) for d, n in zip(kept, block.shape, strict=True) if d is not None or n > 1]
        order = self.layout.sort(tuple(_name(d) for d, _ in sizes))
        return [sizes[i][0] for i in order], [sizes[i][1] for i in order]

    def held_shape(self, output: int) -> tuple[int, int]:
        """Shape of the matrix that an output's sum is held in."""
        dims, sizes = self.places(output)
        if not dims:
            return (1, LANES)
        if len(dims) == 1:
            return (sizes[0], LANES) if _name(dims[0]) == self.layout.first else (1, sizes[0])
        if len(dims) > 2:
            raise Unsupported(f"an output with blocks of {len(dims)} axes")
        return sizes[0], sizes[1]

    def written_shape(self, output: int) -> tuple[int, int]:
        """Shape of the block that is written: a vector is one row."""
        dims, sizes = self.places(output)
        return (1, sizes[0]) if len(dims) == 1 else self.held_shape(output)

    def hold(self, value: Value, output: int) -> jax.Array:
        """An output's block as the matrix that it is added up in."""
        dims, sizes = self.places(output)
        names = tuple(_name(d) for d in dims)
        value = self.evaluator.natural(value) if not (self.base2 and output == 0) else self.evaluator.binary(value)
        dtype = sum_dtype(self.plan.tile.outputs[output].dtype)
        data = value.data if not value.known else jnp.asarray(value.data, dtype)
        data = self.layout.spread(data, self.evaluator.held(value), names, tuple(sizes))
        return jnp.broadcast_to(data.astype(dtype), self.held_shape(output))

    def resident(self, output: int) -> bool:
        return output in self.order.resident

    def scratch(self) -> list[tuple[int, tuple[int, ...]]]:
        shapes = []
        for i in self.order.outputs:
            shape = self.held_shape(i)
            shapes.append((i, (self.slots(i), *shape) if self.resident(i) else shape))
        return shapes

    def slots(self, output: int) -> int:
        """Blocks of a resident output: rows of tiles, at every inner point that it follows."""
        followed = [d for d in self.order.inner if d in self.plan.outputs[output].dims]
        return math.prod(self.plan.grid.outer[d] for d in followed) * self.plan.grid.rows

    def slot(self, output: int, at: At) -> Any:
        slot = jnp.int32(0)
        for d in self.order.inner:
            if d in self.plan.outputs[output].dims:
                slot = slot * self.plan.grid.outer[d] + at.index[d]
        return slot * self.plan.grid.rows + at.index[ROWS]

    def output(self, i: int, mapped: Callable) -> tuple[jax.ShapeDtypeStruct, pl.BlockSpec]:
        """Shape and block spec of an output: all outer dimensions of the grid, then inner ones, then blocks."""
        plan, grid = self.plan, self.plan.grid
        lead = tuple(grid.outer[d] for d in self.outer)
        dtype = _written_dtype(plan.results[i])
        written = self.written_shape(i)
        if self.resident(i):
            shape = (self.slots(i), *written)
            place = lambda at: (*(at.index[d] for d in self.outer), 0, 0, 0)
            return jax.ShapeDtypeStruct((*lead, *shape), dtype), pl.BlockSpec(
                (*(None,) * len(lead), *shape), mapped(place)
            )
        inner = [d for d in self.order.inner if d in plan.outputs[i].dims]
        dims, _ = self.places(i)
        dims = [None] * (2 - len(dims)) + dims
        whole = [n * self._count(d) for d, n in zip(dims, written, strict=True)]

        def place(at: At) -> tuple:
            return (*(at.index[d] for d in (*self.outer, *inner)), *(0 if d is None else at.index[d] for d in dims))

        shape = (*lead, *(grid.outer[d] for d in inner), *whole)
        return jax.ShapeDtypeStruct(shape, dtype), pl.BlockSpec(
            ((None,) * (len(lead) + len(inner)) + written), mapped(place)
        )

    def restore(self, i: int, x: jax.Array) -> jax.Array:
        """An output in its spec's order of axes, added up over dimensions that it does not follow."""
        plan, grid = self.plan, self.plan.grid
        spec, block = plan.outputs[i], plan.tile.outputs[i]
        inner = [d for d in self.order.inner if d in spec.dims]
        dims, sizes = self.places(i)
        lead = [*self.outer, *inner]
        x = x[..., :1, :1] if not dims else x
        x = x.reshape(*(grid.outer[d] for d in lead), *(n * self._count(d) for d, n in zip(dims, sizes, strict=True)))
        gone = tuple(n for n, d in enumerate(lead) if d not in spec.dims)
        if gone:
            x = x.astype(sum_dtype(x.dtype)).sum(gone)
        lead = [d for d in lead if d in spec.dims]
        # Features keep their order; axes of size one come back.
        features = iter(n for n, d in enumerate(dims) if d is None)
        sources, shape, lengths = [], [], iter(block.shape)
        for d in spec.dims:
            if d is not None and d >= 0:
                sources.append(lead.index(d))
                shape.append(grid.outer[d])
                continue
            n = next(lengths)
            shape.append(n * self._count(d))
            if d is not None:
                sources.append(len(lead) + dims.index(d))
            elif n > 1:
                sources.append(len(lead) + next(features))
        return x.transpose(sources).reshape(shape).astype(plan.results[i])

    def _is_column(self, output: int) -> bool:
        """Whether an output is held as a column, and written as a row."""
        dims, _ = self.places(output)
        return len(dims) == 1 and _name(dims[0]) == self.layout.first

    def as_written(self, output: int, held: Any) -> jax.Array:
        return row(held[...]) if self._is_column(output) else held[...]


def _name(dim: int | None) -> str:
    return FEATURE if dim is None else NAMES[dim]


def _held_dtype(dtype: Any, axes: int) -> Any:
    """The type in which an operand reaches the kernel: no 16-bit scalars, no float16, no rows of booleans."""
    if dtype == jnp.bool_:
        return jnp.int32 if axes < 2 else bool
    if dtype == jnp.float16 or (not axes and jnp.issubdtype(dtype, jnp.floating)):
        return jnp.promote_types(dtype, jnp.float32)
    return dtype


def _written_dtype(dtype: Any) -> Any:
    return jnp.float32 if dtype == jnp.float16 else dtype
