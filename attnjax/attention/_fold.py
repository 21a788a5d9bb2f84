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
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching, mlir

from attnjax import _compat
from attnjax.attention._grid import Spec
from attnjax.attention._tiles import Plan, close, run, run_across, run_on_cpu

fold_p = _compat.Primitive("attention_fold")
fold_p.multiple_results = True


def fold(plan: Plan, kinds: jax.Array, arrays: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Add up ``plan.tile`` over the visited tiles. Linear memory; differentiable any number of times in any mode."""
    return tuple(fold_p.bind(*_compat.match_varying([kinds, *arrays]), plan=plan))


@functools.partial(jax.jit, static_argnames="plan")
def _jitted(*arrays, plan):
    return run(*arrays, plan=plan)


fold_p.def_impl(lambda *arrays, plan: _jitted(*arrays, plan=plan))


@fold_p.def_abstract_eval
def _abstract(*avals, plan: Plan):
    return [
        _compat.output_aval(plan.grid.array_shape(s, b.shape), dtype, avals)
        for s, b, dtype in zip(plan.outputs, plan.tile.outputs, plan.results, strict=True)
    ]


mlir.register_lowering(fold_p, _compat.lower_without_varying_check(run, run_across))
mlir.register_lowering(fold_p, _compat.lower_without_varying_check(run_on_cpu, run_across), platform="cpu")
_compat.lowering_knows_devices(fold_p)


def _is_zero(tangent) -> bool:
    return type(tangent) is ad.Zero or tangent.dtype == jax.dtypes.float0


def _jvp(primals, tangents, *, plan: Plan):
    kinds, *arrays = primals
    tangents = tangents[1:]
    outs = fold_p.bind(*primals, plan=plan)
    live = [i for i, t in enumerate(tangents) if not _is_zero(t)]
    zeros = [ad.Zero(_compat.tangent_aval(o)) for o in outs]
    scale = [outs[0]] if plan.scaled else []
    tile = plan.tile if plan.tile_at is None else plan.tile_at
    shift = len(scale)
    moved = [n for n in range(shift, len(outs)) if jnp.issubdtype(outs[n].dtype, jnp.inexact)]
    if not live or not moved:
        return outs, zeros

    def tangent_tile(*blocks):
        constants, moving = blocks[: shift + len(arrays)], blocks[shift + len(arrays) :]

        def at(*active):
            full = list(constants)
            for i, x in zip(live, active, strict=True):
                full[shift + i] = x
            return tile(*full)

        changes = jax.jvp(at, tuple(constants[shift + i] for i in live), moving)[1]
        return tuple(changes[n - shift] for n in moved)

    operands = [*scale, *arrays, *(tangents[i] for i in live)]
    specs = (*plan.outputs[:shift], *plan.inputs, *(plan.inputs[i] for i in live))
    derived = Plan(
        grid=plan.grid,
        visit=plan.visit,
        inputs=specs,
        outputs=tuple(plan.outputs[n] for n in moved),
        tile=close(tangent_tile, specs, plan.grid, operands),
        vectorized=plan.vectorized,
        executor=plan.executor and plan.executor.tangent(tuple(live)),
        dtypes=tuple(plan.results[n] for n in moved),
    )
    found = dict(zip(moved, fold(derived, kinds, operands), strict=True))
    return outs, [found.get(n, zero) for n, zero in enumerate(zeros)]


def _transpose(cotangents, kinds, *arrays, plan: Plan):
    linear = [i for i, a in enumerate(arrays) if ad.is_undefined_primal(a)]
    known = [i for i in range(len(arrays)) if i not in linear]
    live = [i for i, c in enumerate(cotangents) if type(c) is not ad.Zero]
    if not live:
        return [None] * (1 + len(arrays))
    complete = len(live) == len(plan.outputs)
    shapes = {i: arrays[i].aval for i in linear}
    blocks = {i: plan.grid.block_shape(plan.inputs[i], a.shape) for i, a in shapes.items()}

    def transposed_tile(*inputs):
        constants, cts = inputs[: len(known)], inputs[len(known) :]

        def at(*moving):
            full = dict(zip(known, constants, strict=True)) | dict(zip(linear, moving, strict=True))
            outs = plan.tile(*(full[i] for i in range(len(arrays))))
            return tuple(outs[i].astype(plan.results[i]) for i in live)

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
        executor=plan.executor and plan.executor.transpose(tuple(linear), len(arrays), complete),
    )
    found = dict(zip(linear, fold(derived, kinds, operands), strict=True))
    return [None, *(found.get(i) for i in range(len(arrays)))]


def _batch(operands, axes, *, plan: Plan):
    """A mapped axis is one more outer dimension of the grid."""
    size = next(o.shape[a] for o, a in zip(operands, axes, strict=True) if a is not None)
    new = len(plan.grid.outer)

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
        executor=plan.executor and plan.executor.batch(tuple(axes[1:]), plan),
    )
    outs = fold_p.bind(*operands, plan=derived)
    return outs, [0] * len(outs)


ad.primitive_jvps[fold_p] = _jvp
ad.primitive_transposes[fold_p] = _transpose
batching.primitive_batchers[fold_p] = _batch
