"""Folds on Hopper GPUs: one kernel for each order in which a plan's outputs can be added up.

A block of threads adds up what belongs to one place: a tile's length of positions, 64 for each of its warpgroups. One
more warpgroup moves the matrices that each step needs into a ring in shared memory, ahead of the others.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend import core

from pallas_kernels import _compat
from pallas_kernels._target import Target
from pallas_kernels.attention import _work
from pallas_kernels.attention._cut import cut, named, summed_by_columns
from pallas_kernels.attention._evaluate import Evaluator, traced_shape
from pallas_kernels.attention._flat import TooLarge, Unsupported, read_inputs
from pallas_kernels.attention._labels import met_by_feature
from pallas_kernels.attention._made import NAMES, MadePlan, spec_names
from pallas_kernels.attention._plan import COLS, ROWS, Plan, running
from pallas_kernels.attention._sums import sum_dtype
from pallas_kernels.attention._values import COL, FEATURE, ROW
from pallas_kernels.attention.gpu._fragments import ROWS_EACH, SWIZZLE, Fragments, padded
from pallas_kernels.attention.gpu._operands import At, Operand, Operands
from pallas_kernels.attention.gpu._walk import Visits, Walk

_STAGES = 4
"""Slots of the ring, at most."""

_REGISTERS = {"moves": 32, "computes": {1: 248, 2: 240, 3: 160}}
"""Of a thread, by what its warpgroup does and by how many warpgroups compute: 64 Ki in all."""

_KEPT = 224
"""Registers that a thread's sums and matrices may take by the model."""


def run(plan: Plan, tiles: jax.Array, arrays: Sequence[jax.Array], target: Target) -> tuple[jax.Array, ...]:
    """Every output of a plan; see ``pallas_kernels.attention.fold``."""
    found: dict[int, jax.Array] = {}
    for order, outputs in _groups(plan):
        middle, operands, finish = cut(plan, outputs, COLS if order == "col" else ROWS, arrays)
        found |= finish(_Call(middle, order, target)(tiles, operands))
    return tuple(found[i] for i in range(len(plan.outputs)))


def _groups(plan: Plan) -> list[tuple[str, list[int]]]:
    """The walks that a plan takes: an order, and the outputs that are added up in it, as far as registers go."""
    if running(plan):
        return [("row", list(range(len(plan.outputs))))]
    kinds: dict[tuple, list[int]] = {}
    for i, spec in enumerate(plan.outputs):
        row, col = ROWS in spec.dims, COLS in spec.dims
        by_columns = col or (not row and summed_by_columns(plan, i))
        order = "pair" if row and col else "col" if by_columns else "row"
        inner = () if order == "row" else tuple(d for d in range(len(plan.grid.outer)) if d not in spec.dims)
        kinds.setdefault((order, inner), []).append(i)
    found = []
    for (order, _), outputs in kinds.items():
        group: list[int] = []
        for i in outputs:
            if group and _registers(plan, [*group, i]) > _KEPT - ROWS_EACH:
                found.append((order, group))
                group = []
            group = [*group, i]
        found.append((order, group))
    return found


def _registers(plan: Plan, outputs: Sequence[int]) -> int:
    """Registers of a thread that sums take."""
    total = 0
    for i in outputs:
        block = plan.tile.outputs[i].shape
        features = block[sum(d in (ROWS, COLS) for d in plan.outputs[i].dims) :]
        total += padded(math.prod(features)) // 2 if math.prod(features) > 1 else 2
    return total


class _Call:
    """One pass over the tiles."""

    def __init__(self, plan: MadePlan, order: str, target: Target):
        self.plan, self.order, self.target = plan, order, target
        grid = plan.grid
        self.first, self.other = (COLS, ROWS) if order == "col" else (ROWS, COLS)
        self.blocks = {ROWS: grid.row_block, COLS: grid.col_block}
        self.counts = {ROWS: grid.rows, COLS: grid.cols}
        if grid.row_block % ROWS_EACH or grid.col_block % ROWS_EACH:
            raise TooLarge(
                f"tiles of {grid.row_block} x {grid.col_block} queries and keys are no multiples of {ROWS_EACH}"
            )
        self.outputs = range(len(plan.outputs))
        # Outer dimensions that no output follows are walked through inside.
        lacked = [d for d in range(len(grid.outer)) if all(d not in s.dims for s in plan.outputs)]
        self.inner = lacked if order != "row" else []
        self.outer = [d for d in range(len(grid.outer)) if d not in self.inner]
        self.flat, self.names = named(plan, self.outputs)
        self.base2 = plan.scaled and self.flat.jaxpr.outvars[0] in self.flat.base2
        self.used = read_inputs(self.flat, running(plan))

    # --- sizes

    def _sizes(self, operands: Sequence[Operand]) -> tuple[int, int, int]:
        """Warpgroups that compute, positions of a step along the other dimension, and slots of the ring."""
        halves = self.blocks[self.first] // ROWS_EACH
        groups = [n for n in (2, 3, 1) if halves % n == 0]
        steps = [n for n in (2 * ROWS_EACH, ROWS_EACH) if self.blocks[self.other] % n == 0]
        tried = [(n, step) for n in groups for step in steps]
        sums = _registers(self.plan, self.outputs)
        products = sum(e.primitive.name == "dot_general" and self._is_pair(e.outvars[0]) for e in self.flat.jaxpr.eqns)
        for least in (2, 1):
            for n, step in tried:
                kept, moved = self._shared(operands, n, step)
                stages = min(_STAGES, (self.target.shared - kept) // moved if moved else _STAGES)
                matrices = (1 + min(products, 2)) * step // 2
                if stages >= least and (sums + matrices <= _KEPT or step == steps[-1]):
                    return n, step, stages
        kept, moved = self._shared(operands, *tried[-1])
        raise Unsupported(
            f"what takes {kept:,} bytes of shared memory and {moved:,} more for each step, with {ROWS_EACH} queries "
            f"and keys at a time, where {self.target.generation} has {self.target.shared:,}"
        )

    def _is_pair(self, variable: Any) -> bool:
        """Whether a variable is a matrix of queries and keys."""
        return {ROW, COL} <= set(self.names[variable])

    def _shared(self, operands: Sequence[Operand], groups: int, step: int) -> tuple[int, int]:
        """Bytes of shared memory: for all of a place, and for each step."""
        kept = moved = 0
        for x in operands:
            size = 2 * len(x.arrays) * (groups * ROWS_EACH if x.first else step) * x.width
            kept, moved = (kept + size, moved) if x.is_kept else (kept, moved + size)
        staged = 2 * groups * ROWS_EACH * step if self.target.interpret else 0
        # What barriers and the compiler take.
        return kept + staged + 4096, moved

    # --- the call

    def __call__(self, tiles: jax.Array, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        plan, order, grid = self.plan, self.order, self.plan.grid
        tiles, self.followed = _work.by_point(plan, self.inner, tiles)
        work = _work.visits(tiles, order, plan.start is not None)
        self.layout = Fragments(NAMES[self.first], 0)
        made = Operands(self.layout, self.first, frozenset((self.other, *self.inner)))
        inputs = self.flat.jaxpr.invars[running(plan) :]
        single = met_by_feature(self.flat.jaxpr, self.names)
        operands = [made.operand(arrays[n], plan.inputs[n], inputs[n] in single) for n in self.used]
        self.groups, self.step, self.stages = self._sizes(operands)
        self.layout.others = self.step
        # A tile is cut along the first dimension into places, and along the other into steps; or places, in pairs.
        self.pieces, self.parts = (
            self.blocks[self.first] // (self.groups * ROWS_EACH),
            self.blocks[self.other] // self.step,
        )
        self.evaluator = Evaluator(self.flat, self.layout, shape=self._shape)
        places = self.pieces * {"row": grid.rows, "col": grid.cols, "pair": grid.rows * grid.cols * self.parts}[order]
        flat = [a for x in operands for a in x.arrays]
        points = math.prod(grid.outer[d] for d in self.outer)
        out_type = [jax.ShapeDtypeStruct(*self._written(i)) for i in self.outputs]
        extra = {}
        if self.target.interpret:
            extra["interpret"] = _compat.interpreter() if self.target.interpret is True else self.target.interpret
        results = plgpu.kernel(
            functools.partial(self._kernel, operands),
            out_type=out_type,
            scratch_types=self._scratch(operands),
            grid=(points, places),
            grid_names=("point", "place"),
            num_threads=self.groups + 1,
            thread_name="warpgroup",
            kernel_name=f"fold_{'scaled_' if plan.scaled else ''}{order}",
            compiler_params=plgpu.CompilerParams(
                approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=False
            ),
            **extra,
        )(work.tiles, work.counts, work.order, *flat)
        return [self._restore(i, x) for i, x in enumerate(results)]

    def _shape(self, atom: Any) -> tuple[int, ...]:
        """Shape of a variable in a warpgroup's tile."""
        found = self.names.get(atom) if not isinstance(atom, core.Literal) else None
        if found is None or set(found) <= {None, FEATURE} and FEATURE in found:  # tables are not stored in lines
            return traced_shape(atom)
        sizes = []
        for name, size in zip(found, traced_shape(atom), strict=True):
            if name is None and size > 1:
                raise Unsupported(f"an axis of {size} numbers that are neither queries, keys nor features")
            sizes.append(1 if name is None else self.layout.length(name, size))
        return tuple(sizes)

    def output_names(self, output: int) -> tuple[str | None, ...]:
        return spec_names(self.plan.outputs[output], self.plan.tile.outputs[output])

    def _scratch(self, operands: Sequence[Operand]) -> dict:
        transforms = (plgpu.TilingTransform((8, SWIZZLE // 2)), plgpu.SwizzleTransform(SWIZZLE))
        shared = lambda shape, dtype: plgpu.SMEM(shape, dtype, transforms=transforms)
        kept, ring = [], []
        for x in operands:
            if not x.width:
                continue
            shape = (self.groups, ROWS_EACH, x.width) if x.first else (self.step, x.width)
            target = kept if x.is_kept else ring
            for a in x.arrays:
                target.append(shared(shape if target is kept else (self.stages, *shape), a.dtype))
        found: dict[str, Any] = {"kept": kept, "ring": ring}
        copies = sum(len(x.arrays) * (self.groups if x.first else 1) for x in operands if x.is_moved)
        count = sum(len(x.arrays) for x in operands if x.is_kept)
        if count:
            found["ready"] = plgpu.Barrier(num_arrivals=count, num_barriers=self.groups)
        if copies:
            found["full"] = plgpu.Barrier(num_arrivals=copies, num_barriers=self.stages)
            found["empty"] = plgpu.Barrier(num_arrivals=self.groups, num_barriers=self.stages)
        if self.target.interpret:
            found["staged"] = {
                str(jnp.dtype(t)): shared((self.groups, ROWS_EACH, padded(self.step)), t)
                for t in {a.dtype for x in operands if x.width for a in x.arrays}
            }
        return found

    # --- outputs

    def _order(self, i: int) -> list[int]:
        """Axes of an output in the order in which they are written: positions of the place, others, features last."""
        dims = self.plan.outputs[i].dims
        return sorted(range(len(dims)), key=lambda n: 2 if dims[n] is None else int(dims[n] == self.other))

    def _axes(self, i: int) -> tuple[list, tuple[int, ...]]:
        """For each axis of an output as it is written its dimension, and the shape: dimensions that it is yet to be
        added up over come first, and features are whole lines."""
        plan, grid = self.plan, self.plan.grid
        spec, block = plan.outputs[i], plan.tile.outputs[i]
        lead = [d for d in self.outer if d not in spec.dims]
        lengths = iter(block.shape)
        whole = [
            grid.outer[d] if d is not None and d >= 0
            else next(lengths) * self.counts[d] if d is not None
            else padded(n) if (n := next(lengths)) > 1 else 1
            for d in spec.dims
        ]  # fmt: skip
        order = self._order(i)
        return [*lead, *(spec.dims[n] for n in order)], (*(grid.outer[d] for d in lead), *(whole[n] for n in order))

    def _written(self, i: int) -> tuple[tuple[int, ...], Any]:
        dims, shape = self._axes(i)
        summed = len(dims) > len(self.plan.outputs[i].dims)
        return shape, sum_dtype(self.plan.results[i]) if summed else self.plan.results[i]

    def _restore(self, i: int, x: jax.Array) -> jax.Array:
        spec, block = self.plan.outputs[i], self.plan.tile.outputs[i]
        x = x.sum(tuple(range(x.ndim - len(spec.dims))))
        order = self._order(i)
        x = x.transpose([order.index(n) for n in range(len(order))])
        lengths = iter(block.shape)
        for axis, d in enumerate(spec.dims):
            if d is None or d < 0:
                n = next(lengths)
                x = lax.slice_in_dim(x, 0, n, axis=axis) if d is None else x
        return x.astype(self.plan.results[i])

    def write(self, ref: Any, i: int, data: jax.Array, at: At) -> None:
        dims, shape = self._axes(i)
        place = tuple(
            0 if d is None and n == 1 else slice(None) if d is None else at.index[d] if d >= 0
            else pl.ds(at.starts[d], self.layout.length(NAMES[d], 2))
            for d, n in zip(dims, shape, strict=True)
        )  # fmt: skip
        _compat.store(ref.at[place], data.astype(ref.dtype))

    # --- the kernel

    def _kernel(self, operands: Sequence[Operand], *refs, **scratch) -> None:
        count = sum(len(x.arrays) for x in operands)
        tiles, counts, places, *refs = refs
        refs, rest = refs[:count], refs[count:]
        outs = rest[: len(self.outputs)]
        if not scratch:
            (scratch,) = rest[len(outs) :]
        given = iter(refs)
        own = [[next(given) for _ in x.arrays] for x in operands]
        visits = Visits(self, tiles, counts, places)
        warpgroup = lax.axis_index("warpgroup")
        run = Walk(self, operands, own, scratch, visits)

        @pl.when(warpgroup == self.groups)
        def _():
            plgpu.set_max_registers(_REGISTERS["moves"], action="decrease")
            run.move()

        @pl.when(warpgroup < self.groups)
        def _():
            plgpu.set_max_registers(_REGISTERS["computes"][self.groups], action="increase")
            run.compute(warpgroup, outs)
