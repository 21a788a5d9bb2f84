"""Walks on Hopper GPUs: one kernel takes the carries from chunk to chunk; the rest is done for all chunks at once.

A block of threads holds one carry, or some columns of it, in the registers of a warpgroup. Operands of its products lie
in shared memory: what is known of a chunk is copied there while the chunk before is computed, what is computed is put
there. Outputs follow from the carries before each chunk.
"""

import dataclasses
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
from pallas_kernels.attention.gpu._fragments import DOWN, MATRIX, PARTS, ROWS_EACH, SWIZZLE
from pallas_kernels.linear._core import Core, cut
from pallas_kernels.linear._flat import flatten
from pallas_kernels.linear._flat import run as evaluate
from pallas_kernels.linear._plan import Unsupported, Walk
from pallas_kernels.linear._registers import Evaluator, Value

STAGES = 2
"""Chunks whose known values are in shared memory at once, at most."""


def run(plan: Walk, arrays: Sequence[jax.Array], target: Target) -> list[jax.Array]:
    """A walk with one leading axis; see ``pallas_kernels.linear.walk``."""
    count = plan.step.carries
    carries, chunks = list(arrays[:count]), list(arrays[count:])
    found, whole = cut(plan.step), flatten(plan.step.jaxpr)
    known = jax.vmap(jax.vmap(lambda *chunk: evaluate(found.before, chunk)))(*chunks)
    before, last = _Call(found, plan.backward, target)(carries, known)
    return [*last, *jax.vmap(jax.vmap(lambda *given: evaluate(whole, given)[count:]))(*before, *chunks)]


def _whole(n: int) -> int:
    """Numbers along an axis of a matrix: whole rows of a warpgroup, and whole lines."""
    return -(-n // ROWS_EACH) * ROWS_EACH


@dataclasses.dataclass(frozen=True)
class _Known:
    """How a known value reaches the kernel.

    Attributes:
        shape: its shape in the kernel.
        parts: the number of arrays that it comes in, if it is in shared memory.
        apart: the axis along which it is cut with the carries, or None.
    """

    shape: tuple[int, ...]
    parts: int
    apart: int | None

    @property
    def shared(self) -> bool:
        return self.parts > 0


class _Call:
    """The kernel of a core."""

    def __init__(self, found: Core, backward: bool, target: Target):
        self.core, self.backward, self.target = found, backward, target
        self.multiplied = set()
        for e in found.equations:
            if e.primitive.name == "dot_general":
                self.multiplied |= {a for a in e.invars if not isinstance(a, core.Literal)}
        # A product of float32 matrices needs all parts of its operands, any other the first.
        self.parts: dict = {}
        for e in found.equations:
            if e.primitive.name == "dot_general":
                wide = all(a.aval.dtype == jnp.float32 for a in e.invars)
                for a in e.invars:
                    self.parts[a] = max(self.parts.get(a, 1), PARTS if wide else 1)
        columns = {_whole(v.aval.shape[1]) for v in found.carries}
        apart = found.apart and len(columns) == 1
        self.slice = ROWS_EACH if apart else None
        self.slices = columns.pop() // ROWS_EACH if apart else 1

    def shape(self, v: Any) -> tuple[int, ...]:
        """Of a variable in the kernel."""
        full = tuple(n if n == 1 else _whole(n) for n in v.aval.shape)
        if self.slice is None:
            return full
        return tuple(self.slice if (v, axis) in self.core.apart else n for axis, n in enumerate(full))

    def _known(self, v: Any) -> _Known:
        shape = self.shape(v)
        matrix = len(shape) == 2 and min(shape) > 1
        cut = [axis for axis in range(len(shape)) if self.slice is not None and (v, axis) in self.core.apart]
        return _Known(shape, self.parts[v] if v in self.multiplied and matrix else 0, cut[0] if cut else None)

    # --- the call

    def __call__(self, carries: list, known: Sequence[jax.Array]) -> tuple[list, list]:
        """The carries before each chunk, and after the last one."""
        points, length = carries[0].shape[0], known[0].shape[1] if known else 0
        self.length, self.kinds = length, [self._known(v) for v in self.core.known]
        given, self.counts = [], []
        for x, kind in zip(known, self.kinds, strict=True):
            x = _filled(x, 2)
            parts = _split(x, kind.parts) if kind.shared else (x,)
            given += parts
            self.counts.append(len(parts))
        held = [_filled(x.astype(jnp.float32), 1) for x in carries]
        shapes = [x.shape[1:] for x in held]
        out_type = [
            *(jax.ShapeDtypeStruct((points, length, *s), jnp.float32) for s in shapes),
            *(jax.ShapeDtypeStruct((points, *s), jnp.float32) for s in shapes),
        ]
        extra = {}
        if self.target.interpret:
            extra["interpret"] = _compat.interpreter() if self.target.interpret is True else self.target.interpret
        scratch = self._scratch(given)
        found = plgpu.kernel(
            self._kernel,
            out_type=out_type,
            scratch_types=scratch,
            grid=(points, self.slices),
            grid_names=("point", "slice"),
            num_threads=1,
            thread_name="warpgroup",
            kernel_name="walk_back" if self.backward else "walk",
            compiler_params=plgpu.CompilerParams(
                approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=False
            ),
            **extra,
        )(*held, *given)
        back = lambda x, like: x[..., : like.shape[-2], : like.shape[-1]].astype(like.dtype)
        before = [back(x, c) for x, c in zip(found[: len(held)], carries, strict=True)]
        return before, [back(x, c) for x, c in zip(found[len(held) :], carries, strict=True)]

    def _scratch(self, given: list) -> dict:
        transforms = (plgpu.TilingTransform((8, SWIZZLE // 2)), plgpu.SwizzleTransform(SWIZZLE))
        shared = lambda shape, dtype: plgpu.SMEM(shape, dtype, transforms=transforms)
        arrays, moved = iter(given), []
        for kind, count in zip(self.kinds, self.counts, strict=True):
            moved += [(kind.shape, x.dtype) for x in [next(arrays) for _ in range(count)] if kind.shared]
        slots: dict[tuple, int] = {}
        for e in self.core.equations:
            if e.primitive.name != "dot_general":
                continue
            for side, a in enumerate(e.invars):
                if a not in self.core.known:
                    key = (self.shape(a), self.narrow(e), side)
                    slots[key] = max(slots.get(key, 0), self.parts_of(e))
        self.slots = list(slots)
        once = sum(math.prod(shape) * 2 for shape, _ in moved)
        kept = sum(math.prod(shape) * 2 * n for (shape, _, _), n in slots.items()) + 4096
        self.stages = STAGES if kept + STAGES * once <= self.target.shared else 1
        total = kept + self.stages * once
        if total > self.target.shared:
            raise Unsupported(
                f"a step that needs {total:,} bytes of shared memory, where {self.target.generation} has "
                f"{self.target.shared:,}; take smaller chunks"
            )
        ring = [shared((self.stages, *shape), dtype) for shape, dtype in moved]
        stage = [[shared(shape, dtype) for _ in range(n)] for (shape, dtype, _), n in slots.items()]
        return {
            "ring": ring,
            "stage": stage,
            "full": plgpu.Barrier(num_arrivals=max(len(ring), 1), num_barriers=self.stages),
        }

    def narrow(self, e: Any) -> Any:
        """The 16-bit type in which a product's operands are."""
        narrow = [a.aval.dtype for a in e.invars if a.aval.dtype.itemsize == 2]
        return jnp.dtype(narrow[0]) if narrow else jnp.dtype(jnp.bfloat16)

    def parts_of(self, e: Any) -> int:
        return 1 if any(a.aval.dtype.itemsize == 2 for a in e.invars) else PARTS

    # --- the kernel

    def _kernel(self, *refs: Any, **scratch: Any) -> None:
        count = len(self.core.carries)
        first, refs = refs[:count], refs[count:]
        given, refs = refs[: sum(self.counts)], refs[sum(self.counts) :]
        before, last = refs[:count], refs[count : 2 * count]
        if not scratch:
            (scratch,) = refs[2 * count :]
        point, part = lax.axis_index("point"), lax.axis_index("slice")
        own, arrays = [], iter(given)
        for n in self.counts:
            own.append([next(arrays) for _ in range(n)])
        ring = iter(scratch["ring"])
        stored = [[next(ring) for _ in refs] if kind.shared else [] for kind, refs in zip(self.kinds, own, strict=True)]
        full, moved = scratch["full"], any(kind.shared for kind in self.kinds)

        def chunk_of(step: Any) -> Any:
            return self.length - 1 - step if self.backward else step

        def fetch(step: Any) -> None:
            slot = lax.rem(step, jnp.int32(self.stages))
            for kind, refs, to in zip(self.kinds, own, stored, strict=True):
                for ref, x in zip(refs, to, strict=True) if kind.shared else ():
                    place = (point, chunk_of(step), *self._window(kind, part))
                    plgpu.copy_gmem_to_smem(ref.at[place], x.at[slot], full.at[slot])

        def fragments(ref: Any, lead: tuple, shape: tuple[int, ...], columns: Any) -> list:
            return [ref.at[(*lead, pl.ds(n * ROWS_EACH, ROWS_EACH), columns)] for n in range(shape[0] // ROWS_EACH)]

        columns = slice(None) if self.slice is None else pl.ds(part * self.slice, self.slice)
        shapes = [self.shape(v) for v in self.core.carries]
        carry = tuple(
            tuple(_compat.load(x, MATRIX) for x in fragments(ref, (point,), shape, columns))
            for ref, shape in zip(first, shapes, strict=True)
        )
        ahead = self.stages - 1
        evaluator = Evaluator(self, scratch["stage"])
        if moved and ahead:
            fetch(jnp.int32(0))

        def step(number: Any, carry: tuple) -> tuple:
            slot = lax.rem(number, jnp.int32(self.stages))
            if moved:
                plgpu.commit_smem()  # nobody reads the slot any more that is filled now
                pl.when(number + ahead < self.length)(lambda: fetch(number + ahead))
                plgpu.barrier_wait(full.at[slot])
            chunk = chunk_of(number)
            for rows, ref, shape in zip(carry, before, shapes, strict=True):
                for x, to in zip(rows, fragments(ref, (point, chunk), shape, columns), strict=True):
                    _compat.store(to, x)
            values = {}
            for v, kind, refs, to in zip(self.core.known, self.kinds, own, stored, strict=True):
                values[v] = self._read(v, kind, refs, [x.at[slot] for x in to], (point, chunk), part)
            for v, rows, shape in zip(self.core.carries, carry, shapes, strict=True):
                values[v] = Value(shape, jnp.dtype(jnp.float32), rows=list(rows))
            evaluator.run(values)
            found = zip(self.core.outputs, shapes, strict=True)
            return tuple(tuple(evaluator.rows(values[v], shape)) for v, shape in found)

        carry = lax.fori_loop(jnp.int32(0), jnp.int32(self.length), step, carry)
        for rows, ref, shape in zip(carry, last, shapes, strict=True):
            for x, to in zip(rows, fragments(ref, (point,), shape, columns), strict=True):
                _compat.store(to, x)

    def _window(self, kind: _Known, part: Any) -> tuple:
        return tuple(
            pl.ds(part * self.slice, self.slice) if axis == kind.apart else slice(None)
            for axis in range(len(kind.shape))
        )

    def _read(self, v: Any, kind: _Known, refs: list, stored: list, lead: tuple, part: Any) -> Value:
        dtype = jnp.dtype(v.aval.dtype)
        if kind.shared:
            return Value(kind.shape, dtype, stored=tuple(stored))
        shape, (ref,) = kind.shape, refs
        if math.prod(shape) == 1:
            return Value(shape, dtype, rows=ref[(*lead, *(0,) * len(shape))])
        if shape[1] == 1:
            place = lambda n: ref.at[(*lead, pl.ds(n * ROWS_EACH, ROWS_EACH), 0)]
            return Value(shape, dtype, rows=[_compat.load(place(n), DOWN) for n in range(shape[0] // ROWS_EACH)])
        if shape[0] == 1:
            raise Unsupported("a row of numbers in the core of a step")
        columns = self._window(kind, part)[1]
        place = lambda n: ref.at[(*lead, pl.ds(n * ROWS_EACH, ROWS_EACH), columns)]
        return Value(shape, dtype, rows=[_compat.load(place(n), MATRIX) for n in range(shape[0] // ROWS_EACH)])


def _filled(x: jax.Array, lead: int) -> jax.Array:
    """With zeros up to whole rows and lines."""
    after = [0 if n == 1 else _whole(n) - n for n in x.shape[lead:]]
    return jnp.pad(x, [(0, 0)] * lead + [(0, n) for n in after])


def _split(x: jax.Array, count: int) -> tuple[jax.Array, ...]:
    """16-bit arrays whose sum is ``x``."""
    if x.dtype.itemsize == 2:
        return (x,)
    parts = []
    for _ in range(count):
        part = x.astype(jnp.bfloat16)
        parts.append(part)
        x = x - part.astype(x.dtype)
    return tuple(parts)
