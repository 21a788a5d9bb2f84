"""Folds over many devices: one more executor, for a fold and every derivative of it.

Each operand of a fold says by its spec which grid dimensions its axes follow, and that settles where it lives on a
mesh. Outer dimensions (batch, heads) are split and nothing else changes. Where the sequence is split too, blocks that
follow rows stay, and blocks that follow columns go round a ring: at each hop a device folds its rows over the columns
that it holds, while these are on their way to the next device::

    out_i = sum_hops fold(row_i, col_(i - hop))             rows add up in place (scaled folds: at their log scales)
    out_j = what the hops have added to it on its way       columns carry their sums along and bring them home

As derivatives of folds are folds, keys, values, their tangents and their cotangents all travel by this one rule, and
each device keeps what it owns and the block that it holds.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from attnjax.attention._grid import COL, ROW, Grid, Spec
from attnjax.attention._tiles import Carrier, Executor, Plan, rescale, run, run_on_cpu, scan, sum_dtype
from attnjax.parallel._placement import Placement


@dataclasses.dataclass(frozen=True)
class Split:
    """Runs a fold split over a mesh.

    Attributes:
        mesh: the devices.
        outer: for each outer dimension of the grid the mesh axes that it is split over.
        ring: the mesh axis that rows and columns are split over, or None where every device has all of them.
        first: of how many devices ago the columns are that a device folds over first.
        hops: how many devices' columns it folds over.
        inner: runs the fold on a device; None for the loops over tiles.
        placement: where tokens lie; None as they are read.
    """

    mesh: Mesh
    outer: tuple[tuple[str, ...], ...]
    ring: str | None = None
    first: int = 0
    hops: int = 1
    inner: Executor | None = None
    placement: Placement | None = None

    def tangent(self, live: tuple[int, ...]) -> "Split":
        return dataclasses.replace(self, inner=self.inner and self.inner.tangent(live))

    def transpose(self, linear: tuple[int, ...], operands: int, complete: bool) -> "Split":
        return dataclasses.replace(self, inner=self.inner and self.inner.transpose(linear, operands, complete))

    def batch(self, axes: tuple[int | None, ...], plan: Plan) -> "Split":
        inner = self.inner and self.inner.batch(axes, plan)
        return dataclasses.replace(self, outer=(*self.outer, ()), inner=inner)

    def carry(
        self, plan: Plan, begin: Sequence[jax.Array], kinds: jax.Array, arrays: Sequence[jax.Array]
    ) -> tuple[jax.Array, ...]:
        """What is carried from key to key cannot begin anywhere: each device has its rows and all columns, in order."""
        if self.placement is not None and plan.grid.cols % self.placement.pieces:
            raise NotImplementedError(
                f"normalizer: one made by from_monoid() is carried in the order of the text, and tiles of "
                f"{plan.grid.col_block} keys span pieces of {self.placement}; use "
                "implementation='blocks', or contiguous()"
            )
        column = [s.dims.index(COL) if s.follows(COL) else None for s in plan.inputs]
        arrays = [x if i is None else self._as_read(x, i) for x, i in zip(arrays, column, strict=True)]
        kinds = self._as_read(kinds, kinds.ndim - 1)
        local = self._share(plan, rows=self.devices([self.ring] if self.ring else []), cols=1)
        run = self.inner.carry if isinstance(self.inner, Carrier) else scan
        whole = [dataclasses.replace(s, dims=tuple(None if d == COL else d for d in s.dims)) for s in plan.inputs]
        *outer, _, _ = self._partition(plan.visit)
        return jax.shard_map(
            lambda begin, kinds, *arrays: run(local, begin, kinds, arrays),
            mesh=self.mesh,
            in_specs=(PartitionSpec(), PartitionSpec(*outer, self.ring, None), *map(self._partition, whole)),
            out_specs=tuple(map(self._partition, plan.outputs)),
            check_vma=False,
        )(tuple(begin), kinds, *arrays)

    def _as_read(self, x: jax.Array, axis: int) -> jax.Array:
        """Columns, or tiles of them, in the order of the text."""
        return x if self.placement is None else self.placement.restore(x, axis)

    def across(self) -> "Split":
        return self

    def __call__(self, plan: Plan, kinds: jax.Array, arrays: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        *outer, _, _ = self._partition(plan.visit)
        table = PartitionSpec(*outer, self.ring, None)
        here = _Local(self, plan)
        found = jax.shard_map(
            here.ring if self.ring else here.alone,
            mesh=self.mesh,
            in_specs=(table, *map(self._partition, plan.inputs)),
            out_specs=tuple(map(self._partition, plan.outputs)),
            check_vma=False,  # the loops start from constants; what is differentiated is the fold, not this
        )(kinds, *arrays)
        return tuple(x.astype(dtype) for x, dtype in zip(found, plan.results, strict=True))

    def _share(self, plan: Plan, *, rows: int, cols: int) -> Plan:
        """The plan of one device: its part of the outer dimensions, and of rows and columns in so many parts."""
        grid = plan.grid
        outer = tuple(n // self.devices(axes) for n, axes in zip(grid.outer, self.outer, strict=True))
        return dataclasses.replace(
            plan,
            grid=Grid(outer, grid.rows // rows, grid.cols // cols, grid.row_block, grid.col_block),
            inputs=tuple(dataclasses.replace(s, index=s.index and not self.ring) for s in plan.inputs),
            executor=self.inner,
        )

    def devices(self, axes: Sequence[str]) -> int:
        return math.prod(self.mesh.shape[a] for a in axes)

    def _partition(self, spec: Spec) -> PartitionSpec:
        """What each axis of an array is split over; of an array over pairs of positions, columns are whole."""
        along = {ROW: self.ring, COL: None if spec.follows(ROW) else self.ring, None: None}
        return PartitionSpec(*(along[d] if d is None or d < 0 else self.outer[d] or None for d in spec.dims))


class _Local:
    """A fold's share of one device."""

    def __init__(self, split: Split, plan: Plan):
        self.split = split
        self.devices = split.mesh.shape[split.ring] if split.ring else 1
        self.plan = dataclasses.replace(
            split._share(plan, rows=self.devices, cols=self.devices),
            dtypes=tuple(sum_dtype(b.dtype) for b in plan.tile.outputs),
        )
        on_cpu = split.mesh.devices.flat[0].platform == "cpu"
        self.run: Callable = run_on_cpu if on_cpu else run

    def alone(self, kinds: jax.Array, *arrays: jax.Array) -> tuple:
        return tuple(map(self._summed, self.plan.outputs, self.run(kinds, *arrays, plan=self.plan)))

    def ring(self, kinds: jax.Array, *arrays: jax.Array) -> tuple:
        plan, split = self.plan, self.split
        me = lax.axis_index(split.ring)
        travels = [_is_column(s) for s in plan.inputs]

        def fold(hop: Any, cols: Sequence[jax.Array], sums: tuple) -> tuple:
            """The sums, with those over the columns of one device added."""
            source = (me - split.first - hop) % self.devices
            theirs = iter(cols)
            operands = [
                next(theirs) if t else self._columns(a, s, source)
                for a, s, t in zip(arrays, plan.inputs, travels, strict=True)
            ]
            table = lax.dynamic_slice_in_dim(kinds, source * plan.grid.cols, plan.grid.cols, axis=kinds.ndim - 1)
            return self._added(sums, self.run(table, *operands, plan=plan), source)

        def step(carry: tuple, hop: Any) -> tuple:
            sums, cols = carry
            return (fold(hop, cols, sums), self._passed(cols, 1)), None  # on their way while the fold runs

        cols = self._passed([a for a, t in zip(arrays, travels, strict=True) if t], split.first)
        sums, last = self._nothing(), split.hops - 1
        if last:
            (sums, cols), _ = lax.scan(step, (sums, cols), jnp.arange(last))
        sums = fold(jnp.int32(last), cols, sums)
        home = -(split.first + last)
        found = [self._passed([x], home)[0] if _is_column(s) else x for s, x in zip(plan.outputs, sums, strict=True)]
        return tuple(map(self._summed, plan.outputs, found))

    def _passed(self, blocks: Sequence[jax.Array], by: int) -> list[jax.Array]:
        """Blocks, each from the device that is ``by`` places before this one."""
        if by % self.devices == 0:
            return list(blocks)
        path = [(i, (i + by) % self.devices) for i in range(self.devices)]
        return [lax.ppermute(x, self.split.ring, path) for x in blocks]

    def _columns(self, array: jax.Array, spec: Spec, source: Any) -> jax.Array:
        """Of an array over pairs of positions the columns of one device; other arrays as they are."""
        if not spec.follows(COL):
            return array
        axis, length = spec.dims.index(COL), self.plan.grid.extent(COL)
        return lax.dynamic_slice_in_dim(array, source * length, length, axis)

    def _nothing(self) -> tuple:
        """The sums before any column has been seen."""
        grid, found = self.plan.grid, []
        for n, (spec, block) in enumerate(zip(self.plan.outputs, self.plan.tile.outputs, strict=True)):
            wide = dataclasses.replace(grid, cols=grid.cols * self.devices) if spec.follows(ROW) else grid
            fill = -jnp.inf if self.plan.scaled and n == 0 else 0
            found.append(jnp.full(wide.array_shape(spec, block.shape), fill, self.plan.results[n]))
        return tuple(found)

    def _added(self, sums: tuple, new: tuple, source: Any) -> tuple:
        if self.plan.scaled:
            scale = jnp.maximum(sums[0], new[0])
            at_it = lambda x: [rescale(y, x[0], scale, p) for y, p in zip(x[1:], self.plan.powers, strict=True)]
            return (scale, *(x + y for x, y in zip(at_it(sums), at_it(new), strict=True)))
        return tuple(self._plus(s, x, y, source) for s, x, y in zip(self.plan.outputs, sums, new, strict=True))

    def _plus(self, spec: Spec, total: jax.Array, new: jax.Array, source: Any) -> jax.Array:
        if not spec.follows(COL):
            return total + new
        if not spec.follows(ROW):
            return self._passed([total], 1)[0] + new
        start = source * self.plan.grid.extent(COL)
        return lax.dynamic_update_slice_in_dim(total, new, start, spec.dims.index(COL))

    def _summed(self, spec: Spec, share: jax.Array) -> jax.Array:
        """An output, summed over the mesh axes that it does not follow."""
        axes = [name for dim, names in enumerate(self.split.outer) for name in names if not spec.follows(dim)]
        if self.split.ring and not (spec.follows(ROW) or spec.follows(COL)):
            axes.append(self.split.ring)
        return lax.psum(share, axes) if axes else share


def _is_column(spec: Spec) -> bool:
    return spec.follows(COL) and not spec.follows(ROW)
