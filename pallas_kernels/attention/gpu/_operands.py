"""How the operands of a fold reach a GPU's warpgroups."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels import _compat
from pallas_kernels.attention._flat import Unsupported
from pallas_kernels.attention._made import NAMES, kept
from pallas_kernels.attention._values import FEATURE, Each, Value
from pallas_kernels.attention.gpu._fragments import PARTS, Fragments, Stored, padded


@dataclasses.dataclass(frozen=True)
class At:
    """Where a warpgroup is: along outer dimensions, and first positions along the other two."""

    index: dict[int, Any]
    starts: dict[int, Any]


@dataclasses.dataclass(frozen=True)
class Operand:
    """One operand.

    Attributes:
        arrays: what the kernel is given of it: none for positions, several for a matrix of float32.
        read: its value, given the references to those, a place, and the references to shared memory if it has any.
        steady: whether it is the same for all tiles of a place.
        first: whether its positions, if any, are those of the place.
        width: features of a line in shared memory; 0 for what is not kept there.
        slices: of each array, where the matrix at a place is, given its length and by how much it is shifted.
    """

    arrays: tuple[jax.Array, ...]
    read: Callable[[Any, At, Any], Value]
    steady: bool
    first: bool
    width: int = 0
    slices: Callable | None = None

    @property
    def is_kept(self) -> bool:
        """Whether it is moved to shared memory once."""
        return bool(self.width) and self.first and self.steady

    @property
    def is_moved(self) -> bool:
        """Whether it is moved there for each step."""
        return bool(self.width) and not self.is_kept


@dataclasses.dataclass(frozen=True)
class Operands:
    """Makes operands.

    Attributes:
        layout: of values in registers.
        first: dimension of a place's positions.
        changing: dimensions along which one place's tiles differ.
    """

    layout: Fragments
    first: int
    changing: frozenset[int]

    def operand(self, array: jax.Array, spec: Any, by_feature: bool) -> Operand:
        """An operand, by its array and spec, and whether one feature of it is looked at at a time."""
        dims = spec.dims
        lengths = [n for d, n in zip(dims, array.shape, strict=True) if d is None or d < 0]
        sizes = list(zip(kept(dims), lengths, strict=True))
        there = [d for d, n in sizes if d is not None or n > 1]
        names = tuple(
            (FEATURE if d is None else NAMES[d]) if d is not None or n > 1 else None for d, n in sizes
        )  # fmt: skip
        steady, first = self.changing.isdisjoint(dims), self.first in dims
        if spec.index:
            positions = lambda refs, at, stored: Value(
                self.layout.positions(NAMES[dims[0]], at.starts[dims[0]]), names
            )  # fmt: skip
            return Operand((), positions, steady, first)
        if there == [None] or (by_feature and there.count(None) == 1 and len(there) == 2):
            return self._features(array, dims, names, steady, first)
        if there.count(None) == 1 and len(there) == 2:
            return self._matrix(array, dims, names, steady, first)
        if len(there) > 2 or None in there:
            raise Unsupported(f"an operand with blocks of {len(there)} axes")
        return self._numbers(array, dims, there, names, steady, first)

    def _matrix(self, array: jax.Array, dims: tuple, names: tuple, steady: bool, first: bool) -> Operand:
        """Positions by features, in shared memory."""
        position = next(i for i, d in enumerate(dims) if d is not None and d < 0)
        feature = next(i for i, d in enumerate(dims) if d is None and array.shape[i] > 1)
        single = tuple(i for i, d in enumerate(dims) if d is None and i != feature)
        array, places = array.squeeze(single), [d for i, d in enumerate(dims) if i not in single]
        if position > feature or array.ndim > 5:
            order = [*(n for n, d in enumerate(places) if d is not None and d >= 0), places.index(dims[position])]
            order.append(places.index(None))
            array, places = array.transpose(order), [places[i] for i in order]
        dtype, width = array.dtype, padded(array.shape[-1])
        if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits > 32:
            raise Unsupported(f"a matrix of type {dtype}")
        array = jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, width - array.shape[-1])])
        parts = _split(array) if dtype == jnp.float32 else (array,)
        dim = dims[position]

        def slices(at: At, size: int, shift: Any = 0) -> tuple:
            return tuple(
                slice(None) if d is None else pl.ds(at.starts[d] + shift, size) if d == dim else at.index[d]
                for d in places
            )

        read = lambda refs, at, stored: Value(Stored(tuple(stored), dtype, first), names)
        return Operand(parts, read, steady, first, width, slices)

    def _features(self, array: jax.Array, dims: tuple, names: tuple, steady: bool, first: bool) -> Operand:
        """Features, or positions by features, read one feature at a time."""
        outer = sorted(d for d in dims if d is not None and d >= 0)
        position = [d for d in dims if d is not None and d < 0]
        feature = next(i for i, d in enumerate(dims) if d is None and array.shape[i] > 1)
        size, single = array.shape[feature], tuple(i for i, d in enumerate(dims) if d is None and i != feature)
        front = [*(dims.index(d) for d in outer), feature, *(dims.index(d) for d in position)]
        array = array.transpose(*front, *single)
        array = array.reshape(array.shape[: len(front)])
        left = tuple(None if name == FEATURE else name for name in names)

        def read(refs: Any, at: At, stored: Any) -> Value:
            place = tuple(at.index[d] for d in outer)

            def one(number: Any) -> Value:
                if not position:
                    return Value(refs[0][(*place, number)], left)
                return Value(self._loaded(refs[0], (*place, number), at, position), left)

            return Value(Each(size, one), names)

        return Operand((array,), read, steady, first)

    def _loaded(self, ref: Any, place: tuple, at: At, positions: list) -> jax.Array:
        """Numbers by positions, in registers."""
        place += tuple(pl.ds(at.starts[d], self.layout.length(NAMES[d], 2)) for d in positions)
        return _compat.load(ref.at[place], self.layout.layout(tuple(NAMES[d] for d in positions)))

    def _numbers(self, array: jax.Array, dims: tuple, there: list, names: tuple, steady: bool, first: bool) -> Operand:
        """A number, or numbers by positions: read where they are needed."""
        outer = sorted(d for d in dims if d is not None and d >= 0)
        positions = sorted(there, key=lambda d: d != self.first)
        front = [dims.index(d) for d in (*outer, *positions)]
        array = array.transpose(*front, *(i for i in range(array.ndim) if i not in front))
        shape = array.shape[: len(front)]
        dtype = array.dtype
        held = dtype if dtype != jnp.bool_ else jnp.int8 if len(positions) == 2 else jnp.int32
        array = array.reshape(shape or (1,)).astype(held)

        def read(refs: Any, at: At, stored: Any) -> Value:
            place = tuple(at.index[d] for d in outer)
            data = self._loaded(refs[0], place, at, positions) if positions else refs[0][place or (0,)]
            return Value(data != 0 if dtype == jnp.bool_ else data, names)

        return Operand((array,), read, steady, first)


def _split(x: jax.Array) -> tuple[jax.Array, ...]:
    """A float32 array as bfloat16 ones whose sum it is."""
    parts = []
    for _ in range(PARTS):
        # The barrier keeps XLA from simplifying the two conversions away.
        parts.append(lax.optimization_barrier(x.astype(jnp.bfloat16)))
        x = x - parts[-1].astype(x.dtype)
    return tuple(parts)
