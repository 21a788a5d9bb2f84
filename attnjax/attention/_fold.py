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

import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching, mlir

from attnjax import _compat
from attnjax.attention._grid import Spec
from attnjax.attention._tiles import Kernel, Plan, close, run, run_on_cpu

fold_p = _compat.Primitive("attention_fold")
fold_p.multiple_results = True


def fold(plan: Plan, successors: jax.Array, arrays: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Add up ``plan.tile`` over the visited tiles. Linear memory; differentiable any number of times in any mode."""
    return tuple(fold_p.bind(*_compat.match_varying([successors, *arrays]), plan=plan))


@functools.partial(jax.jit, static_argnames="plan")
def _jitted(*arrays, plan):
    return run(*arrays, plan=plan)


fold_p.def_impl(lambda *arrays, plan: _jitted(*arrays, plan=plan))


@fold_p.def_abstract_eval
def _abstract(*avals, plan: Plan):
    return [
        _compat.output_aval(plan.grid.array_shape(s, b.shape), b.dtype, avals)
        for s, b in zip(plan.outputs, plan.tile.outputs, strict=True)
    ]


mlir.register_lowering(fold_p, _compat.lower_without_varying_check(run))
mlir.register_lowering(fold_p, _compat.lower_without_varying_check(run_on_cpu), platform="cpu")


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
    tile = plan.tile if plan.tile_at is None else plan.tile_at
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
        tile=close(tangent_tile, specs, plan.grid, operands),
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
    complete = linear == list(range(len(arrays) - plan.linear, len(arrays))) and len(live) == len(plan.outputs)
    kernel = Kernel(plan.transposed) if plan.transposed is not None and complete else None
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
        tile=close(transposed_tile, specs, plan.grid, operands),
        vectorized=plan.vectorized,
        kernel=kernel,
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


@dataclasses.dataclass(frozen=True)
class _Mapped:
    """A kernel's function under ``vmap``; results without a mapped axis are summed over it."""

    function: Callable
    in_axes: tuple[int | None, ...]
    out_axes: tuple[int | None, ...]

    def __call__(self, *arrays):
        outs = jax.vmap(self.function, in_axes=self.in_axes)(*arrays)
        return tuple(o.sum(0) if a is None else jnp.moveaxis(o, 0, a) for o, a in zip(outs, self.out_axes, strict=True))


def _mapped_kernel(kernel: Kernel, in_axes: tuple[int | None, ...], plan: Plan) -> Kernel:
    outs = (0,) * len(plan.outputs)
    run = _Mapped(kernel.run, in_axes, outs)
    if kernel.backward is None:
        return Kernel(run)
    # What backward takes: the log scale, the operands, and the cotangents of the other outputs.
    backward = _Mapped(kernel.backward, (*outs[:1], *in_axes, *outs[1:]), tuple(in_axes[i] for i in kernel.moving))
    return Kernel(run, kernel.moving, backward)


ad.primitive_jvps[fold_p] = _jvp
ad.primitive_transposes[fold_p] = _transpose
batching.primitive_batchers[fold_p] = _batch
