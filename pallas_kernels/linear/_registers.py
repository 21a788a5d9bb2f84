"""The core of a step in the registers of a GPU's warpgroup."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend import core

from pallas_kernels import _compat
from pallas_kernels.attention.gpu._fragments import DOWN, MATRIX, ROWS_EACH
from pallas_kernels.linear._core import ELEMENTWISE
from pallas_kernels.linear._plan import Unsupported


@dataclasses.dataclass
class Value:
    """A value of the core: fragments of 64 rows in registers, operands in shared memory, or a product to be computed.

    Attributes:
        shape: of the matrix, cut and filled up.
        rows: for each 64 rows a matrix ``[64, n]``, or a vector ``[64]`` of what is the same along them; or one number.
        stored: 16-bit matrices in shared memory whose sum it is.
        product: two values and the axes over which they are multiplied.
        dtype: its type.
    """

    shape: tuple[int, ...]
    dtype: Any
    rows: Any = None
    stored: tuple | None = None
    product: tuple | None = None


class Evaluator:
    """Equations of a core on fragments."""

    def __init__(self, call: Any, stage: list):
        self.call, self.stage = call, stage

    def run(self, values: dict) -> None:
        for e in self.call.core.equations:
            operands = [self._literal(a) if isinstance(a, core.Literal) else values[a] for a in e.invars]
            values[e.outvars[0]] = self._apply(e, operands)

    def _literal(self, a: Any) -> Value:
        return Value((), jnp.dtype(a.aval.dtype), rows=jnp.asarray(a.val, a.aval.dtype))

    def _apply(self, e: Any, operands: list[Value]) -> Value:
        name, v = e.primitive.name, e.outvars[0]
        shape, dtype = self.call.shape(v), jnp.dtype(v.aval.dtype)
        if name == "dot_general":
            ((left,), (right,)), batch = e.params["dimension_numbers"]
            if batch != ((), ()):
                raise Unsupported("a product of many matrices in the core of a step")
            x, y = (self._stored(o, e, side) for side, o in enumerate(operands))
            return Value(shape, dtype, product=(x, left, y, right))
        if name == "transpose":
            (x,) = operands
            if x.product is None:
                raise Unsupported("a transposed matrix that is no product")
            a, i, b, j = x.product
            return Value(shape, dtype, product=(b, j, a, i))
        if name == "broadcast_in_dim":
            (x,) = operands
            rows = self.rows(x, x.shape) if x.rows is None else x.rows
            return Value(shape, dtype, rows=rows)
        if name == "convert_element_type":
            (x,) = operands
            rows = self.rows(x, x.shape)
            convert = lambda row: row.astype(dtype)
            return Value(shape, dtype, rows=[convert(r) for r in rows] if isinstance(rows, list) else convert(rows))
        if name not in ELEMENTWISE:
            raise Unsupported(f"{name!r} in the core of a step")
        params = e.primitive.get_bind_params(e.params)
        found = [self.rows(x, shape) for x in operands]
        if not any(isinstance(x, list) for x in found):
            return Value(shape, dtype, rows=e.primitive.bind(*found, **params))
        count = max(len(x) for x in found if isinstance(x, list))
        rows = []
        for n in range(count):
            each = [x[n] if isinstance(x, list) else x for x in found]
            matrix = any(getattr(x, "ndim", 0) == 2 for x in each)
            rows.append(e.primitive.bind(*(self._spread(x, shape, matrix) for x in each), **params))
        return Value(shape, dtype, rows=rows)

    def _spread(self, x: Any, shape: tuple[int, ...], matrix: bool) -> Any:
        """A number, or one for each row, along the rows of a matrix."""
        if not matrix or x.ndim == 2:
            return x if matrix or x.ndim == 1 else plgpu.layout_cast(jnp.full((ROWS_EACH,), x, x.dtype), DOWN)
        sizes = (ROWS_EACH, shape[1])
        if x.ndim == 0:
            return plgpu.layout_cast(jnp.full(sizes, x, x.dtype), MATRIX)
        return plgpu.layout_cast(lax.broadcast_in_dim(x, sizes, (0,)), MATRIX)

    def rows(self, x: Value, shape: tuple[int, ...]) -> Any:
        """In registers."""
        if x.rows is None and x.product is not None:
            x.rows = self._product(x)
        if x.rows is None:
            assert x.stored is not None
            found = []
            for n in range(x.shape[0] // ROWS_EACH):
                parts = [_compat.load(s.at[pl.ds(n * ROWS_EACH, ROWS_EACH)], MATRIX).astype(x.dtype) for s in x.stored]
                found.append(functools.reduce(jnp.add, parts))
            x.rows = found
        return x.rows

    def _product(self, x: Value) -> list:
        assert x.product is not None
        a, i, b, j = x.product
        right = [s if j == 0 else _compat.transposed(s) for s in b]
        found = []
        for n in range(x.shape[0] // ROWS_EACH):
            at = pl.ds(n * ROWS_EACH, ROWS_EACH)
            left = [s.at[at] if i == 1 else _compat.transposed(s.at[:, at]) for s in a]
            count = max(len(left), len(right))
            pairs = [(l, r) for p, l in enumerate(left) for q, r in enumerate(right) if p + q < count]

            def multiply(sums, pairs=pairs):
                for l, r in pairs:
                    plgpu.wgmma(sums, l, r)
                return sums[...]

            found.append(pl.run_scoped(multiply, _compat.Accumulator((ROWS_EACH, x.shape[1]), jnp.float32)))
        return found

    def _stored(self, x: Value, e: Any, side: int) -> tuple:
        """An operand of a product in shared memory, in as many parts as the product needs."""
        count = self.call.parts_of(e)
        if x.stored is not None:
            return x.stored[:count]
        dtype = self.call.narrow(e)
        refs = self.stage[self.call.slots.index((x.shape, dtype, side))][:count]
        plgpu.commit_smem()  # products that read what was here are done
        for n, row in enumerate(self.rows(x, x.shape)):
            rest = row
            for p, ref in enumerate(refs):
                part = rest.astype(dtype)
                ref[pl.ds(n * ROWS_EACH, ROWS_EACH), :] = part
                rest = rest - part.astype(rest.dtype) if p + 1 < len(refs) else rest
        plgpu.commit_smem()
        return tuple(refs)
