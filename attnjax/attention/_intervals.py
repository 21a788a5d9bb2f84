"""Interval evaluation of a predicate over tiles.

A mask is a predicate of one query position and one key position. To say what it is on a whole tile, its jaxpr is
evaluated on *intervals*: each scalar becomes the least and the greatest value that it can take over the tile. A
Boolean becomes (surely true, possibly true). Whatever this evaluator does not know becomes the interval of everything,
so its answer may be vaguer than the truth but never wrong.

The ends of the intervals are arrays, one entry per tile, so all tiles are judged in one vectorized evaluation, inside
``jit``, from traced arrays as well.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attnjax import _compat


class Interval(NamedTuple):
    """All values from ``low`` to ``high``; for Booleans False < True, so ``low`` is "surely", ``high`` "possibly"."""

    low: jax.Array
    high: jax.Array


def exactly(value: Any) -> Interval:
    """The interval of one value."""
    return Interval(jnp.asarray(value), jnp.asarray(value))


def anything(dtype: Any) -> Interval:
    """The interval of every value of a dtype."""
    dtype = jnp.dtype(dtype)
    if dtype == jnp.bool_:
        return Interval(jnp.asarray(False), jnp.asarray(True))
    if jnp.issubdtype(dtype, jnp.integer):
        info = jnp.iinfo(dtype)
        return Interval(jnp.asarray(info.min, dtype), jnp.asarray(info.max, dtype))
    return Interval(jnp.asarray(-jnp.inf, dtype), jnp.asarray(jnp.inf, dtype))


def _is_exact(x: Interval) -> bool:
    return x.low is x.high


def _safe(low: jax.Array, high: jax.Array, approximate: Sequence[jax.Array]) -> Interval:
    """An arithmetic result: everything where an integer may have wrapped around, one ulp wider where it is floating."""
    if jnp.issubdtype(low.dtype, jnp.integer):
        everything = anything(low.dtype)
        limit = float(jnp.iinfo(low.dtype).max) / 2
        wrapped = functools.reduce(jnp.logical_or, (jnp.abs(a) >= limit for a in approximate))
        return Interval(jnp.where(wrapped, everything.low, low), jnp.where(wrapped, everything.high, high))
    low, high = jnp.nextafter(low, -jnp.inf), jnp.nextafter(high, jnp.inf)
    bad = jnp.isnan(low) | jnp.isnan(high)
    return Interval(jnp.where(bad, -jnp.inf, low), jnp.where(bad, jnp.inf, high))


def _float(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _add(x: Interval, y: Interval) -> Interval:
    rough = [_float(a) + _float(b) for a, b in zip(x, y, strict=True)]
    return _safe(x.low + y.low, x.high + y.high, rough)


def _multiply(x: Interval, y: Interval) -> Interval:
    corners = [a * b for a in x for b in y]
    rough = [_float(a) * _float(b) for a in x for b in y]
    return _safe(functools.reduce(jnp.minimum, corners), functools.reduce(jnp.maximum, corners), rough)


def _increasing(operation: Callable) -> Callable:
    def rule(*arguments: Interval) -> Interval:
        return Interval(operation(*(a.low for a in arguments)), operation(*(a.high for a in arguments)))

    return rule


def _negate(x: Interval) -> Interval:
    return _safe(-x.high, -x.low, [_float(x.low), _float(x.high)])


def _absolute(x: Interval) -> Interval:
    ends = jnp.abs(x.low), jnp.abs(x.high)
    straddles = (x.low <= 0) & (x.high >= 0)
    low = jnp.where(straddles, jnp.zeros_like(ends[0]), jnp.minimum(*ends))
    return _safe(low, jnp.maximum(*ends), [_float(x.low), _float(x.high)])


def _less(x: Interval, y: Interval) -> Interval:
    return Interval(x.high < y.low, x.low < y.high)


def _less_equal(x: Interval, y: Interval) -> Interval:
    return Interval(x.high <= y.low, x.low <= y.high)


def _equal(x: Interval, y: Interval) -> Interval:
    single = (x.low == x.high) & (y.low == y.high)
    return Interval(single & (x.low == y.low), (x.low <= y.high) & (y.low <= x.high))


def _not(x: Interval) -> Interval:
    if x.low.dtype != jnp.bool_:
        return anything(x.low.dtype)
    return Interval(~x.high, ~x.low)


def _boolean(operation: Callable) -> Callable:
    def rule(x: Interval, y: Interval) -> Interval:
        if x.low.dtype != jnp.bool_:
            return anything(x.low.dtype)
        return Interval(operation(x.low, y.low), operation(x.high, y.high))

    return rule


def _select(which: Interval, *cases: Interval) -> Interval:
    if which.low.dtype != jnp.bool_:  # an integer selector: any case
        lows, highs = zip(*cases, strict=True)
        return Interval(functools.reduce(jnp.minimum, lows), functools.reduce(jnp.maximum, highs))
    no, yes = cases
    surely, surely_not = which.low, ~which.high

    def end(hull: Callable, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(surely, b, jnp.where(surely_not, a, hull(a, b)))

    return Interval(end(jnp.minimum, no.low, yes.low), end(jnp.maximum, no.high, yes.high))


def _floor_divide(x: Interval, y: Interval) -> Interval:
    """For a positive divisor; everything otherwise."""
    everything = anything(x.low.dtype)
    divisor = jnp.maximum(y.low, 1), jnp.maximum(y.high, 1)
    corners = [a // b for a in x for b in divisor]
    low, high = functools.reduce(jnp.minimum, corners), functools.reduce(jnp.maximum, corners)
    positive = y.low > 0
    return Interval(jnp.where(positive, low, everything.low), jnp.where(positive, high, everything.high))


def _remainder(x: Interval, y: Interval) -> Interval:
    """For one positive divisor: exact where the quotient does not change, else from 0 to the divisor less one."""
    everything = anything(x.low.dtype)
    divisor = jnp.maximum(y.high, 1)
    same = (y.low == y.high) & (x.low // divisor == x.high // divisor)
    low = jnp.where(same, x.low % divisor, jnp.zeros_like(divisor))
    high = jnp.where(same, x.high % divisor, divisor - 1)
    positive = y.low > 0
    return Interval(jnp.where(positive, low, everything.low), jnp.where(positive, high, everything.high))


_RULES: dict[str, Callable[..., Interval]] = {
    "add": _add,
    "sub": lambda x, y: _add(x, _negate(y)),
    "mul": _multiply,
    "neg": _negate,
    "abs": _absolute,
    "max": _increasing(jnp.maximum),
    "min": _increasing(jnp.minimum),
    "sign": _increasing(jnp.sign),
    "lt": _less,
    "le": _less_equal,
    "gt": lambda x, y: _less(y, x),
    "ge": lambda x, y: _less_equal(y, x),
    "eq": _equal,
    "ne": lambda x, y: _not(_equal(x, y)),
    "not": _not,
    "and": _boolean(jnp.logical_and),
    "or": _boolean(jnp.logical_or),
    "select_n": _select,
    "floor_divide": _floor_divide,
    "remainder": _remainder,
}
# Every value is one scalar (whatever its shape of ones), so operations that only change shapes change nothing.
_SHAPE_ONLY = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "copy", "stop_gradient"}
_CALLS = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"}


def _apply(equation: Any, arguments: list[Interval]) -> list[Interval]:
    name = equation.primitive.name
    outputs: list[Any] = [v.aval for v in equation.outvars]
    scalar = all(math.prod(v.aval.shape) == 1 for v in (*equation.invars, *equation.outvars))
    if not scalar:
        return [_gathered(equation, arguments, a) for a in outputs]
    if name in _SHAPE_ONLY:
        return arguments[:1]
    if name == "convert_element_type":
        return [_converted(arguments[0], outputs[0].dtype)]
    if name in _CALLS:
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        rule = _RULES.get(equation.params.get("name", ""))
        if rule is not None and jnp.issubdtype(outputs[0].dtype, jnp.integer):
            return [rule(*arguments)]
        return evaluate(inner, arguments)
    if name in ("floor_divide", "remainder") or name not in _RULES:
        return [anything(a.dtype) for a in outputs]
    return [_RULES[name](*arguments)]


def _converted(x: Interval, dtype: Any) -> Interval:
    if x.low.dtype == dtype:
        return x
    widening = x.low.dtype == jnp.bool_ or (
        jnp.issubdtype(x.low.dtype, jnp.integer) and jnp.issubdtype(dtype, jnp.floating)
    )
    if not widening:
        return anything(dtype)
    low, high = x.low.astype(dtype), x.high.astype(dtype)
    if jnp.issubdtype(dtype, jnp.floating) and x.low.dtype != jnp.bool_:
        return Interval(jnp.nextafter(low, -jnp.inf), jnp.nextafter(high, jnp.inf))
    return Interval(low, high)


def _gathered(equation: Any, arguments: list[Interval], aval: Any) -> Interval:
    """A look-up in a whole array: somewhere between its least and its greatest entry."""
    name = equation.primitive.name
    picks = name in ("gather", "dynamic_slice", "slice", "squeeze", "reshape", "broadcast_in_dim", "transpose")
    fills = name == "gather" and "FILL" in str(equation.params.get("mode"))
    if not picks or fills:
        return anything(aval.dtype)
    table = arguments[0]
    return Interval(table.low.min(), table.high.max()) if _is_exact(table) else anything(aval.dtype)


def evaluate(closed: Any, arguments: Sequence[Interval]) -> list[Interval]:
    """Intervals of the outputs of a closed jaxpr, given those of its inputs."""
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.invars, arguments, strict=True))
    known |= {v: exactly(c) for v, c in zip(jaxpr.constvars, closed.consts, strict=True)}

    def look_up(atom: Any) -> Interval:
        if isinstance(atom, _compat.Literal):
            aval: Any = atom.aval
            return exactly(jnp.asarray(atom.val, aval.dtype))
        return known[atom]

    for equation in jaxpr.eqns:
        found = _apply(equation, [look_up(a) for a in equation.invars])
        known |= dict(zip(equation.outvars, found, strict=True))
    return [look_up(v) for v in jaxpr.outvars]
