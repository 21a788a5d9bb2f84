"""Folds on Hopper GPUs: one kernel for each order in which a plan's outputs can be added up.

A block of threads adds up what belongs to one place: a tile's length of positions, 64 for each of its warpgroups. One
more warpgroup moves the matrices that each step needs into a ring in shared memory, ahead of the others.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import _compat
from pallas_kernels._target import Target
from pallas_kernels.attention import _work
from pallas_kernels.attention._axes import COL, FEATURE, LOG2E, ROW, Evaluator, Value
from pallas_kernels.attention._cut import cut
from pallas_kernels.attention._flat import TooLarge, Unsupported, flatten
from pallas_kernels.attention._fragments import PARTS, ROWS_EACH, SWIZZLE, Fragments, Listed, Product, Stored, padded
from pallas_kernels.attention._labels import labels
from pallas_kernels.attention._made import NAMES, spec_names
from pallas_kernels.attention._passes import Pass
from pallas_kernels.attention._plan import COLS, ROWS, Plan
from pallas_kernels.attention._tpu import LOWEST

_STAGES = 4
"""Slots of the ring, at most."""

_REGISTERS = {"moves": 32, "computes": {1: 248, 2: 240, 3: 160}}
"""Of a thread, by what its warpgroup does and by how many warpgroups compute: 64 Ki in all."""

_KEPT = 224
"""Registers that a thread's sums and matrices may take by the model."""


def run(plan: Plan, tiles: jax.Array, arrays: Sequence[jax.Array], target: Target) -> tuple[jax.Array, ...]:
    """Every output of a plan; see ``_api.fold``."""
    found: dict[int, jax.Array] = {}
    for order, outputs in _groups(plan):
        middle, operands, finish = cut(plan, outputs, COLS if order == "col" else ROWS, arrays)
        dims = range(len(plan.grid.outer))
        inner = tuple(d for d in dims if order != "row" and all(d not in s.dims for s in middle.outputs))
        call = _Call(middle, Pass(order, tuple(range(len(middle.outputs))), inner), target)
        found |= finish(call(tiles, operands))
    return tuple(found[i] for i in range(len(plan.outputs)))


def _groups(plan: Plan) -> list[tuple[str, list[int]]]:
    """The walks that a plan takes: an order, and the outputs that are added up in it, as far as registers go."""
    if plan.scaled:
        return [("row", list(range(len(plan.outputs))))]
    kinds: dict[tuple, list[int]] = {}
    for i, spec in enumerate(plan.outputs):
        row, col = ROWS in spec.dims, COLS in spec.dims
        order = "pair" if row and col else "col" if col else "row"
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


@dataclasses.dataclass(frozen=True)
class _Operand:
    """How an operand reaches the warpgroups.

    Attributes:
        arrays: what the kernel is given of it: none for positions, several for a matrix of float32.
        read: its value, given the references to those, a place, and the references to shared memory if it has any.
        names: of its axes.
        width: features of a line in shared memory; 0 for what is not kept there.
        steady: whether it is the same for all tiles of a place.
        first: whether its positions, if any, are those of the place.
        slices: of each array, where the matrix at a place is.
    """

    arrays: tuple[jax.Array, ...]
    read: Callable
    names: tuple[str | None, ...]
    width: int = 0
    steady: bool = True
    first: bool = False
    slices: Callable | None = None


class _Call:
    """One pass over the tiles."""

    def __init__(self, plan: Plan, order: Pass, target: Target):
        self.plan, self.order, self.target = plan, order, target
        grid = plan.grid
        self.first, self.other = (COLS, ROWS) if order.order == "col" else (ROWS, COLS)
        self.blocks = {ROWS: grid.row_block, COLS: grid.col_block}
        self.counts = {ROWS: grid.rows, COLS: grid.cols}
        if grid.row_block % ROWS_EACH or grid.col_block % ROWS_EACH:
            raise TooLarge(
                f"tiles of {grid.row_block} x {grid.col_block} queries and keys are no multiples of {ROWS_EACH}"
            )
        self.outer = [d for d in range(len(grid.outer)) if d not in order.inner]
        self.flat = flatten(plan.tile.jaxpr, order.outputs)
        self.base2 = plan.scaled and self.flat.jaxpr.outvars[0] in self.flat.base2
        self.used = self._used()

    def _used(self) -> list[int]:
        """Operands that some equation reads."""
        jaxpr, shift = self.flat.jaxpr, int(self.plan.scaled)
        read = {id(v) for e in jaxpr.eqns for v in e.invars} | {id(v) for v in jaxpr.outvars}
        return [n - shift for n, v in enumerate(jaxpr.invars) if id(v) in read and n >= shift]

    # --- operands

    def operand(self, array: jax.Array, spec: Any) -> _Operand:
        dims = spec.dims
        kept = [d for d in dims if d is None or d < 0]
        lengths = [n for d, n in zip(dims, array.shape, strict=True) if d is None or d < 0]
        there = [d for d, n in zip(kept, lengths, strict=True) if d is not None or n > 1]
        names = tuple(
            (FEATURE if d is None else NAMES[d]) if d is not None or n > 1 else None
            for d, n in zip(kept, lengths, strict=True)
        )
        steady = self.other not in dims and not any(d in self.order.inner for d in dims)
        first = self.first in dims
        if spec.index:
            return _Operand((), lambda refs, at, stored: Value(self._positions(dims[0], at), names), names, 0, steady)
        if there == [None]:
            return self._table(array, dims, names, steady)
        if there.count(None) == 1 and len(there) == 2:
            return self._matrix(array, dims, names, steady, first)
        if len(there) > 2 or None in there:
            raise Unsupported(f"an operand with blocks of {len(there)} axes")
        return self._numbers(array, dims, there, names, steady, first)

    def _positions(self, dim: int, at: "_At") -> jax.Array:
        return self.layout.positions(NAMES[dim], at.starts[dim])

    def _matrix(self, array: jax.Array, dims: tuple, names: tuple, steady: bool, first: bool) -> _Operand:
        """Positions by features, in shared memory."""
        where = [i for i, d in enumerate(dims) if d is not None and d >= 0]
        position = next(i for i, d in enumerate(dims) if d is not None and d < 0)
        feature = next(i for i, d in enumerate(dims) if d is None and array.shape[i] > 1)
        whole = [i for i, d in enumerate(dims) if d is None and i != feature]
        array, places = array.squeeze(tuple(whole)), [d for i, d in enumerate(dims) if i not in whole]
        if position > feature or array.ndim > 5:
            order = [*(places.index(dims[i]) for i in where), places.index(dims[position]), places.index(None)]
            array, places = array.transpose(order), [places[i] for i in order]
        width = padded(array.shape[-1])
        dtype = array.dtype
        if jnp.finfo(dtype).bits > 32:
            raise Unsupported(f"type {dtype}")
        array = jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, width - array.shape[-1])])
        parts = tuple(_split(array)) if dtype == jnp.float32 else (array,)
        dim = dims[position]

        def slices(at: _At, size: int, shift: Any = 0) -> tuple:
            return tuple(
                slice(None) if d is None else pl.ds(at.starts[d] + shift, size) if d == dim else at.index[d]
                for d in places
            )

        def read(refs, at: _At, stored) -> Value:
            return Value(Stored(tuple(stored), dtype, first), names)

        return _Operand(parts, read, names, width, steady, first, slices)

    def _table(self, array: jax.Array, dims: tuple, names: tuple, steady: bool) -> _Operand:
        """Features alone: read one by one."""
        outer = sorted(d for d in dims if d is not None and d >= 0)
        array = array.transpose(*(dims.index(d) for d in outer), *(i for i, d in enumerate(dims) if d is None))
        array = array.reshape(*array.shape[: len(outer)], -1)
        read = lambda refs, at, stored: Value(Listed(refs[0], tuple(at.index[d] for d in outer)), names)
        return _Operand((array,), read, names, 0, steady)

    def _numbers(
        self, array: jax.Array, dims: tuple, there: list, names: tuple, steady: bool, first: bool
    ) -> _Operand:
        """A number, or numbers by positions: read where they are needed."""
        outer = sorted(d for d in dims if d is not None and d >= 0)
        kept = sorted(there, key=(self.first, self.other).index)
        array = array.transpose(
            *(dims.index(d) for d in (*outer, *kept)), *(i for i, d in enumerate(dims) if d not in (*outer, *kept))
        )
        shape = array.shape[: len(outer) + len(kept)]
        dtype = array.dtype
        held = jnp.int32 if dtype == jnp.bool_ and len(kept) < 2 else jnp.int8 if dtype == jnp.bool_ else dtype
        array = array.reshape(shape if shape else (1,)).astype(held)

        def read(refs, at: _At, stored) -> Value:
            place = tuple(at.index[d] for d in outer)
            place += tuple(pl.ds(at.starts[d], self._length(d)) for d in kept)
            if kept:
                data = _compat.load(refs[0].at[place], self.layout.layout(tuple(NAMES[d] for d in kept)))
            else:
                data = refs[0][place if place else (0,)]
            return Value(data != 0 if dtype == jnp.bool_ else data, names)

        return _Operand((array,), read, names, 0, steady, first)

    def _length(self, dim: int) -> int:
        return self.layout.length(NAMES[dim], 2)

    # --- sizes

    def _sizes(self, operands: Sequence[_Operand]) -> tuple[int, int, int]:
        """Warpgroups that compute, positions of a step along the other dimension, and slots of the ring."""
        halves = self.blocks[self.first] // ROWS_EACH
        groups = [n for n in (2, 3, 1) if halves % n == 0]
        steps = [n for n in (2 * ROWS_EACH, ROWS_EACH) if self.blocks[self.other] % n == 0]
        tried = [(n, step) for n in groups for step in steps]
        sums = _registers(self.plan, self.order.outputs)
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
            f"what takes {kept:,} bytes of shared memory and {moved:,} more for each step, with {ROWS_EACH} queries and "
            f"keys at a time, where {self.target.generation} has {self.target.shared:,}"
        )

    def _is_pair(self, variable: Any) -> bool:
        """Whether a variable is a matrix of queries and keys."""
        return {ROW, COL} <= set(self.names[variable])

    def _shared(self, operands: Sequence[_Operand], groups: int, step: int) -> tuple[int, int]:
        """Bytes of shared memory: for all of a place, and for each step."""
        kept = moved = 0
        for x in operands:
            size = 2 * len(x.arrays) * (groups * ROWS_EACH if x.first else step) * x.width
            kept, moved = (kept + size, moved) if self._is_kept(x) else (kept, moved + size)
        staged = 2 * groups * ROWS_EACH * step if self.target.interpret else 0
        # What barriers and the compiler take.
        return kept + staged + 4096, moved

    # --- the call

    def visits(self, tiles: jax.Array) -> _work.Visits:
        grid, order = self.plan.grid, self.order
        dims = self.plan.visit.dims[:-2]
        self.followed = [d for d in dims if d in self.outer]
        inside = [d for d in order.inner if d in dims]
        tiles = tiles.transpose(*(dims.index(d) for d in (*self.followed, *inside)), len(dims), len(dims) + 1)
        lists = math.prod(grid.outer[d] for d in self.followed)
        shape = [grid.outer[d] if d in inside else 1 for d in order.inner]
        tiles = tiles.reshape(lists, *shape, grid.rows, grid.cols)
        tiles = jnp.broadcast_to(tiles, (lists, *(grid.outer[d] for d in order.inner), grid.rows, grid.cols))
        return _work.visits(tiles.reshape(lists, -1, grid.rows, grid.cols), order.order)

    def __call__(self, tiles: jax.Array, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        plan, order, grid = self.plan, self.order, self.plan.grid
        work = self.visits(tiles)
        self.layout = Fragments(NAMES[self.first], 0)
        operands = [self.operand(arrays[n], plan.inputs[n]) for n in self.used]
        named = [spec_names(s, v.aval) for s, v in zip(self._specs(), self.flat.jaxpr.invars, strict=True)]
        self.names = labels(self.flat.jaxpr, named, [self._output_names(i) for i in order.outputs])
        self.groups, self.step, self.stages = self._sizes(operands)
        self.layout.others = self.step
        # A tile is cut along the first dimension into places, and along the other into steps; or places, in pairs.
        self.pieces, self.parts = self.blocks[self.first] // (self.groups * ROWS_EACH), self.blocks[self.other] // self.step
        self.evaluator = Evaluator(self.flat, self.layout, shape=self._shape)
        places = self.pieces * {"row": grid.rows, "col": grid.cols, "pair": grid.rows * grid.cols * self.parts}[order.order]
        flat = [a for x in operands for a in x.arrays]
        points = math.prod(grid.outer[d] for d in self.outer)
        out_type = [jax.ShapeDtypeStruct(*self._written(i)) for i in order.outputs]
        extra = {}
        if self.target.interpret:
            extra["interpret"] = plgpu.InterpretGPUParams() if self.target.interpret is True else self.target.interpret
        results = plgpu.kernel(
            functools.partial(self._kernel, operands),
            out_type=out_type,
            scratch_types=self._scratch(operands),
            grid=(points, places),
            grid_names=("point", "place"),
            num_threads=self.groups + 1,
            thread_name="warpgroup",
            kernel_name=order.name(plan.scaled),
            compiler_params=plgpu.CompilerParams(
                approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=False
            ),
            **extra,
        )(work.tiles, work.counts, work.order, *flat)
        return [self._restore(i, x) for i, x in enumerate(results)]

    def _specs(self) -> list:
        """Those of the tile function's inputs."""
        return [*([self.plan.outputs[0]] if self.plan.scaled else []), *self.plan.inputs]

    def _shape(self, atom: Any) -> tuple[int, ...]:
        """Shape of a variable in a warpgroup's tile."""
        found = self.names.get(atom) if not isinstance(atom, jax.extend.core.Literal) else None
        if found is None or set(found) <= {None, FEATURE} and FEATURE in found:  # tables are not stored in lines
            return atom.aval.shape
        sizes = []
        for name, size in zip(found, atom.aval.shape, strict=True):
            if name is None and size > 1:
                raise Unsupported(f"an axis of {size} numbers that are neither queries, keys nor features")
            sizes.append(1 if name is None else self.layout.length(name, size))
        return tuple(sizes)

    def _output_names(self, output: int) -> tuple[str | None, ...]:
        return spec_names(self.plan.outputs[output], self.plan.tile.outputs[output])

    def _scratch(self, operands: Sequence[_Operand]) -> dict:
        transforms = (plgpu.TilingTransform((8, SWIZZLE // 2)), plgpu.SwizzleTransform(SWIZZLE))
        shared = lambda shape, dtype: plgpu.SMEM(shape, dtype, transforms=transforms)
        kept, ring = [], []
        for x in operands:
            if not x.width:
                continue
            shape = (self.groups, ROWS_EACH, x.width) if x.first else (self.step, x.width)
            target = kept if self._is_kept(x) else ring
            for a in x.arrays:
                target.append(shared(shape if target is kept else (self.stages, *shape), a.dtype))
        found: dict[str, Any] = {"kept": kept, "ring": ring}
        copies = sum(len(x.arrays) * (self.groups if x.first else 1) for x in operands if self._is_moved(x))
        count = sum(len(x.arrays) for x in operands if self._is_kept(x))
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

    def _is_kept(self, x: _Operand) -> bool:
        """Whether an operand is moved to shared memory once."""
        return bool(x.width) and x.first and x.steady

    def _is_moved(self, x: _Operand) -> bool:
        """Whether it is moved there for each step."""
        return bool(x.width) and not self._is_kept(x)

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
        return shape, _sum_dtype(self.plan.results[i]) if summed else self.plan.results[i]

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

    def _write(self, ref: Any, i: int, data: jax.Array, at: "_At") -> None:
        dims, shape = self._axes(i)
        place = tuple(
            0 if d is None and n == 1 else slice(None) if d is None else at.index[d] if d >= 0
            else pl.ds(at.starts[d], self._length(d))
            for d, n in zip(dims, shape, strict=True)
        )  # fmt: skip
        _compat.store(ref.at[place], data.astype(ref.dtype))

    # --- the kernel

    def _kernel(self, operands: Sequence[_Operand], *refs, **scratch) -> None:
        count = sum(len(x.arrays) for x in operands)
        tiles, counts, places, *refs = refs
        refs, rest = refs[:count], refs[count:]
        outs = rest[: len(self.order.outputs)]
        if not scratch:
            (scratch,) = rest[len(outs) :]
        given = iter(refs)
        own = [[next(given) for _ in x.arrays] for x in operands]
        visits = _Visits(self, tiles, counts, places)
        warpgroup = lax.axis_index("warpgroup")
        run = _Step(self, operands, own, scratch, visits)

        @pl.when(warpgroup == self.groups)
        def _():
            plgpu.set_max_registers(_REGISTERS["moves"], action="decrease")
            run.move()

        @pl.when(warpgroup < self.groups)
        def _():
            plgpu.set_max_registers(_REGISTERS["computes"][self.groups], action="increase")
            run.compute(warpgroup, outs)


@dataclasses.dataclass(frozen=True)
class _At:
    """Where a warpgroup is: along outer dimensions, and first positions along the other two."""

    index: dict[int, Any]
    starts: dict[int, Any]


class _Visits:
    """What the block of threads visits.

    Attributes:
        full: steps through full tiles, which come first.
        all: steps.
    """

    def __init__(self, call: _Call, tiles: Any, counts: Any, places: Any):
        self.call, self.tiles = call, tiles
        point, place = lax.axis_index("point"), lax.axis_index("place")
        self.outer = {}
        for d in reversed(call.outer):
            point, self.outer[d] = _divided(point, call.plan.grid.outer[d])
        self.list = jnp.int32(0)
        for d in call.followed:
            self.list = self.list * call.plan.grid.outer[d] + self.outer[d]
        self.pair = call.order.order == "pair"
        place, self.piece = _divided(place, call.pieces)
        place, self.part = _divided(place, call.parts if self.pair else 1)
        self.place = places[self.list, place]
        self.full, self.all = (counts[self.list, self.place, n] * self.parts for n in (0, 1))

    @property
    def parts(self) -> int:
        """Steps through a tile."""
        return 1 if self.pair else self.call.parts

    def entry(self, step: Any) -> Any:
        """What the list says of a step."""
        return self.tiles[self.list, self.place, lax.div(step, jnp.int32(self.parts))]

    def at(self, warpgroup: Any, step: Any = 0, entry: Any = 0) -> _At:
        """Where a warpgroup is: at a step, or at the place, which is where all steps are but for what they follow."""
        call, grid = self.call, self.call.plan.grid
        index = dict(self.outer)
        if self.pair:
            first, other = _divided(self.place, grid.cols)
            inner, part = entry, self.part
        else:
            first = self.place
            inner, other = _divided(entry, call.counts[call.other])
            part = _divided(step, call.parts)[1]
        for d in reversed(call.order.inner):
            inner, index[d] = _divided(inner, grid.outer[d])
        offset = (self.piece * call.groups + warpgroup) * ROWS_EACH
        starts = {
            call.first: first * call.blocks[call.first] + offset,
            call.other: other * call.blocks[call.other] + part * call.step,
        }
        return _At(index, starts)


def _divided(x: Any, by: int) -> tuple[Any, Any]:
    """Quotient and rest."""
    if by == 1:
        return x, jnp.int32(0)
    return lax.div(jnp.int32(x), jnp.int32(by)), lax.rem(jnp.int32(x), jnp.int32(by))


class _Step:
    """What the warpgroups of a block of threads do."""

    def __init__(self, call: _Call, operands: Sequence[_Operand], refs: Sequence, scratch: dict, visits: _Visits):
        self.call, self.operands, self.refs, self.scratch, self.visits = call, operands, refs, scratch, visits
        kept, ring = iter(scratch["kept"]), iter(scratch["ring"])
        self.stored = [
            [next(kept if call._is_kept(x) else ring) for _ in x.arrays] if x.width else [] for x in operands
        ]

    # --- moving

    def move(self) -> None:
        """Fill the ring, as it is emptied."""
        call, visits, stages = self.call, self.visits, self.call.stages
        if "full" not in self.scratch:
            return
        full, empty = self.scratch["full"], self.scratch["empty"]

        @pl.loop(0, visits.all)
        def _(step):
            slot = lax.rem(step, jnp.int32(stages))
            pl.when(step >= stages)(lambda: plgpu.barrier_wait(empty.at[slot]))
            at = visits.at(0, step, visits.entry(step))
            for x, refs, stored in zip(self.operands, self.refs, self.stored, strict=True):
                if call._is_moved(x):
                    for ref, to in zip(refs, stored, strict=True):
                        self._copy(x, ref, to.at[slot], at, full.at[slot])

        # No barrier may be left with an arrival that nothing waits for.
        @pl.loop(jnp.maximum(visits.all - stages, 0), visits.all)
        def _(step):
            plgpu.barrier_wait(empty.at[lax.rem(step, jnp.int32(stages))])

    def _copy(self, x: _Operand, ref: Any, to: Any, at: _At, barrier: Any) -> None:
        assert x.slices is not None
        if not x.first:
            plgpu.copy_gmem_to_smem(ref.at[x.slices(at, self.call.step)], to, barrier)
            return
        for group in range(self.call.groups):
            place = x.slices(at, ROWS_EACH, group * ROWS_EACH)
            plgpu.copy_gmem_to_smem(ref.at[place], to.at[group], barrier)

    def fetch(self, warpgroup: Any) -> None:
        """A warpgroup's own positions of what is the same for all tiles."""
        if "ready" not in self.scratch:
            return
        ready = self.scratch["ready"].at[warpgroup]
        at = self.visits.at(warpgroup)
        for x, refs, stored in zip(self.operands, self.refs, self.stored, strict=True):
            if self.call._is_kept(x):
                assert x.slices is not None
                for ref, to in zip(refs, stored, strict=True):
                    plgpu.copy_gmem_to_smem(ref.at[x.slices(at, ROWS_EACH)], to.at[warpgroup], ready)
        plgpu.barrier_wait(ready)

    # --- computing

    def compute(self, warpgroup: Any, outs: Sequence[Any]) -> None:
        """Add up a warpgroup's part, and write it."""
        call, visits = self.call, self.visits
        if "staged" in self.scratch:
            call.layout.stage = functools.partial(self._staged, warpgroup)
        self.fetch(warpgroup)
        here = visits.at(warpgroup)
        steady = [self._value(n, here, warpgroup, None) if x.steady else None for n, x in enumerate(self.operands)]
        shared = call.evaluator.prepare(self._arguments(None, steady), fold=False)

        def step(full: bool, number: Any, carry: tuple) -> tuple:
            entry, sums = carry
            at = visits.at(warpgroup, number, entry)
            entry = visits.entry(jnp.minimum(number + 1, visits.all - 1))
            slot = lax.rem(number, jnp.int32(call.stages))
            if "full" in self.scratch:
                plgpu.barrier_wait(self.scratch["full"].at[slot])
            values = [
                self._value(n, at, warpgroup, slot) if v is None else v for n, v in enumerate(steady)
            ]  # fmt: skip
            sums = self._added(sums, values, shared, full)
            if "empty" in self.scratch:
                plgpu.barrier_arrive(self.scratch["empty"].at[slot])
            return entry, sums

        carry = (visits.entry(jnp.int32(0)), self._start())
        carry = lax.fori_loop(0, visits.full, functools.partial(step, True), carry)
        _, sums = lax.fori_loop(visits.full, visits.all, functools.partial(step, False), carry)
        for n, i in enumerate(call.order.outputs):
            data = self._finished(sums)[n] if call.plan.scaled else sums[n]
            call._write(outs[n], i, data, here)

    def _staged(self, warpgroup: Any, x: jax.Array) -> Any:
        """A 16-bit matrix in registers, in shared memory."""
        ref = self.scratch["staged"][str(x.dtype)].at[warpgroup, :, pl.ds(0, x.shape[1])]
        ref[...] = x
        plgpu.commit_smem()
        return ref

    def _value(self, n: int, at: _At, warpgroup: Any, slot: Any) -> Value:
        x, stored = self.operands[n], self.stored[n]
        if x.width:
            places = ((warpgroup,) if self.call._is_kept(x) else (slot, warpgroup)) if x.first else (slot,)
            stored = [ref.at[places] for ref in stored]
        return x.read(self.refs[n], at, stored)

    def _arguments(self, scale: Any, values: list) -> list:
        """Values of all inputs of the tile function; of those that it does not read, nothing."""
        call = self.call
        found: list = [Value(0, ())] * len(call.plan.inputs)
        for n, value in zip(call.used, values, strict=True):
            found[n] = value
        return [scale, *found] if call.plan.scaled else found

    def _start(self) -> tuple[jax.Array, ...]:
        call, found = self.call, []
        for i in call.order.outputs:
            names, sizes, dtype = self._held(i)
            lowest = call.plan.scaled and i == 0
            found.append(call.layout.constant(LOWEST if lowest else 0.0, names, sizes, dtype))
        return tuple(found)

    def _held(self, i: int) -> tuple[tuple[str, ...], tuple[int, ...], Any]:
        """Names, lengths and type of the axes that an output's sum has."""
        call, block = self.call, self.call.plan.tile.outputs[i]
        axes = call._output_names(i)
        order = call.layout.sort(axes)
        names = tuple(name for n in order if (name := axes[n]) is not None)
        sizes = tuple(call.layout.length(name, block.shape[n]) for n, name in zip(order, names, strict=True))
        return names, sizes, _sum_dtype(block.dtype)

    def _plus(self, sums: jax.Array, value: Value, i: int) -> jax.Array:
        call = self.call
        if isinstance(value.data, Product):
            return call.layout.add(sums, value.data)
        return sums + self._hold(value, i)

    def _hold(self, value: Value, i: int) -> jax.Array:
        call = self.call
        names, sizes, dtype = self._held(i)
        value = call.evaluator.binary(value) if call.base2 and i == 0 else call.evaluator.natural(value)
        data = value.data if not value.known else jnp.asarray(value.data, dtype)
        return call.layout.spread(data.astype(dtype), call.evaluator.held(value), names, sizes)

    def _added(self, sums: tuple, values: list[Value], shared: dict, full: bool) -> tuple:
        """Sums with a tile's added."""
        call = self.call
        outputs = call.order.outputs
        if not call.plan.scaled:
            found = call.evaluator(self._arguments(None, values), shared, full)
            return tuple(self._plus(s, v, i) for s, v, i in zip(sums, found, outputs, strict=True))
        old = sums[0]
        names = call.evaluator.held(Value(None, call._output_names(0)))
        scale = Value(old, names, call.base2, finite=True)
        new, *added = call.evaluator(self._arguments(scale, values), shared, full)
        new = self._hold(new, 0)
        factor = (jnp.exp2 if call.base2 else jnp.exp)(old - new)
        found = [new]
        for x, value, power, i in zip(sums[1:], added, call.plan.powers, outputs[1:], strict=True):
            kept = (old == new).astype(factor.dtype) if math.isinf(power) else _power(factor, power)
            wanted, sizes, _ = self._held(i)
            found.append(self._plus(x * call.layout.spread(kept, names, wanted, sizes), value, i))
        return tuple(found)

    def _finished(self, sums: tuple) -> list[jax.Array]:
        """The scale as it is, and the sums; divided by the mass, if the plan names one, at the log of the mass."""
        call = self.call
        plan = call.plan
        scale, *found = sums
        names = call.evaluator.held(Value(None, call._output_names(0)))
        scale = jnp.where(scale > LOWEST, scale * (1 / LOG2E if call.base2 else 1), -jnp.inf)
        if plan.mass is None:
            return [scale, *found]
        mass = found[plan.mass]
        one = jnp.where(mass > 0, mass, 1.0)
        for n, power in enumerate(plan.powers):
            wanted, sizes, _ = self._held(call.order.outputs[n + 1])
            found[n] = found[n] * call.layout.spread(_power(1 / one, power), names, wanted, sizes)
        return [jnp.where(mass > 0, scale + jnp.log(one), scale), *found]


def _power(x: jax.Array, power: int | float) -> jax.Array:
    return x if power == 1 else x**power


def _split(x: jax.Array) -> list[jax.Array]:
    """A float32 array as bfloat16 ones whose sum it is."""
    parts = []
    for _ in range(PARTS):
        # The barrier keeps XLA from simplifying the two conversions away.
        parts.append(lax.optimization_barrier(x.astype(jnp.bfloat16)))
        x = x - parts[-1].astype(x.dtype)
    return parts


def _sum_dtype(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else jnp.dtype(dtype)
