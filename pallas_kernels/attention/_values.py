"""Values of a tile function on named axes, and what a layout of them has to do."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention._flat import Unsupported

ROW, COL, FEATURE = "row", "col", "feature"
Axes = tuple[str | None, ...]
LOG2E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class Value:
    """One value of a tile function.

    Attributes:
        data: the numbers, in the layout's form for the names in ``axes``; a Python or NumPy scalar where known.
        axes: for each logical axis its name, or None along which all numbers are the same.
        base2: whether ``data`` is the value times log2(e).
        narrow: the same numbers in the 16-bit type that they came in, or None.
        finite: whether none of them is -inf for certain, so that no such test is needed.
    """

    data: Any
    axes: Axes
    base2: bool = False
    narrow: Any = None
    finite: bool = False

    @property
    def known(self) -> bool:
        return isinstance(self.data, (bool, int, float, np.generic))


class Each:
    """Numbers by features, made one feature at a time: blocks of queries by keys by features, of which no kernel holds
    all; features that are read one by one; their numbers themselves.

    The values of a feature, by its number, have no axis of features.
    """

    def __init__(self, size: int, of: Callable[[Any], Value]):
        """
        Args:
            size: features.
            of: from the number of one to its value.
        """
        self.size, self.of = size, of
        self.last: tuple[Any, Any] = (None, None)

    def at(self, feature: Any) -> Value:
        """The value of a feature; made once for one number, though more than one function may ask for it."""
        if self.last[0] is not feature:
            self.last = feature, self.of(feature)
        return self.last[1]


@runtime_checkable
class Layout(Protocol):
    """How values lie in the machine's registers. ``names`` are in the order ``sort`` gives."""

    def sort(self, axes: Axes) -> tuple[int, ...]:
        """Logical positions of the axes that are there, in the order in which they are held."""
        ...

    def spread(self, data: Any, held: tuple[str, ...], wanted: tuple[str, ...], sizes: tuple[int, ...]) -> Any:
        """A value with the axes ``held``, the same along the others of ``wanted``, whose sizes are given."""
        ...

    def reduce(self, name: str, data: Any, held: tuple[str, ...], over: tuple[int, ...]) -> Any:
        """Its sum, greatest or least (``name``) over some of the held axes."""
        ...

    def dot(self, x: Any, y: Any, over: tuple[int, int], dtype: Any, precision: Any, final: bool) -> Any:
        """Product of two matrices over one axis of each; the rest of ``x`` comes first in the result.

        A ``final`` one goes nowhere but to a sum, so it may be left to be computed there.
        """
        ...

    def join(self, x: Any, y: Any) -> Any:
        """The sum of two final products."""
        ...

    def transpose(self, data: Any) -> Any: ...

    def index(self, size: int) -> Any:
        """Positions along an axis of features."""
        ...

    def function(self, name: str) -> Callable | None:
        """What computes a function of numbers; None for jax's own."""
        ...


REWRITTEN: dict[str, Callable] = {"add_any": lambda x, y: x + y, "one_minus_square": lambda x: 1 - x * x}
"""Functions of numbers that not every version of jax, or no kernel, has."""


# --- small functions of values ---


def floating(data: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(data), jnp.floating)


def is_narrow(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits == 16


def array(data: Any, dtype: Any) -> Any:
    """Data as an array; known numbers in the type of the others."""
    if isinstance(data, (bool, np.bool_)):
        return jnp.asarray(data)
    return jnp.asarray(data, dtype if isinstance(data, (int, float, np.generic)) else None)


def pair(numbers: Sequence[int]) -> tuple[int, int]:
    a, b = numbers
    return a, b


def astype(data: Any, dtype: Any) -> Any:
    if data.dtype == jnp.bool_:
        return jnp.where(data, jnp.ones((), dtype), jnp.zeros((), dtype))
    return data != 0 if dtype == jnp.bool_ else data.astype(dtype)


def same_width(x: Value, y: Value) -> tuple[Any, Any]:
    """Operands of a product, in a 16-bit type if either came in one."""
    narrow = [v.data if is_narrow(v.data.dtype) else v.narrow for v in (x, y)]
    dtypes = [n.dtype for n in narrow if n is not None]
    if not dtypes:
        return x.data, y.data
    a, b = (v.data.astype(dtypes[0]) if n is None else n for v, n in zip((x, y), narrow, strict=True))
    return a, b.astype(a.dtype)


def never_equal(x: Value, y: Value) -> bool:
    """Whether one is -inf and the other never."""
    return any(a.finite and b.known and b.data == -math.inf for a, b in ((x, y), (y, x)))


def folded(name: str, values: list[Value]) -> Value | None:
    """The result where a known truth value decides it."""
    first = values[0]
    if name in ("select_n", "not"):
        if not first.known or first.data not in (True, False):
            return None
        return values[1 + int(first.data)] if name == "select_n" else dataclasses.replace(first, data=not first.data)
    for fixed, other in (values, values[::-1]):
        if fixed.known and isinstance(fixed.data, (bool, np.bool_)):
            return other if bool(fixed.data) == (name == "and") else fixed
    return None


def reshape(value: Value, old: tuple, new: tuple) -> Value:
    """Axes of size one, which have no name, come and go."""
    if [n for n in old if n != 1] != [n for n in new if n != 1]:
        raise Unsupported(f"a reshape of a block from {old} to {new}")
    names = iter([name for n, name in zip(old, value.axes, strict=True) if n != 1])
    return dataclasses.replace(value, axes=tuple(None if n == 1 else next(names) for n in new))
