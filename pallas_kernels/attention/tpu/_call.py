"""Folds on TPU: one `pallas_call` for each order in which a plan's outputs can be added up."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels._cost import estimate
from pallas_kernels._target import MIB, Target
from pallas_kernels.attention import _work
from pallas_kernels.attention._evaluate import Evaluator
from pallas_kernels.attention._flat import TooLarge, Unsupported, flatten, read_inputs
from pallas_kernels.attention._made import spec_names
from pallas_kernels.attention._plan import COLS, ROWS, Plan, running
from pallas_kernels.attention._sums import at_mass, changes, divisor, log_scale, start_of, sum_dtype
from pallas_kernels.attention._values import COL, ROW, Value
from pallas_kernels.attention.tpu import _budget
from pallas_kernels.attention.tpu._blocks import At, Blocks
from pallas_kernels.attention.tpu._lanes import Lanes, widen
from pallas_kernels.attention.tpu._passes import Pass, passes


def run(plan: Plan, tiles: jax.Array, arrays: Sequence[jax.Array], target: Target) -> tuple[jax.Array, ...]:
    """Every output of a plan.

    Args:
        plan: what to add up.
        tiles: the block map, by ``plan.visit``: 0 empty, 1 partial, 2 full.
        arrays: the operands.
        target: what is compiled for.

    Returns:
        The outputs, in ``plan.results``' types.

    Raises:
        Unsupported: what the tile function does cannot be done in a kernel.
    """
    found: dict[int, jax.Array] = {}
    for each in passes(plan, target):
        found |= _Call(plan, each, target)(tiles, arrays)
    return tuple(found[i] for i in range(len(plan.outputs)))


class _Call:
    """One pass over the tiles."""

    def __init__(self, plan: Plan, order: Pass, target: Target):
        self.plan, self.order, self.target = plan, order, target
        grid = plan.grid
        self.layout = Lanes(COL if order.order == "col" else ROW)
        self.budget = _budget.budget(plan, order.order, order.outputs, order.inner, order.resident, order.group)
        if grid.row_block * grid.col_block > _budget.ENTRIES or self.budget.total > target.vmem:
            raise TooLarge(
                f"tiles of {grid.row_block} x {grid.col_block} need {self.budget} of vector memory; "
                f"{target.generation} has {target.vmem // MIB} MiB, and a tile at most {_budget.ENTRIES:,} entries"
            )
        self.flat = flatten(plan.tile.jaxpr, order.outputs)
        self.evaluator = Evaluator(self.flat, self.layout, target.exponential)
        self.blocks = Blocks(plan, order, self.layout, self.evaluator)
        self.outer, self.fast, self.group = self.blocks.outer, self.blocks.fast, self.blocks.group

    # --- lists

    def lists(self, tiles: jax.Array) -> _work.WorkList:
        grid = self.plan.grid
        tiles, followed = _work.by_point(self.plan, self.order.inner, tiles)
        if not _work.fits(*tiles.shape):
            tiles, followed = _work.merge(tiles), []
        if not _work.fits(*tiles.shape):
            raise Unsupported(f"a block map of {grid.rows} x {grid.cols} tiles does not fit the scalar memory")
        self.followed = followed
        found = _work.work_list(tiles, self.order.order, self.group)
        if not found.fields.fit:
            raise Unsupported(f"a block map of {grid.rows} x {grid.cols} tiles")
        return found

    def at(self, work: _work.WorkList, ids: Sequence[Any], entries: Any) -> At:
        """Where the step with the grid indices ``ids`` is."""
        grid = self.plan.grid
        where = dict(zip(self.outer, ids[:-1], strict=True))
        which = jnp.int32(0)
        for d in self.followed:
            which = which * grid.outer[d] + where[d]
        entry = entries[which * work.capacity + ids[-1]]
        i, j, inner = work.fields.unpack(entry)
        for d in reversed(self.order.inner):
            where[d], inner = (
                (inner % grid.outer[d], inner // grid.outer[d]) if d != self.order.inner[0] else (inner, 0)
            )
        return At({**where, ROWS: i, COLS: j}, entry)

    def _tile(self, at: At, tile: Any) -> At:
        """One of the tiles of a step."""
        index = {**at.index, self.fast: at.index[self.fast] * self.group + tile}
        return At(index, at.entry, tile)

    # --- the call

    def __call__(self, tiles: jax.Array, arrays: Sequence[jax.Array]) -> dict[int, jax.Array]:
        plan, order, grid = self.plan, self.order, self.plan.grid
        work = self.lists(tiles)
        loads = [self.blocks.operand(a, s) for a, s in zip(arrays, plan.inputs, strict=True)]
        # Operands that no equation reads are left out.
        used = read_inputs(self.flat, running(plan))
        operands = [a for n, (a, _, _) in enumerate(loads) if a is not None and n in used]

        def mapped(place):
            return lambda *ids: place(self.at(work, ids[:-1], ids[-1]))

        in_specs = [
            spec if isinstance(spec, pl.BlockSpec) else pl.BlockSpec(spec[0], mapped(spec[1]))
            for n, (a, spec, _) in enumerate(loads)
            if a is not None and n in used
        ]
        outs = [self.blocks.output(i, mapped) for i in order.outputs]
        scratch = [pltpu.VMEM(shape, sum_dtype(plan.tile.outputs[i].dtype)) for i, shape in self.blocks.scratch()]
        kernel = functools.partial(
            self._kernel, work, [(n in used, a is not None, f) for n, (a, _, f) in enumerate(loads)]
        )
        points = tuple(grid.outer[d] for d in self.outer)
        semantics = ("parallel",) * len(points) + ("arbitrary",)
        results = pl.pallas_call(
            kernel,
            out_shape=[shape for shape, _ in outs],
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(*points, work.steps),
                in_specs=in_specs,
                out_specs=[spec for _, spec in outs],
                scratch_shapes=scratch,
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=semantics,
                vmem_limit_bytes=self.budget.limit(self.target),
            ),
            cost_estimate=estimate(
                self.flat.jaxpr,
                math.prod(points) * math.prod(grid.outer[d] for d in order.inner) * grid.rows * grid.cols,
                [*operands, *(shape for shape, _ in outs)],
            ),
            interpret=self.target.interpret,
            name=order.name(plan.scaled),
        )(work.entries, *operands)
        return {i: self.blocks.restore(i, x) for i, x in zip(order.outputs, results, strict=True)}

    def _whole(self, output: int) -> bool:
        spec = self.plan.outputs[output]
        return ROWS not in spec.dims and COLS not in spec.dims

    def _kernel(self, work: _work.WorkList, loads: list, entries, *refs) -> None:
        plan, order = self.plan, self.order
        count = sum(used and there for used, there, _ in loads)
        ins, refs = refs[:count], refs[count:]
        outs, sums = refs[: len(order.outputs)], refs[len(order.outputs) :]
        axes = len(self.outer) + 1
        ids = [pl.program_id(n) for n in range(axes)]
        step_at = at = self.at(work, ids, entries)
        step, steps = ids[-1], pl.num_programs(axes - 1)
        kept = [n for n, i in enumerate(order.outputs) if self.blocks.resident(i) or self._whole(i)]
        streamed = [n for n in range(len(sums)) if n not in kept]

        def clear(which):
            for n in which:
                sums[n][...] = jnp.full(sums[n].shape, start_of(plan, order.outputs[n]), sums[n].dtype)

        def write(which):
            finished = self._finished(sums) if plan.scaled else [None] * len(sums)
            for n in which:
                i = order.outputs[n]
                data = self.blocks.as_written(i, sums[n]) if finished[n] is None else finished[n]
                outs[n][...] = data.astype(outs[n].dtype)

        if kept:
            pl.when(step == 0)(lambda: clear(kept))
        if streamed:
            pl.when(at.entry & _work.FIRST != 0)(lambda: clear(streamed))

        def values(at: At) -> list[Value]:
            refs_left = iter(ins)
            return [
                load(next(refs_left) if there else None, at) if used else Value(0, ()) for used, there, load in loads
            ]

        def prepared() -> dict:
            """What is the same for every tile of the step."""
            steady = [self.fast not in spec.dims for spec in plan.inputs]
            found = [v if s else None for v, s in zip(values(step_at), steady, strict=True)]
            return self.evaluator.prepare([None] * running(plan) + found, fold=plan.scaled)

        def visit(tile: Any, shared: dict, full: bool) -> None:
            at = self._tile(step_at, tile)
            if plan.scaled:
                self._add_scaled(values(at), shared, full, sums)
                return
            if plan.start is not None:
                self._carry(values(at), shared, full, sums)
                return
            for n, value in enumerate(self.evaluator(values(at), shared, full)):
                i = order.outputs[n]
                here = sums[n].at[self.blocks.slot(i, at)] if self.blocks.resident(i) else sums[n]
                here[...] += self.blocks.hold(value, order.outputs[n])

        def visit_all(start: Any, count: int, shared: dict) -> None:
            """Full tiles, one after another: the products of one overlap with the exponentials of another."""
            for tile in range(count):
                visit(start + tile, shared, True)

        def visit_some(start: Any, count: int, shared: dict) -> None:
            """Tiles of which not all are full, by halves."""
            half = count // 2

            @pl.loop(0, 2)
            def _(which):
                first = start + which * half
                full = work.fields.full(at.entry, first, half)
                pl.when(full)(lambda: visit_all(first, half, shared))
                if half == 1:
                    pl.when(work.fields.partial(at.entry, first))(lambda: visit(first, shared, False))
                else:
                    some = work.fields.some(at.entry, first, half)
                    pl.when(some & ~full)(lambda: visit_some(first, half, shared))

        def visit_mixed() -> None:
            if self.group == 1:
                visit(0, prepared(), False)
            else:
                visit_some(0, self.group, prepared())

        pl.when(at.entry & _work.FULL != 0)(lambda: visit_all(0, self.group, prepared()))
        pl.when(at.entry & _work.PARTIAL != 0)(visit_mixed)

        @pl.when(at.entry & _work.LAST != 0)
        def _():
            write(streamed)

        if kept:
            pl.when(step == steps - 1)(lambda: write(kept))

    # --- scaled folds

    def _add_scaled(self, values: list[Value], shared: dict, full: bool, sums: Sequence[Any]) -> None:
        """Add a tile to the sums, all at a new scale."""
        old = sums[0][...]
        named = self.plan.grid.row_block > 1
        scale = Value(old if named else old[:, :1], (ROW if named else None,), self.blocks.base2, finite=True)
        new, *added = self.evaluator([scale, *values], shared, full)
        new = self.blocks.hold(new, 0)
        sums[0][...] = new
        factors = changes(old, new, self.plan.powers, self.blocks.base2)
        for n, (value, factor) in enumerate(zip(added, factors, strict=True), 1):
            sums[n][...] = sums[n][...] * _fitted(factor, sums[n].shape) + self.blocks.hold(value, n)

    def _carry(self, values: list[Value], shared: dict, full: bool, sums: Sequence[Any]) -> None:
        """Put what becomes of the outputs in their place."""
        plan, before = self.plan, []
        for i, held in enumerate(sums):
            names = spec_names(plan.outputs[i], plan.tile.outputs[i])
            there = self.evaluator.held(Value(None, names))
            before.append(Value(held[...] if there else held[...][:1, :1], names))
        after = [self.blocks.hold(x, i) for i, x in enumerate(self.evaluator([*before, *values], shared, full))]
        for held, x in zip(sums, after, strict=True):
            held[...] = x

    def _finished(self, sums: Sequence[Any]) -> list[jax.Array]:
        """The scale as it is, and the sums; divided by the mass, if the plan names one, at the log of the mass."""
        plan, mass = self.plan, self.plan.mass
        found = [self.blocks.as_written(i, held) for i, held in enumerate(sums)]
        scale = log_scale(found[0], self.blocks.base2)
        if mass is None:
            return [scale, *found[1:]]
        scale = at_mass(scale, found[1 + mass])
        by_row, by_column = 1 / divisor(found[1 + mass]), 1 / divisor(sums[1 + mass][...])
        for n, power in enumerate(plan.powers, 1):
            matrix = found[n].shape[0] > 1
            found[n] = found[n] * (_fitted(by_column**power, found[n].shape) if matrix else by_row**power)
        return [scale, *found[1:]]


def _fitted(factor: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return factor if factor.shape == tuple(shape) else widen(factor, shape[1])
