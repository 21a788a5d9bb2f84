"""What a kernel is told: the plan of a fold, and the orders in which its outputs are added up."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

ROWS, COLS = -2, -1
"""Dimensions of queries and of keys in a spec; outer dimensions count from 0; None is passed whole."""


@runtime_checkable
class Spec(Protocol):
    """For each axis of an array, the grid dimension that it follows."""

    @property
    def dims(self) -> tuple[int | None, ...]: ...

    @property
    def index(self) -> bool:
        """Whether the array's entries are their own positions, so that it need not be read."""
        ...


@runtime_checkable
class Grid(Protocol):
    """Sizes of the outer dimensions; numbers and lengths of the blocks of queries and of keys."""

    @property
    def outer(self) -> tuple[int, ...]: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def row_block(self) -> int: ...
    @property
    def col_block(self) -> int: ...


@runtime_checkable
class Tile(Protocol):
    """A traced tile function."""

    @property
    def jaxpr(self) -> Any: ...
    @property
    def outputs(self) -> tuple[Any, ...]: ...


@runtime_checkable
class Plan(Protocol):
    """A fold over tiles. See ``attnjax.attention``; nothing of it is imported here.

    ``tile`` maps blocks of the inputs to blocks of the outputs, which are added up; of a scaled fold it takes the
    running log scale first and returns a new one, at which its other outputs are, and ``powers`` says how each of them
    changes with it; ``mass`` is the one among them that the result is to be divided by. Of a carried fold (``start`` is
    not None) it takes all outputs as they are so far, at first ``start``, and returns what becomes of them, in the
    order of the keys. ``results`` are the outputs' types.
    """

    @property
    def grid(self) -> Grid: ...
    @property
    def visit(self) -> Spec: ...
    @property
    def inputs(self) -> Sequence[Spec]: ...
    @property
    def outputs(self) -> Sequence[Spec]: ...
    @property
    def tile(self) -> Tile: ...
    @property
    def scaled(self) -> bool: ...
    @property
    def powers(self) -> Sequence[int | float]: ...
    @property
    def mass(self) -> int | None: ...
    @property
    def start(self) -> tuple[float, ...] | None: ...
    @property
    def results(self) -> Sequence[Any]: ...


def running(plan: Plan) -> int:
    """How many outputs the tile function takes, as they are so far, before its operands."""
    return len(plan.outputs) if plan.start is not None else int(plan.scaled)
