"""The plane of tiles: which part of each array belongs to which grid point.

Attention runs over a grid: any number of *outer* dimensions (batch, key/value head, query group, and whatever
``jax.vmap`` adds), then blocks of queries (``ROW``), then blocks of keys (``COL``). A ``Spec`` says, axis by axis,
which grid dimension an array follows; an axis that follows none is passed whole. An array that does not mention a
dimension is shared along it if it is an input, and summed along it if it is an output, so that the cotangent of an
input has the input's own spec. Everything else here (slicing, vectorizing) is derived from the specs.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

ROW = -2
COL = -1
Dim = int | None


@dataclasses.dataclass(frozen=True)
class Spec:
    """For each axis of an array: an outer dimension's number, ``ROW``, ``COL``, or None for an axis passed whole.

    Attributes:
        dims: what the axes follow.
        index: whether the entries are their own positions ``0, 1, ...``, so that a kernel need not read them.
    """

    dims: tuple[Dim, ...]
    index: bool = False

    def follows(self, dim: int) -> bool:
        return dim in self.dims


@dataclasses.dataclass(frozen=True)
class Grid:
    """Sizes of the outer dimensions, and number and length of the query and key blocks."""

    outer: tuple[int, ...]
    rows: int
    cols: int
    row_block: int
    col_block: int

    def extent(self, dim: Dim, whole: int = 0) -> int:
        """Length of an array axis that follows ``dim``."""
        if dim is None:
            return whole
        if dim == ROW:
            return self.rows * self.row_block
        if dim == COL:
            return self.cols * self.col_block
        return self.outer[dim]

    def block(self, dim: Dim, whole: int = 0) -> int | None:
        """Length of that axis inside one tile; None where the axis is dropped."""
        if dim is None:
            return whole
        return {ROW: self.row_block, COL: self.col_block}.get(dim)

    def array_shape(self, spec: Spec, block_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the whole array whose block has ``block_shape``."""
        lengths = iter(block_shape)
        shape = []
        for dim in spec.dims:
            kept = self.block(dim, 1) is not None
            shape.append(self.extent(dim, next(lengths)) if kept else self.extent(dim))
        return tuple(shape)

    def block_shape(self, spec: Spec, array_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of one block of an array."""
        blocks = (self.block(dim, size) for dim, size in zip(spec.dims, array_shape, strict=True))
        return tuple(size for size in blocks if size is not None)

    @property
    def points(self) -> int:
        return math.prod(self.outer)

    def coordinates(self, point: Any) -> dict[int, Any]:
        """Outer coordinates of a flat index, last dimension fastest."""
        found = {}
        for dim in reversed(range(len(self.outer))):
            found[dim] = point % self.outer[dim]
            point = point // self.outer[dim]
        return found


def _starts_and_sizes(array_shape, spec: Spec, grid: Grid, at: dict):
    """Start and length along each axis of the block at the coordinates ``at``; axes not in ``at`` are taken whole."""
    starts, sizes = [], []
    for dim, size in zip(spec.dims, array_shape, strict=True):
        if dim is None or dim not in at:
            starts.append(0)
            sizes.append(size)
        else:
            length = grid.block(dim) or 1
            starts.append(at[dim] * length)
            sizes.append(length)
    return [jnp.asarray(s, jnp.int32) for s in starts], sizes


def take(array: jax.Array, spec: Spec, grid: Grid, at: dict) -> tuple[jax.Array, Spec]:
    """The part of ``array`` at the coordinates ``at`` (outer axes among them are dropped), and the spec of the rest."""
    starts, sizes = _starts_and_sizes(array.shape, spec, grid, at)
    block = lax.dynamic_slice(array, starts, sizes) if array.ndim else array
    dropped = [i for i, dim in enumerate(spec.dims) if dim in at and dim is not None and dim >= 0]
    left = [None if dim in at else dim for i, dim in enumerate(spec.dims) if i not in dropped]
    return lax.squeeze(block, dropped), Spec(tuple(left))


def add(array: jax.Array, block: jax.Array, spec: Spec, grid: Grid, at: dict) -> jax.Array:
    """``array`` with ``block`` added at the coordinates ``at``."""
    if not array.ndim:
        return array + block
    starts, sizes = _starts_and_sizes(array.shape, spec, grid, at)
    return lax.dynamic_update_slice(array, lax.dynamic_slice(array, starts, sizes) + block.reshape(sizes), starts)


def put(array: jax.Array, block: jax.Array, spec: Spec, grid: Grid, at: dict) -> jax.Array:
    """``array`` with ``block`` written at the coordinates ``at``."""
    if not array.ndim:
        return block
    starts, sizes = _starts_and_sizes(array.shape, spec, grid, at)
    return lax.dynamic_update_slice(array, block.reshape(sizes), starts)


def vectorize(
    tile: Callable, in_specs: Sequence[Spec], out_specs: Sequence[Spec], dims: Sequence[int]
) -> tuple[Callable, list[Spec], list[Spec]]:
    """``tile`` mapped over the outer dimensions ``dims`` at once, and the specs by which it then takes its blocks.

    Outputs that do not follow a dimension are summed over it.
    """
    in_specs, out_specs = list(in_specs), list(out_specs)
    for dim in dims:
        # Axes that follow a later outer dimension are not in the block yet when this map is innermost.
        in_axes = [_axis_inside(spec, dim, dims) for spec in in_specs]
        out_axes = [_axis_inside(spec, dim, dims) for spec in out_specs]
        tile = _mapped(tile, in_axes, out_axes)

    def widen(spec: Spec) -> Spec:
        return Spec(tuple(None if d in dims else d for d in spec.dims))

    return tile, [widen(s) for s in in_specs], [widen(s) for s in out_specs]


def _axis_inside(spec: Spec, dim: int, dims: Sequence[int]) -> int | None:
    """Position of ``dim`` among the axes present once ``dim`` and the dimensions mapped before it are in the block."""
    if dim not in spec.dims:
        return None
    mapped = set(dims[: list(dims).index(dim) + 1])
    present = [d for d in spec.dims if d is None or d < 0 or d in mapped]
    return present.index(dim)


def _mapped(tile: Callable, in_axes, out_axes) -> Callable:
    def call(*blocks):
        if all(axis is None for axis in in_axes):
            raise AssertionError("no operand follows a grid dimension that is to be vectorized")
        outs = jax.vmap(tile, in_axes=tuple(in_axes), out_axes=tuple(0 if a is None else a for a in out_axes))(*blocks)
        return tuple(o.sum(0) if axis is None else o for o, axis in zip(outs, out_axes, strict=True))

    return call


def apply_whole(tile: Callable, arrays, in_specs, out_specs, grid: Grid) -> tuple:
    """``tile`` over the whole plane as one tile, vectorized over every outer dimension."""
    mapped, _, _ = vectorize(tile, in_specs, out_specs, range(len(grid.outer)))
    return mapped(*arrays)
