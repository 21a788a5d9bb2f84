"""Plans of folds, and running them: a tile function, the specs of its operands, and the loops over visible tiles."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax

from attnjax import _compat
from attnjax.attention._block_map import EMPTY, successors
from attnjax.attention._grid import COL, ROW, Grid, Spec, add, put, take, vectorize


@dataclasses.dataclass(frozen=True, eq=False)
class Tile:
    """A tile function, traced: hashed by identity, so that it can be a parameter of the primitive."""

    jaxpr: Any

    def __call__(self, *blocks) -> tuple:
        return tuple(jnp.asarray(x) for x in _compat.eval_jaxpr(self.jaxpr, *blocks))

    def part(self, which: slice) -> "Tile":
        """The tile function of some of the outputs."""
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in self.jaxpr.in_avals]
        return Tile(_compat.without_dead_code(jax.make_jaxpr(lambda *blocks: self(*blocks)[which])(*shapes)))

    def on_cpu(self) -> "Tile":
        """The same function, its products laid out for XLA's CPU backend."""
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in self.jaxpr.in_avals]
        function = functools.partial(_compat.eval_jaxpr_with, self.jaxpr, {"dot_general": _columns_first})
        return Tile(jax.make_jaxpr(function)(*shapes))

    @property
    def outputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        return tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in self.jaxpr.out_avals)


@runtime_checkable
class Executor(Protocol):
    """Another way to run a fold than the loops over tiles: fused kernels that compute the same outputs.

    A derivative of a fold is a fold too, and has an executor if this one knows one for it. Executors are hashable.
    """

    def __call__(self, plan: "Plan", kinds: jax.Array, arrays: Sequence[jax.Array]) -> tuple[jax.Array, ...] | None:
        """The outputs; None leaves the fold to the loops."""
        ...

    def tangent(self, live: tuple[int, ...]) -> "Executor | None":
        """For the fold of tangents, whose last operands are the tangents of the operands ``live``."""
        ...

    def transpose(self, linear: tuple[int, ...], operands: int, complete: bool) -> "Executor | None":
        """For the fold of cotangents of the operands ``linear``, given those of all outputs (``complete``) or some."""
        ...

    def batch(self, axes: tuple[int | None, ...], plan: "Plan") -> "Executor | None":
        """For the fold ``plan`` mapped over an axis of each operand."""
        ...

    def across(self) -> "Executor | None":
        """For a program of several devices, over which ``jit`` may split operands; None for the loops."""
        ...


@runtime_checkable
class Carrier(Executor, Protocol):
    """An executor that runs carried folds, too."""

    def carry(
        self, plan: "Plan", begin: Sequence[jax.Array], kinds: jax.Array, arrays: Sequence[jax.Array]
    ) -> tuple[jax.Array, ...]:
        """A carried fold, differentiable by JAX: what ``scan`` returns."""
        ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static half of a fold.

    Attributes:
        grid: the grid of tiles.
        visit: spec of the block map, which says of each tile whether it is empty, partial or full.
        inputs: one spec for each operand.
        outputs: one spec for each output; of a scaled fold the first is the log scale.
        tile: the tile function. Of a scaled fold: ``(scale, *blocks) -> (new scale, *sums at it)``.
        tile_at: of a scaled fold, ``(scale, *blocks) -> sums at that scale``; None for a plain fold.
        powers: of a scaled fold, the power of ``exp(scale)`` that multiplies each sum; at infinity only what was added
            at the greatest scale remains.
        vectorized: whether the outer dimensions run at once (accelerators) or in turn (CPU: a tile stays in cache).
        executor: runs the fold instead of the loops over tiles.
        dtypes: types of the results; by default those of the tile's outputs.
        start: of a carried fold, what its outputs begin with, if that is one number for each: the tile function takes
            them, as they are so far, before its operands, and returns what becomes of them, in the order of the keys.
            It has no derivatives; ``scan`` has.
        mass: of a scaled fold, a positive sum that an executor may divide the others by, at the log of it.
    """

    grid: Grid
    visit: Spec
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    tile: Tile
    tile_at: Tile | None = None
    powers: tuple[int | float, ...] = ()
    vectorized: bool = False
    executor: Executor | None = None
    dtypes: tuple[Any, ...] | None = None
    mass: int | None = None
    start: tuple[float, ...] | None = None

    @property
    def scaled(self) -> bool:
        return self.tile_at is not None

    @property
    def results(self) -> tuple[Any, ...]:
        """The types of the results."""
        return self.dtypes or tuple(b.dtype for b in self.tile.outputs)


def trace(function: Callable, grid: Grid, specs: Sequence[Spec], arrays: Sequence[Any]) -> tuple[Tile, list]:
    """``function`` traced at block shapes, and the arrays it has captured (which become its last arguments)."""
    blocks = [jax.ShapeDtypeStruct(grid.block_shape(s, a.shape), a.dtype) for s, a in zip(specs, arrays, strict=True)]
    jaxpr, captured = _compat.hoist(jax.make_jaxpr(function)(*blocks))
    return Tile(jaxpr), captured


def close(function: Callable, plan_inputs: Sequence[Spec], grid: Grid, arrays: Sequence[Any]) -> Tile:
    """Like ``trace`` for functions made of other tiles, which capture nothing."""
    tile, captured = trace(function, grid, plan_inputs, arrays)
    if captured:
        raise AssertionError("a derived tile function captured an array")
    return tile


def _columns_first(x: jax.Array, y: jax.Array, *, dimension_numbers, **params) -> jax.Array:
    """A product over the first axes of two matrices, ``x^T y``, with the narrower one transposed beforehand.

    XLA's CPU backend has no fast kernel for this layout, in which the gradients of keys and values come; transposing a
    narrow block costs far less than it gains (measured: 2x on 1024 x 512 times 1024 x 64).
    """
    if dimension_numbers != (((0,), (0,)), ((), ())) or x.ndim != 2 or y.ndim != 2:
        return lax.dot_general(x, y, dimension_numbers, **params)
    rows = (((1,), (0,)), ((), ()))
    held = lax.optimization_barrier  # or XLA folds the transposes back into the product
    if x.shape[1] <= y.shape[1]:
        return held(lax.dot_general(held(x.T), y, rows, **params))
    return held(lax.dot_general(held(y.T), x, rows, **params)).T


# --- running it -----------------------------------------------------------------------------------------------------


def rescale(x: jax.Array, old: jax.Array, new: jax.Array, power: int | float) -> jax.Array:
    """``x`` at the log scale ``old``, at ``new``: ``x * exp(old - new)^power``; nothing has been seen at -inf."""
    if math.isinf(power):  # the limit: what stood at a smaller scale vanishes
        factor = (old == new).astype(x.dtype)
    else:
        factor = jnp.exp(old - jnp.where(jnp.isneginf(new), 0, new)) ** power
    return x * factor.reshape(factor.shape + (1,) * (x.ndim - factor.ndim))


def run(kinds: jax.Array, *arrays: jax.Array, plan: Plan) -> tuple[jax.Array, ...]:
    """The fold, by its executor or else by the loops."""
    found = _executed(kinds, arrays, plan)
    return loop(kinds, *arrays, plan=plan) if found is None else found


def run_on_cpu(kinds: jax.Array, *arrays: jax.Array, plan: Plan) -> tuple[jax.Array, ...]:
    """The same, the loops' products laid out for XLA's CPU backend."""
    found = _executed(kinds, arrays, plan)
    if found is not None:
        return found
    return loop(kinds, *arrays, plan=dataclasses.replace(plan, tile=plan.tile.on_cpu()))


def run_across(kinds: jax.Array, *arrays: jax.Array, plan: Plan) -> tuple[jax.Array, ...]:
    """The same in a program of several devices: the loops have outer dimensions as axes, which XLA can split."""
    executor = plan.executor and plan.executor.across()
    vectorized = plan.vectorized if executor else plan.start is None
    return run(kinds, *arrays, plan=dataclasses.replace(plan, executor=executor, vectorized=vectorized))


def _executed(kinds: jax.Array, arrays: Sequence[jax.Array], plan: Plan) -> tuple[jax.Array, ...] | None:
    found = None if plan.executor is None else plan.executor(plan, kinds, arrays)
    return None if found is None else tuple(found)


def loop(kinds: jax.Array, *arrays: jax.Array, plan: Plan) -> tuple[jax.Array, ...]:
    """Visit the tiles in order of rows, then columns, and add up; sums are at least float32 until the end."""
    some = kinds != EMPTY
    if plan.vectorized:
        some, plan = _vectorized(some, arrays, plan)
    lead = successors(some)
    grid, scaled = plan.grid, plan.scaled
    specs = plan.outputs
    blocks = tuple(jax.ShapeDtypeStruct(b.shape, sum_dtype(b.dtype)) for b in plan.tile.outputs)
    per_row = [s.follows(ROW) and not s.follows(COL) for s in specs]
    fill = plan.start or [-jnp.inf if scaled and i == 0 else 0 for i in range(len(specs))]
    outs = tuple(
        jnp.full(grid.array_shape(s, b.shape), f, b.dtype) for s, b, f in zip(specs, blocks, fill, strict=True)
    )

    def at_point(point, outs):
        here = grid.coordinates(point)
        # Hoist the outer slice, except of pair arrays, whose slice would be T x S.
        local = [
            (a, s) if s.follows(ROW) and s.follows(COL) else take(a, s, grid, here)
            for a, s in zip(arrays, plan.inputs, strict=True)
        ]
        table, _ = take(lead, plan.visit, grid, here)

        def at_row(i, outs):
            row = {**here, ROW: i}
            in_row = [(a, s) if s.follows(COL) else take(a, s, grid, row) for a, s in local]
            state = tuple(jnp.full(b.shape, f, b.dtype) for b, f, r in zip(blocks, fill, per_row, strict=True) if r)

            def more(carry):
                return carry[0] < grid.cols

            def at_tile(carry):
                j, state, outs = carry
                here_j = {**row, COL: j}
                inputs = [take(a, s, grid, here_j)[0] for a, s in in_row]
                if plan.start is not None:
                    state = tuple(x.astype(y.dtype) for x, y in zip(plan.tile(*state, *inputs), state, strict=True))
                elif scaled:
                    scale, *sums = plan.tile(state[0], *inputs)
                    kept = [rescale(x, state[0], scale, p) for x, p in zip(state[1:], plan.powers, strict=True)]
                    state = (scale, *(x + y for x, y in zip(kept, sums, strict=True)))
                else:
                    new = plan.tile(*inputs)
                    rows = [x for x, r in zip(new, per_row, strict=True) if r]
                    state = tuple(x + y for x, y in zip(state, rows, strict=True))
                    outs = tuple(
                        o if r else add(o, x, s, grid, here_j)
                        for o, x, s, r in zip(outs, new, specs, per_row, strict=True)
                    )
                return table[i, j + 1], state, outs

            _, state, outs = lax.while_loop(more, at_tile, (table[i, 0], state, outs))
            rows = iter(state)
            write = put if scaled or plan.start is not None else add
            return tuple(
                write(o, next(rows), s, grid, row) if r else o for o, s, r in zip(outs, specs, per_row, strict=True)
            )

        return lax.fori_loop(0, grid.rows, at_row, outs)

    outs = lax.fori_loop(0, grid.points, at_point, outs)
    return tuple(o.astype(dtype) for o, dtype in zip(outs, plan.results, strict=True))


def scan(
    plan: Plan, begin: Sequence[jax.Array], kinds: jax.Array, arrays: Sequence[jax.Array]
) -> tuple[jax.Array, ...]:
    """A carried fold that JAX differentiates: scans over rows and columns, all outer dimensions at once.

    Rows are rematerialized, and tiles within them: what is kept is linear in the number of rows plus that of columns.

    Args:
        plan: the fold.
        begin: blocks of its outputs before any tile.
        kinds: the block map.
        arrays: the operands.
    """
    grid = plan.grid
    count, outer = len(begin), range(len(grid.outer))
    step, specs, _ = vectorize(plan.tile, [*plan.outputs, *plan.inputs], plan.outputs, outer)
    flat = Grid((), grid.rows, grid.cols, grid.row_block, grid.col_block)
    some = (kinds != EMPTY).reshape(-1, grid.rows, grid.cols).any(0)
    first = tuple(jnp.broadcast_to(x, (*grid.outer, *jnp.shape(x))) for x in begin)

    @jax.checkpoint
    def row(i, arrays):
        here = [take(a, s, flat, {ROW: i}) for a, s in zip(arrays, specs[count:], strict=True)]

        def column(state, j):
            def visit(state):
                return step(*state, *(take(a, s, flat, {COL: j})[0] for a, s in here))

            return lax.cond(some[i, j], visit, lambda state: state, state), None

        return lax.scan(jax.checkpoint(column), first, jnp.arange(grid.cols))[0]

    _, rows = lax.scan(lambda _, i: (None, row(i, tuple(arrays))), None, jnp.arange(grid.rows))
    at = len(grid.outer)  # [rows, *outer, row block, ...]
    return tuple(
        jnp.moveaxis(x, 0, at).reshape(*grid.outer, grid.extent(ROW), *x.shape[at + 2 :]) for x in rows
    )  # fmt: skip


def sum_dtype(dtype: Any) -> Any:
    """The dtype in which blocks of ``dtype`` are added up."""
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype


def _vectorized(some, arrays, plan: Plan) -> tuple[jax.Array, Plan]:
    """The same fold with all outer dimensions inside the tile; a tile is visited if any of them visits it."""
    outer = range(len(plan.grid.outer))
    grid = dataclasses.replace(plan.grid, outer=())
    operands = plan.inputs if not plan.scaled else (plan.outputs[0], *plan.inputs)
    function, in_specs, out_specs = vectorize(plan.tile, operands, plan.outputs, outer)
    inputs = in_specs[1:] if plan.scaled else in_specs
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
    if plan.scaled:
        scale = plan.tile.outputs[0]
        shapes = [jax.ShapeDtypeStruct(plan.grid.array_shape(plan.outputs[0], scale.shape), scale.dtype), *shapes]
    tile = close(function, in_specs, grid, shapes)
    merged = some.reshape(-1, *some.shape[-2:]).any(0)
    return merged, dataclasses.replace(
        plan,
        grid=grid,
        visit=Spec((None, None)),
        inputs=tuple(inputs),
        outputs=tuple(out_specs),
        tile=tile,
        vectorized=False,
        dtypes=plan.results,
    )
