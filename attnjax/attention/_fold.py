"""The fold over tiles: one primitive, closed under differentiation.

A *tile function* maps blocks of its operands to blocks of its outputs. ``fold`` calls it on every tile that the block
map says may be visible and adds up what comes out::

    out_i = sum_j tile(row_i, col_j, shared)        (an output that follows rows)
    out_j = sum_i tile(row_i, col_j, shared)        (an output that follows columns; and so on)

Differentiating a sum of tiles gives a sum of tiles: the tangent is the fold of the tile's tangent, and the cotangent
is the fold of the tile's transpose, with the specs of inputs and outputs exchanged. So every order of derivative, in
both modes, takes one pass over the same visited tiles and keeps nothing of size T x S: only operands are residuals.

Sums of exponentials need care: a *scaled* fold carries a log scale ``m`` for each row beside its sums ``x``, and they
stand for ``exp(m) * x``. The scale is a choice of representation: results do not depend on it, so it is a constant to
differentiation, and the derivative of a scaled fold is a plain fold at the final scale.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad, batching, mlir

from attnjax import _compat
from attnjax.attention._grid import COL, ROW, Grid, Spec, add, put, take, vectorize


@dataclasses.dataclass(frozen=True, eq=False)
class Tile:
    """A tile function, traced: hashed by identity, so that it can be a parameter of the primitive."""

    jaxpr: Any

    def __call__(self, *blocks) -> tuple:
        return tuple(_compat.eval_jaxpr(self.jaxpr, *blocks))

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


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Another implementation of a fold: a fused kernel that computes the same outputs from the same operands.

    Derivatives stay those of the tile function. Where the kernel has a backward pass of its own, that runs the fold's
    cotangents; whatever else is asked for (forward mode, higher orders, gradients of other operands) is streamed.

    Attributes:
        run: ``run(*operands) -> outputs``.
        moving: the operands whose cotangents ``backward`` computes.
        backward: ``backward(*outputs' log scale, *operands, *cotangents) -> cotangents of moving``; None to stream.
    """

    run: Callable
    moving: tuple[int, ...] = ()
    backward: Callable | None = None


@dataclasses.dataclass(frozen=True)
class _Mapped:
    """A kernel's function under ``vmap``; results without a mapped axis are summed over it."""

    function: Callable
    in_axes: tuple[int | None, ...]
    out_axes: tuple[int | None, ...]

    def __call__(self, *arrays):
        outs = jax.vmap(self.function, in_axes=self.in_axes)(*arrays)
        return tuple(o.sum(0) if a is None else jnp.moveaxis(o, 0, a) for o, a in zip(outs, self.out_axes, strict=True))


def _mapped_kernel(kernel: Kernel, in_axes: tuple[int | None, ...], plan: "Plan") -> Kernel:
    outs = (0,) * len(plan.outputs)
    run = _Mapped(kernel.run, in_axes, outs)
    if kernel.backward is None:
        return Kernel(run)
    # What backward takes: the log scale, the operands, and the cotangents of the other outputs.
    backward = _Mapped(kernel.backward, (*outs[:1], *in_axes, *outs[1:]), tuple(in_axes[i] for i in kernel.moving))
    return Kernel(run, kernel.moving, backward)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static half of a fold.

    Attributes:
        grid: the grid of tiles.
        visit: spec of the block map's successor table (see ``_block_map.successors``).
        inputs: one spec for each operand.
        outputs: one spec for each output; of a scaled fold the first is the log scale.
        tile: the tile function. Of a scaled fold: ``(scale, *blocks) -> (new scale, *sums at it)``.
        tile_at: of a scaled fold, ``(scale, *blocks) -> sums at that scale``; None for a plain fold.
        powers: of a scaled fold, the power of ``exp(scale)`` that multiplies each sum.
        vectorized: whether the outer dimensions run at once (accelerators) or in turn (CPU: a tile stays in cache).
        kernel: runs the fold instead of the loops over tiles.
        transposed: runs the fold's transpose, for cotangents of exactly its ``linear`` last operands.
    """

    grid: Grid
    visit: Spec
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    tile: Tile
    tile_at: Tile | None = None
    powers: tuple[int, ...] = ()
    vectorized: bool = False
    kernel: Kernel | None = None
    transposed: Callable | None = None
    linear: int = 0

    @property
    def scaled(self) -> bool:
        return self.tile_at is not None


def trace(function: Callable, grid: Grid, specs: Sequence[Spec], arrays: Sequence[Any]) -> tuple[Tile, list]:
    """``function`` traced at block shapes, and the arrays it has captured (which become its last arguments)."""
    blocks = [jax.ShapeDtypeStruct(grid.block_shape(s, a.shape), a.dtype) for s, a in zip(specs, arrays, strict=True)]
    jaxpr, captured = _compat.hoist(jax.make_jaxpr(function)(*blocks))
    return Tile(jaxpr), captured


def _close(function: Callable, plan_inputs: Sequence[Spec], grid: Grid, arrays: Sequence[Any]) -> Tile:
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


def _rescale(old: jax.Array, new: jax.Array) -> jax.Array:
    """exp(old - new), and 0 where nothing has been seen yet (old = -inf)."""
    finite = jnp.where(jnp.isneginf(new), 0, new)
    return jnp.exp(old - finite)


def _run(successors: jax.Array, *arrays: jax.Array, plan: Plan) -> tuple[jax.Array, ...]:
    """Visit the tiles in order of rows, then columns, and add up."""
    if plan.kernel is not None:
        return tuple(plan.kernel.run(*arrays))
    if plan.vectorized:
        successors, plan = _vectorized(successors, arrays, plan)
    grid, scaled = plan.grid, plan.scaled
    specs = plan.outputs
    blocks = plan.tile.outputs
    per_row = [s.follows(ROW) and not s.follows(COL) for s in specs]
    fill = [-jnp.inf if scaled and i == 0 else 0 for i in range(len(specs))]
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
        table, _ = take(successors, plan.visit, grid, here)

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
                if scaled:
                    scale, *sums = plan.tile(state[0], *inputs)
                    old = _rescale(state[0], scale)
                    kept = [
                        x * old.reshape(old.shape + (1,) * (x.ndim - old.ndim)) ** p
                        for x, p in zip(state[1:], plan.powers, strict=True)
                    ]
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
            write = put if scaled else add
            return tuple(
                write(o, next(rows), s, grid, row) if r else o for o, s, r in zip(outs, specs, per_row, strict=True)
            )

        return lax.fori_loop(0, grid.rows, at_row, outs)

    return lax.fori_loop(0, grid.points, at_point, outs)


def _vectorized(successors, arrays, plan: Plan) -> tuple[jax.Array, Plan]:
    """The same fold with all outer dimensions inside the tile; a tile is visited if any of them visits it."""
    from attnjax.attention._block_map import merge_successors

    outer = range(len(plan.grid.outer))
    grid = dataclasses.replace(plan.grid, outer=())
    operands = plan.inputs if not plan.scaled else (plan.outputs[0], *plan.inputs)
    function, in_specs, out_specs = vectorize(plan.tile, operands, plan.outputs, outer)
    inputs = in_specs[1:] if plan.scaled else in_specs
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
    if plan.scaled:
        scale = plan.tile.outputs[0]
        shapes = [jax.ShapeDtypeStruct(plan.grid.array_shape(plan.outputs[0], scale.shape), scale.dtype), *shapes]
    tile = _close(function, in_specs, grid, shapes)
    table = merge_successors(successors)
    return table, dataclasses.replace(
        plan,
        grid=grid,
        visit=Spec((None, None)),
        inputs=tuple(inputs),
        outputs=tuple(out_specs),
        tile=tile,
        vectorized=False,
    )


# --- the primitive --------------------------------------------------------------------------------------------------

fold_p = _compat.Primitive("attention_fold")
fold_p.multiple_results = True


def fold(plan: Plan, successors: jax.Array, arrays: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Add up ``plan.tile`` over the visited tiles. Linear memory; differentiable any number of times in any mode."""
    return tuple(fold_p.bind(*_compat.match_varying([successors, *arrays]), plan=plan))


@functools.partial(jax.jit, static_argnames="plan")
def _jitted(*arrays, plan):
    return _run(*arrays, plan=plan)


fold_p.def_impl(lambda *arrays, plan: _jitted(*arrays, plan=plan))


@fold_p.def_abstract_eval
def _abstract(*avals, plan: Plan):
    return [
        _compat.output_aval(plan.grid.array_shape(s, b.shape), b.dtype, avals)
        for s, b in zip(plan.outputs, plan.tile.outputs, strict=True)
    ]


def _run_on_cpu(successors: jax.Array, *arrays: jax.Array, plan: Plan) -> tuple[jax.Array, ...]:
    return _run(successors, *arrays, plan=dataclasses.replace(plan, tile=plan.tile.on_cpu()))


mlir.register_lowering(fold_p, _compat.lower_without_varying_check(_run))
mlir.register_lowering(fold_p, _compat.lower_without_varying_check(_run_on_cpu), platform="cpu")


def _is_zero(tangent) -> bool:
    return type(tangent) is ad.Zero or tangent.dtype == jax.dtypes.float0


def _jvp(primals, tangents, *, plan: Plan):
    successors, *arrays = primals
    tangents = tangents[1:]
    outs = fold_p.bind(*primals, plan=plan)
    live = [i for i, t in enumerate(tangents) if not _is_zero(t)]
    zeros = [ad.Zero(_compat.tangent_aval(o)) for o in outs]
    if not live:
        return outs, zeros
    scale = [outs[0]] if plan.scaled else []
    tile = plan.tile_at if plan.scaled else plan.tile
    shift = len(scale)

    def tangent_tile(*blocks):
        constants, moving = blocks[: shift + len(arrays)], blocks[shift + len(arrays) :]

        def at(*active):
            full = list(constants)
            for i, x in zip(live, active, strict=True):
                full[shift + i] = x
            return tile(*full)

        return jax.jvp(at, tuple(constants[shift + i] for i in live), moving)[1]

    operands = [*scale, *arrays, *(tangents[i] for i in live)]
    specs = (*plan.outputs[:shift], *plan.inputs, *(plan.inputs[i] for i in live))
    derived = Plan(
        grid=plan.grid,
        visit=plan.visit,
        inputs=specs,
        outputs=plan.outputs[shift:],
        tile=_close(tangent_tile, specs, plan.grid, operands),
        vectorized=plan.vectorized,
        transposed=plan.kernel.backward if plan.kernel is not None and tuple(live) == plan.kernel.moving else None,
        linear=len(live),
    )
    return outs, [*zeros[:shift], *fold(derived, successors, operands)]


def _transpose(cotangents, successors, *arrays, plan: Plan):
    linear = [i for i, a in enumerate(arrays) if ad.is_undefined_primal(a)]
    known = [i for i in range(len(arrays)) if i not in linear]
    live = [i for i, c in enumerate(cotangents) if type(c) is not ad.Zero]
    if not live:
        return [None] * (1 + len(arrays))
    fused = (
        plan.transposed is not None
        and linear == list(range(len(arrays) - plan.linear, len(arrays)))
        and len(live) == len(plan.outputs)
    )
    shapes = {i: arrays[i].aval for i in linear}
    blocks = {i: plan.grid.block_shape(plan.inputs[i], a.shape) for i, a in shapes.items()}

    def transposed_tile(*inputs):
        constants, cts = inputs[: len(known)], inputs[len(known) :]

        def at(*moving):
            full = dict(zip(known, constants, strict=True)) | dict(zip(linear, moving, strict=True))
            outs = plan.tile(*(full[i] for i in range(len(arrays))))
            return tuple(outs[i] for i in live)

        zeros = [jax.ShapeDtypeStruct(blocks[i], shapes[i].dtype) for i in linear]
        return jax.linear_transpose(at, *zeros)(cts)

    operands = [*(arrays[i] for i in known), *(cotangents[i] for i in live)]
    specs = (*(plan.inputs[i] for i in known), *(plan.outputs[i] for i in live))
    derived = Plan(
        grid=plan.grid,
        visit=plan.visit,
        inputs=specs,
        outputs=tuple(plan.inputs[i] for i in linear),
        tile=_close(transposed_tile, specs, plan.grid, operands),
        vectorized=plan.vectorized,
        kernel=Kernel(plan.transposed) if fused else None,
    )
    found = dict(zip(linear, fold(derived, successors, operands), strict=True))
    return [None, *(found.get(i) for i in range(len(arrays)))]


def _batch(operands, axes, *, plan: Plan):
    """A mapped axis is one more outer dimension of the grid."""
    size = next(o.shape[a] for o, a in zip(operands, axes, strict=True) if a is not None)
    new = len(plan.grid.outer)
    mapped = tuple(None if a is None else a for a in axes[1:])

    def widen(spec: Spec, axis) -> Spec:
        if axis is None:
            return spec
        return Spec((*spec.dims[:axis], new, *spec.dims[axis:]))

    derived = dataclasses.replace(
        plan,
        grid=dataclasses.replace(plan.grid, outer=(*plan.grid.outer, size)),
        visit=widen(plan.visit, axes[0]),
        inputs=tuple(widen(s, a) for s, a in zip(plan.inputs, axes[1:], strict=True)),
        outputs=tuple(widen(s, 0) for s in plan.outputs),
        kernel=plan.kernel and _mapped_kernel(plan.kernel, mapped, plan),
        transposed=None,
    )
    outs = fold_p.bind(*operands, plan=derived)
    return outs, [0] * len(outs)


ad.primitive_jvps[fold_p] = _jvp
ad.primitive_transposes[fold_p] = _transpose
batching.primitive_batchers[fold_p] = _batch
