"""Folds on TPU: one `pallas_call` for each order in which a plan's outputs can be added up."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels._target import MIB, Target
from pallas_kernels.attention import _work
from pallas_kernels.attention._evaluate import Evaluator
from pallas_kernels.attention._flat import TooLarge, Unsupported, flatten, read_inputs
from pallas_kernels.attention._made import NAMES, spec_names
from pallas_kernels.attention._plan import COLS, ROWS, Plan, running
from pallas_kernels.attention._sums import LOWEST, start_of, sum_dtype
from pallas_kernels.attention._values import COL, FEATURE, LOG2E, ROW, Value
from pallas_kernels.attention.tpu import _budget
from pallas_kernels.attention.tpu._lanes import LANES, Lanes, row, widen
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


@dataclasses.dataclass(frozen=True)
class _At:
    """Where a step is, or one of its tiles.

    Attributes:
        index: along every dimension, of groups of tiles or of tiles.
        entry: of the list of tiles: what is done.
        tile: the number of the tile in its group.
    """

    index: dict[int, Any]
    entry: Any
    tile: Any = 0


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
        self.outer = [d for d in range(len(grid.outer)) if d not in order.inner]
        self.sizes = {ROWS: grid.row_block, COLS: grid.col_block}
        self.counts = {ROWS: grid.rows, COLS: grid.cols}
        # Tiles along this dimension stand next to each other in a group, which is one step.
        self.fast, self.group = (ROWS if order.order == "col" else COLS), order.group
        self.flat = flatten(plan.tile.jaxpr, order.outputs)
        self.evaluator = Evaluator(self.flat, self.layout, target.exponential)
        # A running scale is kept in base 2 if the tile function makes it so.
        self.base2 = plan.scaled and self.flat.jaxpr.outvars[0] in self.flat.base2

    def _block(self, dim: int | None, whole: int) -> int:
        """Length of an axis of a tile's block."""
        return whole if dim is None else self.sizes[dim]

    def _window(self, dim: int | None, whole: int) -> int:
        """Length of that axis for a whole group."""
        return self._block(dim, whole) * (self.group if dim == self.fast else 1)

    def _count(self, dim: int | None) -> int:
        """Blocks along an axis."""
        return 1 if dim is None else self.counts[dim]

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

    def at(self, work: _work.WorkList, ids: Sequence[Any], entries: Any) -> _At:
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
        return _At({**where, ROWS: i, COLS: j}, entry)

    def _tile(self, at: _At, tile: Any) -> _At:
        """One of the tiles of a step."""
        index = {**at.index, self.fast: at.index[self.fast] * self.group + tile}
        return _At(index, at.entry, tile)

    # --- operands

    def operand(self, array: jax.Array, spec: Any) -> tuple[jax.Array | None, Any, Callable]:
        """How an operand is laid out, its block spec (taking an ``_At``), and how a block of it becomes a value."""
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

            def number(ref, at: _At) -> Value:
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

        def place(at: _At) -> tuple:
            return (*(at.index[d] for d in outer), *(0 if d is None else at.index[d] for d in places))

        flip = len(there) == 2 and self.layout.sort(tuple(_name(d) for d in places)) != (0, 1)

        def block(ref, at: _At) -> Value:
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

    def _view(self, ref: Any, places: list, at: _At) -> jax.Array:
        """The part of a group's block that belongs to a tile."""
        if self.group == 1 or self.fast not in places:
            return ref[...]
        size = self.sizes[self.fast]
        start = at.tile * size if isinstance(at.tile, int) else pl.multiple_of(at.tile * size, size)
        return ref[tuple(pl.ds(start, size) if d == self.fast else slice(None) for d in places)]

    def _positions(self, dim: int, names: tuple, ref: Any, at: _At) -> Value:
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

    # --- the call

    def __call__(self, tiles: jax.Array, arrays: Sequence[jax.Array]) -> dict[int, jax.Array]:
        plan, order, grid = self.plan, self.order, self.plan.grid
        work = self.lists(tiles)
        loads = [self.operand(a, s) for a, s in zip(arrays, plan.inputs, strict=True)]
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
        outs = [self._output(i, mapped) for i in order.outputs]
        scratch = [pltpu.VMEM(shape, sum_dtype(plan.tile.outputs[i].dtype)) for i, shape in self._scratch()]
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
            interpret=self.target.interpret,
            name=order.name(plan.scaled),
        )(work.entries, *operands)
        return {i: self._restore(i, x) for i, x in zip(order.outputs, results, strict=True)}

    def _resident(self, output: int) -> bool:
        return output in self.order.resident

    def _whole(self, output: int) -> bool:
        spec = self.plan.outputs[output]
        return ROWS not in spec.dims and COLS not in spec.dims

    def _scratch(self) -> list[tuple[int, tuple[int, ...]]]:
        shapes = []
        for i in self.order.outputs:
            shape = self.held_shape(i)
            shapes.append((i, (self._slots(i), *shape) if self._resident(i) else shape))
        return shapes

    def _slots(self, output: int) -> int:
        """Blocks of a resident output: rows of tiles, at every inner point that it follows."""
        followed = [d for d in self.order.inner if d in self.plan.outputs[output].dims]
        return math.prod(self.plan.grid.outer[d] for d in followed) * self.plan.grid.rows

    def _slot(self, output: int, at: _At) -> Any:
        slot = jnp.int32(0)
        for d in self.order.inner:
            if d in self.plan.outputs[output].dims:
                slot = slot * self.plan.grid.outer[d] + at.index[d]
        return slot * self.plan.grid.rows + at.index[ROWS]

    def _output(self, i: int, mapped: Callable) -> tuple[jax.ShapeDtypeStruct, pl.BlockSpec]:
        """Shape and block spec of an output: all outer dimensions of the grid, then inner ones, then blocks."""
        plan, grid = self.plan, self.plan.grid
        lead = tuple(grid.outer[d] for d in self.outer)
        dtype = _written_dtype(plan.results[i])
        written = self.written_shape(i)
        if self._resident(i):
            shape = (self._slots(i), *written)
            place = lambda at: (*(at.index[d] for d in self.outer), 0, 0, 0)
            return jax.ShapeDtypeStruct((*lead, *shape), dtype), pl.BlockSpec(
                (*(None,) * len(lead), *shape), mapped(place)
            )
        inner = [d for d in self.order.inner if d in plan.outputs[i].dims]
        dims, _ = self.places(i)
        dims = [None] * (2 - len(dims)) + dims
        whole = [n * self._count(d) for d, n in zip(dims, written, strict=True)]

        def place(at: _At) -> tuple:
            return (*(at.index[d] for d in (*self.outer, *inner)), *(0 if d is None else at.index[d] for d in dims))

        shape = (*lead, *(grid.outer[d] for d in inner), *whole)
        return jax.ShapeDtypeStruct(shape, dtype), pl.BlockSpec(
            ((None,) * (len(lead) + len(inner)) + written), mapped(place)
        )

    def _restore(self, i: int, x: jax.Array) -> jax.Array:
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

    def _kernel(self, work: _work.WorkList, loads: list, entries, *refs) -> None:
        plan, order = self.plan, self.order
        count = sum(used and there for used, there, _ in loads)
        ins, refs = refs[:count], refs[count:]
        outs, sums = refs[: len(order.outputs)], refs[len(order.outputs) :]
        axes = len(self.outer) + 1
        ids = [pl.program_id(n) for n in range(axes)]
        step_at = at = self.at(work, ids, entries)
        step, steps = ids[-1], pl.num_programs(axes - 1)
        kept = [n for n, i in enumerate(order.outputs) if self._resident(i) or self._whole(i)]
        streamed = [n for n in range(len(sums)) if n not in kept]

        def clear(which):
            for n in which:
                sums[n][...] = jnp.full(sums[n].shape, start_of(plan, order.outputs[n]), sums[n].dtype)

        def write(which):
            finished = self._finished(sums) if plan.scaled else [None] * len(sums)
            for n in which:
                i = order.outputs[n]
                data = self._as_written(i, sums[n]) if finished[n] is None else finished[n]
                outs[n][...] = data.astype(outs[n].dtype)

        if kept:
            pl.when(step == 0)(lambda: clear(kept))
        if streamed:
            pl.when(at.entry & _work.FIRST != 0)(lambda: clear(streamed))

        def values(at: _At) -> list[Value]:
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
                here = sums[n].at[self._slot(i, at)] if self._resident(i) else sums[n]
                here[...] += self.hold(value, order.outputs[n])

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
        named = self.sizes[ROWS] > 1
        scale = Value(old if named else old[:, :1], (ROW if named else None,), self.base2, finite=True)
        new, *added = self.evaluator([scale, *values], shared, full)
        new = self.hold(new, 0)
        factor = (jnp.exp2 if self.base2 else jnp.exp)(old - new)
        sums[0][...] = new
        for n, value in enumerate(added, 1):
            power = self.plan.powers[n - 1]
            kept = (old == new).astype(factor.dtype) if math.isinf(power) else factor**power
            sums[n][...] = sums[n][...] * _fitted(kept, sums[n].shape) + self.hold(value, n)

    def _carry(self, values: list[Value], shared: dict, full: bool, sums: Sequence[Any]) -> None:
        """Put what becomes of the outputs in their place."""
        plan, before = self.plan, []
        for i, held in enumerate(sums):
            names = spec_names(plan.outputs[i], plan.tile.outputs[i])
            there = self.evaluator.held(Value(None, names))
            before.append(Value(held[...] if there else held[...][:1, :1], names))
        after = [self.hold(x, i) for i, x in enumerate(self.evaluator([*before, *values], shared, full))]
        for held, x in zip(sums, after, strict=True):
            held[...] = x

    def _is_column(self, output: int) -> bool:
        """Whether an output is held as a column, and written as a row."""
        dims, _ = self.places(output)
        return len(dims) == 1 and _name(dims[0]) == self.layout.first

    def _as_written(self, output: int, held: Any) -> jax.Array:
        return row(held[...]) if self._is_column(output) else held[...]

    def _finished(self, sums: Sequence[Any]) -> list[jax.Array]:
        """The scale as it is, and the sums; divided by the mass, if the plan names one, at the log of the mass."""
        plan, mass = self.plan, self.plan.mass
        found = [self._as_written(i, held) for i, held in enumerate(sums)]
        unit = jnp.asarray(1 / LOG2E if self.base2 else 1, found[0].dtype)
        scale = jnp.where(found[0] > LOWEST, found[0] * unit, -jnp.inf)
        if mass is None:
            return [scale, *found[1:]]
        one = lambda mass: jnp.where(mass > 0, mass, 1)
        total = found[1 + mass]
        by_row, by_column = 1 / one(total), 1 / one(sums[1 + mass][...])
        for n, power in enumerate(plan.powers, 1):
            matrix = found[n].shape[0] > 1
            found[n] = found[n] * (_fitted(by_column**power, found[n].shape) if matrix else by_row**power)
        return [jnp.where(total > 0, scale + jnp.log(one(total)), scale), *found[1:]]


def _fitted(factor: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return factor if factor.shape == tuple(shape) else widen(factor, shape[1])


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
