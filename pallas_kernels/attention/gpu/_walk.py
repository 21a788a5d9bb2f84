"""What the warpgroups of a block of threads do: one moves matrices into a ring, the others compute."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention._plan import running
from pallas_kernels.attention._sums import at_mass, changes, divisor, log_scale, start_of, sum_dtype
from pallas_kernels.attention._values import Value
from pallas_kernels.attention.gpu._fragments import ROWS_EACH, Product
from pallas_kernels.attention.gpu._operands import At, Operand


class Visits:
    """What the block of threads visits.

    Attributes:
        full: steps through full tiles, which come first.
        all: steps.
    """

    def __init__(self, call: Any, tiles: Any, counts: Any, places: Any):
        self.call, self.tiles = call, tiles
        point, place = lax.axis_index("point"), lax.axis_index("place")
        self.outer = {}
        for d in reversed(call.outer):
            point, self.outer[d] = _divided(point, call.plan.grid.outer[d])
        self.list = jnp.int32(0)
        for d in call.followed:
            self.list = self.list * call.plan.grid.outer[d] + self.outer[d]
        self.pair = call.order == "pair"
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

    def at(self, warpgroup: Any, step: Any = 0, entry: Any = 0) -> At:
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
        for d in reversed(call.inner):
            inner, index[d] = _divided(inner, grid.outer[d])
        offset = (self.piece * call.groups + warpgroup) * ROWS_EACH
        starts = {
            call.first: first * call.blocks[call.first] + offset,
            call.other: other * call.blocks[call.other] + part * call.step,
        }
        return At(index, starts)


def _divided(x: Any, by: int) -> tuple[Any, Any]:
    """Quotient and rest."""
    if by == 1:
        return x, jnp.int32(0)
    return lax.div(jnp.int32(x), jnp.int32(by)), lax.rem(jnp.int32(x), jnp.int32(by))


class Walk:
    """What the warpgroups of a block of threads do."""

    def __init__(self, call: Any, operands: Sequence[Operand], refs: Sequence, scratch: dict, visits: Visits):
        self.call, self.operands, self.refs, self.scratch, self.visits = call, operands, refs, scratch, visits
        kept, ring = iter(scratch["kept"]), iter(scratch["ring"])
        self.stored = [[next(kept if x.is_kept else ring) for _ in x.arrays] if x.width else [] for x in operands]

    # --- moving

    def move(self) -> None:
        """Fill the ring, as it is emptied."""
        visits, stages = self.visits, self.call.stages
        if "full" not in self.scratch:
            return
        full, empty = self.scratch["full"], self.scratch["empty"]

        @pl.loop(0, visits.all)
        def _(step):
            slot = lax.rem(step, jnp.int32(stages))
            pl.when(step >= stages)(lambda: plgpu.barrier_wait(empty.at[slot]))
            at = visits.at(0, step, visits.entry(step))
            for x, refs, stored in zip(self.operands, self.refs, self.stored, strict=True):
                if x.is_moved:
                    for ref, to in zip(refs, stored, strict=True):
                        self._copy(x, ref, to.at[slot], at, full.at[slot])

        # No barrier may be left with an arrival that nothing waits for.
        @pl.loop(jnp.maximum(visits.all - stages, 0), visits.all)
        def _(step):
            plgpu.barrier_wait(empty.at[lax.rem(step, jnp.int32(stages))])

    def _copy(self, x: Operand, ref: Any, to: Any, at: At, barrier: Any) -> None:
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
            if x.is_kept:
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
        shared = call.evaluator.prepare(self._arguments([None] * running(call.plan), steady), fold=False)

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
        finished = self._finished(sums) if call.plan.scaled else sums
        for n, i in enumerate(call.outputs):
            call.write(outs[n], i, finished[n], here)

    def _staged(self, warpgroup: Any, x: jax.Array) -> Any:
        """A 16-bit matrix in registers, in shared memory."""
        ref = self.scratch["staged"][str(x.dtype)].at[warpgroup, :, pl.ds(0, x.shape[1])]
        ref[...] = x
        plgpu.commit_smem()
        return ref

    def _value(self, n: int, at: At, warpgroup: Any, slot: Any) -> Value:
        x, stored = self.operands[n], self.stored[n]
        if x.width:
            places = ((warpgroup,) if x.is_kept else (slot, warpgroup)) if x.first else (slot,)
            stored = [ref.at[places] for ref in stored]
        return x.read(self.refs[n], at, stored)

    def _arguments(self, before: list, values: list) -> list:
        """Values of all inputs of the tile function; of those that it does not read, nothing."""
        call = self.call
        found: list = [Value(0, ())] * len(call.plan.inputs)
        for n, value in zip(call.used, values, strict=True):
            found[n] = value
        return [*before, *found]

    def _start(self) -> tuple[jax.Array, ...]:
        call, found = self.call, []
        for i in call.outputs:
            names, sizes, dtype = self._held(i)
            found.append(call.layout.constant(start_of(call.plan, i), names, sizes, dtype))
        return tuple(found)

    def _held(self, i: int) -> tuple[tuple[str, ...], tuple[int, ...], Any]:
        """Names, lengths and type of the axes that an output's sum has."""
        call, block = self.call, self.call.plan.tile.outputs[i]
        axes = call.output_names(i)
        order = call.layout.sort(axes)
        names = tuple(name for n in order if (name := axes[n]) is not None)
        sizes = tuple(call.layout.length(name, block.shape[n]) for n, name in zip(order, names, strict=True))
        return names, sizes, sum_dtype(block.dtype)

    def _plus(self, sums: jax.Array, value: Value, i: int) -> jax.Array:
        call = self.call
        if isinstance(value.data, Product):
            return call.layout.add(sums, value.data)
        return sums + self._hold(value, i)

    def _hold(self, value: Value, i: int) -> jax.Array:
        call = self.call
        names, sizes, dtype = self._held(i)
        if isinstance(value.data, Product):
            value = dataclasses.replace(value, data=call.layout.compute(value.data))
        value = call.evaluator.binary(value) if call.base2 and i == 0 else call.evaluator.natural(value)
        data = value.data if not value.known else jnp.asarray(value.data, dtype)
        return call.layout.spread(data.astype(dtype), call.evaluator.held(value), names, sizes)

    def _added(self, sums: tuple, values: list[Value], shared: dict, full: bool) -> tuple:
        """Sums with a tile's added."""
        call = self.call
        outputs = call.outputs
        if call.plan.start is not None:
            before = [Value(x, call.output_names(i)) for i, x in enumerate(sums)]
            found = call.evaluator(self._arguments(before, values), shared, full)
            return tuple(self._hold(x, i) for i, x in enumerate(found))
        if not call.plan.scaled:
            found = call.evaluator(self._arguments([], values), shared, full)
            return tuple(self._plus(s, v, i) for s, v, i in zip(sums, found, outputs, strict=True))
        old = sums[0]
        names = call.evaluator.held(Value(None, call.output_names(0)))
        scale = Value(old, names, call.base2, finite=True)
        new, *added = call.evaluator(self._arguments([scale], values), shared, full)
        new = self._hold(new, 0)
        found = [new]
        factors = changes(old, new, call.plan.powers, call.base2)
        for x, value, factor, i in zip(sums[1:], added, factors, outputs[1:], strict=True):
            wanted, sizes, _ = self._held(i)
            found.append(self._plus(x * call.layout.spread(factor, names, wanted, sizes), value, i))
        return tuple(found)

    def _finished(self, sums: tuple) -> list[jax.Array]:
        """The scale as it is, and the sums; divided by the mass, if the plan names one, at the log of the mass."""
        call = self.call
        plan = call.plan
        scale, *found = sums
        names = call.evaluator.held(Value(None, call.output_names(0)))
        scale = log_scale(scale, call.base2)
        if plan.mass is None:
            return [scale, *found]
        scale, once = at_mass(scale, found[plan.mass]), 1 / divisor(found[plan.mass])
        for n, power in enumerate(plan.powers):
            wanted, sizes, _ = self._held(call.outputs[n + 1])
            divided = once if power == 1 else once**power
            found[n] = found[n] * call.layout.spread(divided, names, wanted, sizes)
        return [scale, *found]
