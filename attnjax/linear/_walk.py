"""The walk over chunks: one primitive, closed under differentiation.

A *step* maps a carry and a chunk of arrays to the next carry and a chunk of outputs; ``walk`` takes it over all chunks,
forward or backward. Its tangent is a walk of the step's tangent beside the carries that the step had, and its cotangent
the walk of the step's transpose the other way. So of each chunk only the carry before it is kept for derivatives, and
whatever runs a walk (a loop, or a kernel that holds the carry on the chip) runs them too.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad, batching, mlir

from attnjax import _compat

walk_p = _compat.Primitive("linear_attention_walk")
walk_p.multiple_results = True


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """A step, traced: hashed by identity, so that it can be a parameter of the primitive."""

    jaxpr: Any
    carries: int

    def __call__(self, *arrays: jax.Array) -> list:
        return _compat.eval_jaxpr(self.jaxpr, *arrays)

    @property
    def outputs(self) -> list:
        return [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in self.jaxpr.out_avals]


@dataclasses.dataclass(frozen=True)
class Route:
    """How a walk is walked.

    Attributes:
        step: what is done at each chunk.
        batch: leading axes of every array.
        backward: whether from the last chunk to the first.
        executor: what runs it, and its derivatives; None is a loop.
    """

    step: Step
    batch: int = 0
    backward: bool = False
    executor: "Executor | None" = None

    def derived(self, step: Step, **changes: Any) -> "Route":
        """The walk of a derivative."""
        executor = self.executor and self.executor.derived()
        return dataclasses.replace(self, step=step, executor=executor, **changes)


@runtime_checkable
class Executor(Protocol):
    """Another way to walk than a loop. Executors are hashable."""

    def __call__(self, route: Route, arrays: Sequence[jax.Array]) -> list[jax.Array] | None:
        """The carries and outputs; None leaves the walk to the loop."""
        ...

    def derived(self) -> "Executor":
        """For derivatives."""
        ...


def trace(function: Callable, carries: Sequence[Any], chunks: Sequence[Any]) -> Step:
    """A step of a function ``(*carries, *chunk) -> [*carries, *outputs]``, given their arrays, or what has shapes."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (*carries, *chunks)]
    closed = jax.make_jaxpr(lambda *arrays: list(function(*arrays)))(*shapes)
    if closed.consts:
        raise AssertionError("a step captured an array")
    return Step(closed, len(carries))


def walk(route: Route, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """The carries after the last chunk, and all outputs.

    Args:
        route: see there.
        arrays: the first carries, then arrays of all chunks, ``[*batch, M, ...]``.
    """
    return walk_p.bind(*_compat.match_varying(arrays), route=route)


def loop(*arrays: jax.Array, route: Route) -> list[jax.Array]:
    """A walk as a loop."""
    count = route.step.carries

    def one(*arrays):
        def step(carry, chunk):
            found = route.step(*carry, *chunk)
            return tuple(found[:count]), tuple(found[count:])

        carry, outs = lax.scan(step, arrays[:count], arrays[count:], reverse=route.backward)
        return [*carry, *outs]

    for _ in range(route.batch):
        one = jax.vmap(one)
    return one(*arrays)


def run(*arrays: jax.Array, route: Route) -> list[jax.Array]:
    """A walk by its executor."""
    found = None if route.executor is None else route.executor(route, arrays)
    return loop(*arrays, route=route) if found is None else found


@functools.partial(jax.jit, static_argnames="route")
def _jitted(*arrays, route):
    return run(*arrays, route=route)


walk_p.def_impl(lambda *arrays, route: _jitted(*arrays, route=route))


@walk_p.def_abstract_eval
def _abstract(*avals, route: Route):
    count, lead = route.step.carries, avals[0].shape[: route.batch]
    chunks = avals[count].shape[route.batch]
    shapes = [
        (*lead, *(() if n < count else (chunks,)), *out.shape) for n, out in enumerate(route.step.outputs)
    ]  # fmt: skip
    outs = route.step.outputs
    return [_compat.output_aval(shape, out.dtype, avals) for shape, out in zip(shapes, outs, strict=True)]


mlir.register_lowering(walk_p, _compat.lower_without_varying_check(run))


def _instantiated(tangents: Sequence[Any]) -> list:
    return [ad.instantiate_zeros(t) for t in tangents]


def _of_chunk(route: Route, arrays: Sequence[Any], first: int) -> list[jax.ShapeDtypeStruct]:
    """Shapes of single chunks of arrays, of which the first ones are carries."""
    skip = lambda n: route.batch + (n >= first)
    return [jax.ShapeDtypeStruct(x.shape[skip(n) :], x.dtype) for n, x in enumerate(arrays)]


def _is_zero(tangent: Any) -> bool:
    return type(tangent) is ad.Zero or tangent.dtype == jax.dtypes.float0


def _jvp(primals, tangents, *, route: Route):
    step, count = route.step, route.step.carries
    live = [n for n in range(count, len(primals)) if not _is_zero(tangents[n])]
    shapes = _of_chunk(route, primals, count)

    def saving(*arrays):
        found = step(*arrays)
        return [*found, *arrays[:count]]

    saved = dataclasses.replace(route, step=trace(saving, shapes[:count], shapes[count:]))
    found = walk(saved, primals)
    outs, carries = found[: len(step.outputs)], found[len(step.outputs) :]

    def tangent(*arrays):
        moving, rest = arrays[:count], arrays[count:]
        before, along = rest[: len(primals)], rest[len(primals) :]

        def at(*active):
            full = dict(enumerate(before)) | dict(zip([*range(count), *live], active, strict=True))
            return step(*(full[n] for n in range(len(primals))))

        here = tuple(before[n] for n in (*range(count), *live))
        return jax.jvp(at, here, (*moving, *along))[1]

    along = [tangents[n] for n in live]
    operands = [*_instantiated(tangents[:count]), *carries, *primals[count:], *along]
    shapes = _of_chunk(route, operands, count)
    derived = route.derived(trace(tangent, shapes[:count], shapes[count:]))
    return outs, walk(derived, operands)


def _transpose(cotangents, *arrays, route: Route):
    step, count = route.step, route.step.carries
    linear = [n for n in range(count, len(arrays)) if ad.is_undefined_primal(arrays[n])]
    known = [n for n in range(count, len(arrays)) if n not in linear]
    live = [n for n in range(count, len(cotangents)) if type(cotangents[n]) is not ad.Zero]
    avals = [x.aval if ad.is_undefined_primal(x) else x for x in arrays]
    shapes = _of_chunk(route, avals, count)
    moving = [*range(count), *linear]

    def transposed(*given):
        ends, rest = given[:count], given[count:]
        constants, coming = rest[: len(known)], rest[len(known) :]

        def at(*active):
            full = dict(zip(moving, active, strict=True)) | dict(zip(known, constants, strict=True))
            found = step(*(full[n] for n in range(len(arrays))))
            return [*found[:count], *(found[n] for n in live)]

        return jax.linear_transpose(at, *(shapes[n] for n in moving))([*ends, *coming])

    operands = [*_instantiated(cotangents[:count]), *(arrays[n] for n in known), *(cotangents[n] for n in live)]
    shaped = _of_chunk(route, operands, count)
    derived = route.derived(trace(transposed, shaped[:count], shaped[count:]), backward=not route.backward)
    found = dict(zip(moving, walk(derived, operands), strict=True))
    # A first carry that is known is zero: a tangent that was not given.
    return [found[n] if ad.is_undefined_primal(x) else None for n, x in enumerate(arrays)]


def _batch(arrays, axes, *, route: Route):
    size = next(x.shape[a] for x, a in zip(arrays, axes, strict=True) if a is not None)
    full = [
        jnp.broadcast_to(x, (size, *x.shape)) if a is None else jnp.moveaxis(x, a, 0)
        for x, a in zip(arrays, axes, strict=True)
    ]
    outs = walk(dataclasses.replace(route, batch=route.batch + 1), full)
    return outs, [0] * len(outs)


ad.primitive_jvps[walk_p] = _jvp
ad.primitive_transposes[walk_p] = _transpose
batching.primitive_batchers[walk_p] = _batch
