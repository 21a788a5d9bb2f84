"""Everything that differs between jax versions, or that jax does not export from one public place."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import mlir

Primitive = core.Primitive
Literal = core.Literal


def is_traced(value: Any) -> bool:
    """Whether a value is known only while a program runs."""
    return isinstance(value, jax.core.Tracer)


def eval_jaxpr(closed: Any, *arguments) -> list:
    """Outputs of a closed jaxpr."""
    return jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *arguments)


def eval_jaxpr_with(closed: Any, rules: dict[str, Callable], *arguments) -> list:
    """Outputs of a closed jaxpr in which the primitives named in ``rules`` are replaced by functions."""
    values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(closed.jaxpr.invars, arguments, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in closed.jaxpr.eqns:
        operands = [read(a) for a in equation.invars]
        rule = rules.get(equation.primitive.name)
        if rule is not None:
            found = [rule(*operands, **equation.params)]
        else:
            params = equation.primitive.get_bind_params(equation.params)
            with equation.ctx.manager:
                found = equation.primitive.bind(*operands, **params)
            found = found if equation.primitive.multiple_results else [found]
        values |= dict(zip(equation.outvars, found, strict=True))
    return [read(v) for v in closed.jaxpr.outvars]


def hoist(closed: Any) -> tuple[Any, list]:
    """The jaxpr with the constants that it captured turned into trailing arguments, and those constants."""
    constants = list(closed.consts)
    if not constants:
        return closed, []

    def with_constants(*arguments):
        own = len(closed.in_avals)
        return jax.core.eval_jaxpr(closed.jaxpr, arguments[own:], *arguments[:own])

    shapes = [jax.ShapeDtypeStruct(jnp.shape(c), jnp.result_type(c)) for c in constants]
    inputs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in closed.in_avals]
    return jax.make_jaxpr(with_constants)(*inputs, *shapes), constants


def without_dead_code(closed: Any) -> Any:
    """The jaxpr without equations that no output needs; its arguments stay."""
    jaxpr = closed.jaxpr
    needed = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not needed.isdisjoint(equation.outvars):
            kept.append(equation)
            needed |= {v for v in equation.invars if not isinstance(v, Literal)}
    return closed.replace(jaxpr=jaxpr.replace(eqns=kept[::-1]))


def tangent_aval(value: Any) -> Any:
    """The abstract value of a tangent of ``value``."""
    return jax.typeof(value).to_tangent_aval()


# --- varying manual axes (shard_map) ----------------------------------------------------------------------------------


def _varying(aval: Any) -> frozenset:
    manual = getattr(aval, "manual_axis_type", None)
    return manual.varying if manual is not None else frozenset()


def match_varying(arrays: Sequence[Any]) -> list[jax.Array]:
    """The arrays, all varying over every manual mesh axis that any of them varies over."""
    axes = frozenset().union(*(_varying(jax.typeof(a)) for a in arrays))
    if not axes:
        return list(arrays)
    matched = []
    for a in arrays:
        missing = tuple(sorted(axes - _varying(jax.typeof(a))))
        matched.append(jax.lax.pcast(a, missing, to="varying") if missing else a)
    return matched


def output_aval(shape: Sequence[int], dtype: Any, like: Sequence[Any]) -> Any:
    """Abstract value of an output that varies over the manual mesh axes of the inputs ``like``."""
    from jax.core import ShapedArray

    model = max(like, key=lambda a: len(_varying(a)))
    if not _varying(model):
        return ShapedArray(tuple(shape), jnp.dtype(dtype))
    spec = jax.sharding.PartitionSpec(*(None for _ in shape))
    return ShapedArray(
        tuple(shape),
        jnp.dtype(dtype),
        sharding=model.sharding.update(spec=spec),
        manual_axis_type=model.manual_axis_type,
    )


def explicit_axes(value: Any) -> tuple:
    """For each axis of an array the mesh axes of type Explicit that it is split over; none of a tracer without them."""
    place = getattr(jax.typeof(value), "sharding", None)
    spec = getattr(place, "spec", None) or ()
    return (*spec, *(None,) * (jnp.ndim(value) - len(spec)))


def lowering_knows_devices(primitive: Any) -> None:
    """Have ``jit`` settle the devices of a program with this primitive before it is lowered."""
    from jax._src import dispatch

    dispatch.prim_requires_devices_during_lowering.add(primitive)


def _without_varying(aval: Any) -> Any:
    return jax.core.ShapedArray(aval.shape, aval.dtype)


def lower_without_varying_check(function: Callable, across: Callable | None = None) -> Callable:
    """A lowering rule for a primitive whose implementation is ``function``, inside or outside ``shard_map``.

    Inside ``shard_map`` the loops of the implementation start from constants, which do not vary over the mesh while
    their bodies do; the primitive has already settled what varies, so the check is off while it is lowered.

    Args:
        function: the implementation.
        across: the implementation in programs of several devices, over which ``jit`` may split the arrays.
    """
    from jax._src import config

    rule = mlir.lower_fun(function, multiple_results=True)
    automatic = rule if across is None else mlir.lower_fun(across, multiple_results=True)

    def lower(ctx, *operands, **params):
        if not any(_varying(a) for a in ctx.avals_in):
            devices = getattr(ctx.module_context.axis_context, "num_devices", 1)  # a program under jit has it
            return (automatic if devices > 1 else rule)(ctx, *operands, **params)
        check = getattr(config, "_check_vma", None)
        ctx = ctx.replace(
            avals_in=[_without_varying(a) for a in ctx.avals_in],
            avals_out=[_without_varying(a) for a in ctx.avals_out],
        )
        with check(False) if check is not None else contextlib.nullcontext():
            return rule(ctx, *operands, **params)

    return lower
