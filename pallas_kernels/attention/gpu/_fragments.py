"""How values lie in the registers of a GPU's warpgroup: fragments of matrices, as its matrix units hold them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import _compat
from pallas_kernels.attention._flat import Unsupported
from pallas_kernels.attention._values import COL, FEATURE, LOG2E, REWRITTEN, ROW, Axes

ROWS_EACH = 64
"""Rows of a matrix that a warpgroup multiplies."""

SWIZZLE = 128
"""Bytes of a line of a matrix in shared memory within which 16-byte pieces change places."""

MATRIX = plgpu.Layout.WGMMA
DOWN, ALONG = MATRIX.reduce(1), MATRIX.reduce(0)
"""Layouts of vectors along a matrix's first and second axis."""

PARTS = 3
"""16-bit numbers whose sum is a float32: products of those are exact, so that float32 products need nothing else."""


_FUNCTIONS = REWRITTEN | {
    "expm1": lambda x: jnp.where(jnp.abs(x) < 0.01, x * (1 + x * (1 / 2 + x / 6)), jnp.exp(x) - 1),
    "log1p": lambda x: jnp.where(jnp.abs(x) < 0.01, x * (1 - x * (1 / 2 - x * (1 / 3 - x / 4))), jnp.log(1 + x)),
    "logistic": lambda x: 1 / (1 + jnp.exp(-x)),
    "sqrt": lambda x: jnp.where(x > 0, x * lax.rsqrt(x), x),
    "cosh": lambda x: (jnp.exp(x) + jnp.exp(-x)) / 2,
    "sinh": lambda x: (jnp.exp(x) - jnp.exp(-x)) / 2,
    "tan": lambda x: jnp.sin(x) / jnp.cos(x),
    "is_finite": lambda x: jnp.abs(x) < jnp.inf,
    "pow": lambda x, y: jnp.exp2(jnp.log(x) * LOG2E * y),
    "floor": lambda x: _floor(x),
    "ceil": lambda x: -_floor(-x),
}
"""Functions of numbers from those that the compiler has."""

_LACKING = {
    "acos", "acosh", "asin", "asinh", "atan", "atanh", "erf_inv", "erfc", "nextafter", "population_count",
}  # fmt: skip


def _floor(x: jax.Array) -> jax.Array:
    """The greatest whole number that is at most ``x``."""
    whole = x.astype(jnp.int32).astype(x.dtype)  # towards zero
    return jnp.where(jnp.abs(x) < 2**23, jnp.where(whole > x, whole - 1, whole), x)


@dataclasses.dataclass(frozen=True)
class Stored:
    """A matrix of positions by features in shared memory.

    Attributes:
        parts: references to 16-bit matrices whose sum it is.
        dtype: its type.
        first: whether its positions are those along the first axis of the tile's matrices.
    """

    parts: tuple[Any, ...]
    dtype: Any
    first: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts[0].shape

    def astype(self, dtype: Any) -> "Stored":
        narrow = jnp.finfo(dtype).bits == 16
        if narrow and self.parts[0].dtype != dtype:
            raise Unsupported(f"a product of {self.parts[0].dtype} with {dtype}")
        return Stored(self.parts[:1] if narrow else self.parts, jnp.dtype(dtype), self.first)

    def __jax_array__(self) -> jax.Array:
        """The numbers in registers."""
        if not self.first:
            raise Unsupported("a function of the features of one position after another")
        parts = [_compat.load(part, MATRIX).astype(self.dtype) for part in self.parts]
        return sum(parts[1:], parts[0])


@dataclasses.dataclass(frozen=True)
class Product:
    """A product that is still to be added to a sum: pairs of operands of the matrix units."""

    pairs: tuple[tuple[Any, Any], ...]
    shape: tuple[int, int]
    dtype: Any


class Fragments:
    """The positions named ``first`` run down the rows of matrices, 64 for each warpgroup, the others along them.

    Vectors lie as the sums of such matrices' rows or columns do. Products take their second operand, and the first if
    it is one, from shared memory.
    """

    def __init__(self, first: str, others: int, stage: Callable[[jax.Array], Any] | None = None):
        """
        Args:
            first: name of the first axis.
            others: positions along the second.
            stage: puts a 16-bit matrix into shared memory, for an interpreter that does not multiply from registers.
        """
        self.first, self.others, self.stage = first, others, stage
        self.rank = {first: 0, COL if first == ROW else ROW: 1, FEATURE: 2}

    def sort(self, axes: Axes) -> tuple[int, ...]:
        there = [i for i, name in enumerate(axes) if name is not None]
        return tuple(sorted(there, key=lambda i: self.rank[axes[i]]))  # type: ignore[index]

    def length(self, name: str, traced: int) -> int:
        """Numbers along an axis in this layout."""
        if traced == 1:
            return 1
        return {0: ROWS_EACH, 1: self.others, 2: padded(traced)}[self.rank[name]]

    def spread(self, data: Any, held: tuple[str, ...], wanted: tuple[str, ...], sizes: tuple[int, ...]) -> Any:
        if held == wanted:
            return data
        if not held:
            return jnp.broadcast_to(data, sizes)
        if len(held) != 1 or len(wanted) != 2:
            raise Unsupported(f"numbers by {held} among those by {wanted}")
        return plgpu.layout_cast(lax.broadcast_in_dim(data, sizes, (wanted.index(held[0]),)), MATRIX)

    def reduce(self, name: str, data: Any, held: tuple[str, ...], over: tuple[int, ...]) -> Any:
        if len(held) != 2 or over != (1,):
            raise Unsupported(f"a {name} over the {'s, '.join(held[i] for i in over)}s of a block")
        return {"sum": jnp.sum, "max": jnp.max, "min": jnp.min}[name](data, axis=1)

    def dot(self, x: Any, y: Any, over: tuple[int, int], dtype: Any, precision: Any, final: bool) -> Any:
        if not isinstance(y, Stored) or y.first or over[0] != 1:
            raise Unsupported("a product of blocks that are computed")
        right: list[Any] = [_compat.transposed(part) if over[1] == 1 else part for part in y.parts]
        left = list(x.parts) if isinstance(x, Stored) else self._split(x, y)
        shape = (ROWS_EACH, int(right[0].shape[1]))
        count = max(len(left), len(right))
        pairs = tuple((a, b) for i, a in enumerate(left) for j, b in enumerate(right) if i + j < count)
        product = Product(pairs, shape, jnp.dtype(dtype))
        return product if final else self.compute(product)

    def _split(self, x: Any, y: Stored) -> list[Any]:
        """A matrix in registers as 16-bit ones, as many as the other operand has."""
        parts, dtype = [], y.parts[0].dtype
        for n in range(len(y.parts)):
            x = x - parts[-1].astype(x.dtype) if n else x
            parts.append(x.astype(dtype))
        return parts

    def _multiply(self, product: Product) -> Callable:
        def run(sums):
            for a, b in product.pairs:
                staged = a if self.stage is None or not isinstance(a, jax.Array) else self.stage(a)
                plgpu.wgmma(sums, staged, b)

        return run

    def compute(self, product: Product) -> jax.Array:
        """A product's numbers."""
        run = self._multiply(product)
        return pl.run_scoped(lambda sums: (run(sums), sums[...])[1], _compat.Accumulator(product.shape, jnp.float32))

    def add(self, sums: jax.Array, product: Product) -> jax.Array:
        """``sums`` and a product's numbers."""
        if self.stage is not None:
            return sums + self.compute(product)
        return pl.run_state(self._multiply(product))(_compat.Accumulator.init(sums))

    def join(self, x: Product, y: Product) -> Product:
        return Product(x.pairs + y.pairs, x.shape, x.dtype)

    def transpose(self, data: Any) -> Any:
        raise Unsupported("a transposed block")

    def index(self, size: int) -> jax.Array:
        return plgpu.broadcasted_iota(jnp.int32, (size,), 0, layout=ALONG)

    def function(self, name: str) -> Callable | None:
        if name in _LACKING:
            raise Unsupported(f"the function {name!r} on a GPU")
        return _FUNCTIONS.get(name)

    def constant(self, value: float, held: tuple[str, ...], sizes: tuple[int, ...], dtype: Any) -> jax.Array:
        """One number everywhere."""
        full = jnp.full(sizes, value, dtype)
        return full if not held else plgpu.layout_cast(full, self.layout(held))

    def layout(self, held: tuple[str, ...]) -> Any:
        """Layout of a vector or matrix with these axes."""
        return MATRIX if len(held) == 2 else DOWN if held[0] == self.first else ALONG

    def positions(self, name: str, start: Any) -> jax.Array:
        """Positions along an axis of a tile that begins at ``start``."""
        size = self.length(name, 2)
        return plgpu.broadcasted_iota(jnp.int32, (size,), 0, layout=self.layout((name,))) + start


def padded(width: int) -> int:
    """Features in shared memory: whole lines."""
    line = SWIZZLE // 2
    return -(-width // line) * line
