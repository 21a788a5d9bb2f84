"""How much of a TPU's vector memory a pass takes: a static model."""

import dataclasses
import math
from collections.abc import Sequence

from pallas_kernels._target import MIB, Target
from pallas_kernels.attention._plan import COLS, ROWS, Plan, running

MATRICES = 6
"""Score matrices of a tile that the compiler is taken to hold at once, in float32."""

ENTRIES = 2**20
"""Scores in a tile, at most: above, the compiler takes minutes and keeps most of them outside of registers."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """Bytes of vector memory.

    Attributes:
        windows: blocks of operands and outputs, twice each: one is moved while the other is used.
        sums: what is added up for one place.
        resident: outputs that stay on the chip as a whole, with their windows.
        tile: what the compiler keeps of a tile's matrices.
    """

    windows: int
    sums: int
    resident: int
    tile: int

    @property
    def total(self) -> int:
        return self.windows + self.sums + self.resident + self.tile

    def __str__(self) -> str:
        parts = (f"{name} {getattr(self, name) / MIB:.1f}" for name in ("windows", "sums", "resident", "tile"))
        return f"{self.total / MIB:.1f} MiB ({', '.join(parts)})"

    def limit(self, target: Target) -> int:
        """The bytes that the compiler is allowed: what the model says, and half as much again."""
        return min(target.vmem, max(32 * MIB, int(1.5 * self.total)))


def budget(
    plan: Plan, order: str, outputs: Sequence[int], inner: Sequence[int], resident: Sequence[int], group: int
) -> Budget:
    """What a pass takes.

    Args:
        plan: of the fold.
        order: "row", "col" or "pair".
        outputs: which of the plan's outputs it adds up.
        inner: outer dimensions inside its list of tiles.
        resident: outputs that stay on the chip.
        group: tiles in a step.
    """
    grid = plan.grid
    rows, cols = grid.row_block, grid.col_block
    window = {ROWS: rows * (group if order == "col" else 1), COLS: cols * (group if order == "row" else 1)}
    tile = {ROWS: rows, COLS: cols}
    windows = sums = kept = 0
    for spec, width, size in _inputs(plan):
        windows += 0 if spec.index else 2 * _bytes([window[d] for d in spec.dims if d in window], width, size)
    for i in outputs:
        spec, block, size = plan.outputs[i], plan.tile.outputs[i], plan.results[i].itemsize
        positions = [tile[d] for d in spec.dims if d in tile]
        width = math.prod(block.shape[len(positions) :])
        held = 4 * math.prod(positions) * max(128, width)
        if i in resident:
            points = math.prod(grid.outer[d] for d in inner if d in spec.dims) * grid.rows
            kept += points * (held + 2 * _bytes(positions, width, size))
        else:
            sums += held
            windows += 2 * _bytes(positions, width, size)
    return Budget(windows, sums, kept, MATRICES * 4 * rows * cols)


def _inputs(plan: Plan) -> list[tuple]:
    """Spec, number of features and bytes of a number of each operand; features and sizes are those of its block."""
    blocks = plan.tile.jaxpr.in_avals[running(plan) :]
    found = []
    for spec, block in zip(plan.inputs, blocks, strict=True):
        positions = sum(d in (ROWS, COLS) for d in spec.dims)
        found.append((spec, math.prod(block.shape[positions:]), block.dtype.itemsize))
    return found


def _bytes(positions: Sequence[int], width: int, size: int) -> int:
    """Bytes of a block; a row of numbers fills eight sublanes."""
    if width == 1 and len(positions) < 2:
        return 32 * math.prod(positions)
    return size * math.prod(positions) * (-(-width // 128) * 128 if len(positions) < 2 else 1)
