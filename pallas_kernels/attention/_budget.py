"""How much of a TPU's vector memory a pass takes."""

import math
from collections.abc import Sequence

from pallas_kernels._target import MIB, Target
from pallas_kernels.attention._plan import COLS, ROWS, Plan

MATRICES = 6
"""Score matrices of a tile that the compiler is taken to hold at once, in float32."""


GROUP = 4
"""Tiles in a step, at most: they share the step's cost, and one's products overlap with another's exponentials."""


def windows(plan: Plan) -> int:
    """Bytes of the blocks of every operand and output, twice each (one is moved while the other is used)."""
    grid = plan.grid
    block = {ROWS: grid.row_block * min(GROUP, grid.rows), COLS: grid.col_block * min(GROUP, grid.cols)}
    total = 0
    for spec in (*plan.inputs, *plan.outputs):
        sizes = [block[d] for d in spec.dims if d in block]
        if sizes:
            total += 2 * 4 * math.prod(sizes) * (128 if len(sizes) == 1 else 1)
    return total


def tile(plan: Plan) -> int:
    """Bytes of the matrices that one tile makes."""
    return MATRICES * 4 * plan.grid.row_block * plan.grid.col_block


def resident(plan: Plan, outputs: Sequence[int], inner: Sequence[int]) -> int:
    """Bytes of outputs that stay on the chip as a whole: a float32 sum, and two windows of what is written."""
    grid, total = plan.grid, 0
    for i in outputs:
        spec, block = plan.outputs[i], plan.tile.outputs[i]
        width = max(128, math.prod(block.shape[1:])) if len(block.shape) > 1 else 8
        points = math.prod(grid.outer[d] for d in inner if d in spec.dims)
        total += points * grid.rows * grid.row_block * width * (4 + 2 * plan.results[i].itemsize)
    return total


def fits_resident(plan: Plan, outputs: Sequence[int], inner: Sequence[int], target: Target) -> bool:
    """Whether they can stay."""
    return windows(plan) + tile(plan) + resident(plan, outputs, inner) <= 0.85 * target.vmem


def limit(plan: Plan, outputs: Sequence[int], inner: Sequence[int], target: Target) -> int:
    """The bytes that the compiler is allowed for a pass: what the model says, and half as much again."""
    modeled = windows(plan) + tile(plan) + resident(plan, outputs, inner)
    return min(target.vmem, max(32 * MIB, int(1.5 * modeled)))
