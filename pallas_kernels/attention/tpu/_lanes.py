"""How values lie in a TPU's vector registers: matrices of sublanes by lanes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention._values import COL, FEATURE, REWRITTEN, ROW, Axes

LANES = 128


class Lanes:
    """The positions named ``first`` run along sublanes, the others, and features, along lanes.

    A vector along the first axis is repeated over 128 lanes, so that it meets a matrix without being moved; any other
    vector is one row; a number is a scalar or a matrix of one.
    """

    def __init__(self, first: str):
        self.first = first
        self.rank = {first: 0, COL if first == ROW else ROW: 1, FEATURE: 2}

    def sort(self, axes: Axes) -> tuple[int, ...]:
        there = [i for i, name in enumerate(axes) if name is not None]
        return tuple(sorted(there, key=lambda i: self.rank[axes[i]]))  # type: ignore[index]

    def spread(self, data: Any, held: tuple[str, ...], wanted: tuple[str, ...], sizes: tuple[int, ...]) -> Any:
        if held == wanted or not held:
            return data
        if data.dtype == bool:
            return self.spread(data.astype(jnp.int32), held, wanted, sizes) != 0
        if held[0] != wanted[0]:
            return data  # one row, the same in all sublanes
        return widen(data if held[0] == self.first else column(data), sizes[1])

    def reduce(self, name: str, data: Any, held: tuple[str, ...], over: tuple[int, ...]) -> Any:
        function = {"sum": jnp.sum, "max": jnp.max, "min": jnp.min}[name]
        if len(held) == 1:
            return (
                function(data[:, :1], axis=0, keepdims=True)
                if held[0] == self.first
                else function(data, 1, keepdims=True)
            )
        if over == (0, 1) or over == (1, 0):
            return function(function(data, axis=0, keepdims=True), axis=1, keepdims=True)
        if over == (0,):
            return function(data, axis=0, keepdims=True)
        left = jnp.broadcast_to(function(data, axis=1, keepdims=True), (data.shape[0], LANES))
        return left if held[0] == self.first else row(left)

    def dot(self, x: Any, y: Any, over: tuple[int, int], dtype: Any, precision: Any, final: bool) -> Any:
        dims = (((over[0],), (over[1],)), ((), ()))
        return lax.dot_general(x, y, dims, precision=precision, preferred_element_type=dtype)

    def join(self, x: Any, y: Any) -> Any:
        return x + y

    def transpose(self, data: Any) -> Any:
        return data.T

    def index(self, size: int) -> jax.Array:
        return lax.broadcasted_iota(jnp.int32, (1, size), 1)

    def function(self, name: str) -> Callable | None:
        return REWRITTEN.get(name)

    def vector(self, data: jax.Array, name: str) -> jax.Array:
        """One row of numbers as a vector along an axis."""
        return column(data) if name == self.first else data


def widen(data: jax.Array, size: int) -> jax.Array:
    """A column repeated over 128 lanes, over ``size`` lanes."""
    if size <= LANES:
        return data[:, :size]
    if size % LANES == 0:
        return jnp.tile(data, (1, size // LANES))
    return jnp.broadcast_to(data[:, :1], (data.shape[0], size))


def column(data: jax.Array) -> jax.Array:
    """One row as a column repeated over 128 lanes."""
    return jnp.broadcast_to(data, (LANES, data.shape[1])).T


def row(data: jax.Array) -> jax.Array:
    """A column repeated over 128 lanes as one row."""
    if data.shape[0] % LANES:
        return data.T[:1]
    # Of each square, the diagonal: cheaper than to transpose what is the same in all lanes.
    shape = (LANES, LANES)
    diagonal = lax.broadcasted_iota(jnp.int32, shape, 0) == lax.broadcasted_iota(jnp.int32, shape, 1)
    squares = [data[i : i + LANES] for i in range(0, data.shape[0], LANES)]
    parts = [jnp.sum(jnp.where(diagonal, x, jnp.zeros((), x.dtype)), axis=0, keepdims=True) for x in squares]
    return jnp.concatenate(parts, axis=1)
