"""Equations between queries, keys and features at once, said as sums over features.

Products of blocks of three axes become multiplications and sums; so do tables that are looked up at every score, or
added to: an entry of a table is a feature, and the one that is meant is found by its number.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

TABLE = 1024
"""Entries of a table that is looked up at every entry of a block, at most: it costs a pass over the block for each."""


def simpler(equation: Any) -> Callable | None:
    """A function of the equation's operands that does the same by sums over features; None for other equations."""
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        atoms = (*equation.invars, *equation.outvars)
        three = any(sum(n > 1 for n in a.aval.shape) > 2 for a in atoms)
        dtype = equation.outvars[0].aval.dtype
        return (lambda x, y: _product(x, y, params["dimension_numbers"], dtype)) if three else None
    if name == "gather" and _is_table(equation) and tuple(params["slice_sizes"]) == (1,):
        inside = _stays_inside(params) and not params["dimension_numbers"].offset_dims
        return _looked_up if inside else None
    if name == "scatter-add" and _is_table(equation):
        return None if params["dimension_numbers"].update_window_dims else _added
    return None


def _is_table(equation: Any) -> bool:
    table, places = (a.aval for a in equation.invars[:2])
    return table.ndim == 1 and 0 < table.shape[0] <= TABLE and places.ndim > 0 and places.shape[-1] == 1


def _stays_inside(params: dict) -> bool:
    return "PROMISE" in str(params["mode"]) or "CLIP" in str(params["mode"])


def _product(x: jax.Array, y: jax.Array, numbers: Any, dtype: Any) -> jax.Array:
    """A product as a sum of products of numbers; its axes are those that are paired, then the others of each."""
    (over_x, over_y), (batch_x, batch_y) = numbers
    free_x = [i for i in range(x.ndim) if i not in (*over_x, *batch_x)]
    free_y = [i for i in range(y.ndim) if i not in (*over_y, *batch_y)]
    wide = jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype
    first, last = len(batch_x) + len(free_x), len(batch_x) + len(free_x) + len(free_y)
    x = x.astype(wide).transpose(*batch_x, *free_x, *over_x)
    y = y.astype(wide).transpose(*batch_y, *free_y, *over_y)
    x = jnp.expand_dims(x, tuple(range(first, last)))
    y = jnp.expand_dims(y, tuple(range(len(batch_x), first)))
    return jnp.sum(x * y, tuple(range(last, last + len(over_x)))).astype(dtype)


def _looked_up(table: jax.Array, places: jax.Array) -> jax.Array:
    """``table[places]``; places beyond it are those of its ends."""
    numbers = table.astype(jnp.int32) if table.dtype == jnp.bool_ else table
    numbers = numbers.reshape(*(1,) * (places.ndim - 1), table.size)
    here = _here(jnp.clip(places, 0, table.size - 1), table.size)
    return jnp.sum(jnp.where(here, numbers, jnp.zeros((), numbers.dtype)), -1).astype(table.dtype)


def _added(table: jax.Array, places: jax.Array, numbers: jax.Array) -> jax.Array:
    """The table with numbers added at places; those beyond it are left out."""
    chosen = jnp.where(_here(places, table.size), numbers[..., None], jnp.zeros((), numbers.dtype))
    return table + jnp.sum(chosen, tuple(range(numbers.ndim)))


def _here(places: jax.Array, size: int) -> jax.Array:
    return places == jnp.arange(size, dtype=places.dtype).reshape(*(1,) * (places.ndim - 1), size)
