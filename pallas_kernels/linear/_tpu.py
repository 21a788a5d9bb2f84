"""Walks on TPU: the grid is batch by chunks, the carry lies in vector memory from chunk to chunk."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels._target import MIB, Target
from pallas_kernels.linear._flat import flatten
from pallas_kernels.linear._flat import run as evaluate
from pallas_kernels.linear._plan import Unsupported, Walk

TOKENS = 256
"""Rows of a grid step, at most: of several chunks, the products of one overlap with what the other waits for."""


def run(plan: Walk, arrays: Sequence[jax.Array], target: Target) -> list[jax.Array]:
    """A walk with one leading axis; see ``pallas_kernels.linear.walk``."""
    count, jaxpr = plan.step.carries, flatten(plan.step.jaxpr)
    carries, chunks = arrays[:count], arrays[count:]
    points, length = chunks[0].shape[:2]
    group = _group(length, max(x.shape[-2] for x in chunks))
    steps = length // group
    outs = [v.aval for v in jaxpr.outvars][count:]
    whole = lambda aval: pl.BlockSpec((None, *aval.shape[-2:]), lambda n, m: (n, 0, 0))
    at = (lambda m: steps - 1 - m) if plan.backward else (lambda m: m)
    part = lambda aval: pl.BlockSpec((None, group, *aval.shape[-2:]), lambda n, m: (n, at(m), 0, 0))
    needed = _needed(plan, chunks, outs, carries, group)
    if needed > target.vmem:
        raise Unsupported(f"a step that needs {needed // MIB} MiB of vector memory of {target.vmem // MIB}")
    found = pl.pallas_call(
        functools.partial(_kernel, jaxpr, count, len(chunks), group, plan.backward),
        out_shape=[
            *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in carries),
            *(jax.ShapeDtypeStruct((points, length, *a.shape), a.dtype) for a in outs),
        ],
        grid=(points, steps),
        in_specs=[*map(whole, carries), *map(part, chunks)],
        out_specs=[*map(whole, carries), *map(part, outs)],
        scratch_shapes=[pltpu.VMEM(x.shape[1:], x.dtype) for x in carries],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=min(target.vmem, needed + 16 * MIB)
        ),
        interpret=target.interpret,
        name=f"walk{'_back' if plan.backward else ''}_by_{group}",
    )(*arrays)
    return list(found)


def _group(length: int, rows: int) -> int:
    """Chunks of a grid step."""
    return max(n for n in range(1, max(1, TOKENS // rows) + 1) if length % n == 0)


def _needed(plan: Walk, chunks: Sequence[Any], outs: Sequence[Any], carries: Sequence[Any], group: int) -> int:
    """Bytes of vector memory: windows twice, carries, and the matrices of a chunk."""
    size = lambda a, n=1: n * math.prod(_tiled(a.shape[-2:])) * max(a.dtype.itemsize, 2)
    windows = sum(size(a, group) for a in (*chunks, *outs)) + 2 * sum(map(size, carries))
    inside = max((size(v.aval) for e in plan.step.jaxpr.jaxpr.eqns for v in e.outvars if v.aval.ndim > 1), default=0)
    return 2 * windows + sum(map(size, carries)) + 16 * inside


def _tiled(shape: Sequence[int]) -> tuple[int, int]:
    return -(-shape[0] // 8) * 8, -(-shape[1] // 128) * 128


def _kernel(jaxpr: Any, count: int, chunks: int, group: int, backward: bool, *refs: Any) -> None:
    first, refs = refs[:count], refs[count:]
    ins, refs = refs[:chunks], refs[chunks:]
    last, refs = refs[:count], refs[count:]
    outs, held = refs[: len(refs) - count], refs[len(refs) - count :]
    step = pl.program_id(1)

    @pl.when(step == 0)
    def _():
        for x, start in zip(held, first, strict=True):
            x[...] = start[...]

    carry = [x[...] for x in held]
    for n in reversed(range(group)) if backward else range(group):
        found = evaluate(jaxpr, [*carry, *(x[n] for x in ins)])
        carry = found[:count]
        for ref, x in zip(outs, found[count:], strict=True):
            ref[n] = x
    for ref, x in zip(held, carry, strict=True):
        ref[...] = x

    @pl.when(step == pl.num_programs(1) - 1)
    def _():
        for ref, x in zip(last, carry, strict=True):
            ref[...] = x
