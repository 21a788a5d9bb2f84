"""Plans made from others, inside the kernels; see ``_plan`` for what each attribute means."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from pallas_kernels.attention._plan import COLS, ROWS
from pallas_kernels.attention._values import COL, FEATURE, ROW

NAMES = {ROWS: ROW, COLS: COL}


@dataclasses.dataclass(frozen=True)
class MadeSpec:
    dims: tuple[int | None, ...]
    index: bool = False


@dataclasses.dataclass(frozen=True)
class MadeGrid:
    outer: tuple[int, ...]
    rows: int
    cols: int
    row_block: int
    col_block: int


@dataclasses.dataclass(frozen=True, eq=False)
class MadeTile:
    jaxpr: Any

    @property
    def outputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        return tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in self.jaxpr.out_avals)


@dataclasses.dataclass(frozen=True, eq=False)
class MadePlan:
    grid: Any
    visit: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    tile: Any
    scaled: bool
    powers: tuple[int | float, ...]
    mass: int | None
    results: tuple[Any, ...]
    start: tuple[float, ...] | None = None


def kept(dims: Sequence[int | None]) -> list[int | None]:
    """The dimensions whose axes a block has."""
    return [d for d in dims if d is None or d < 0]


def spec_names(spec: Any, block: Any) -> tuple[str | None, ...]:
    """Names of the axes of a block; None for those of size one."""
    pairs = zip(kept(spec.dims), block.shape, strict=True)
    return tuple((FEATURE if d is None else NAMES[d]) if n > 1 else None for d, n in pairs)
