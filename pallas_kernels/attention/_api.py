"""A fold as fused kernels."""

import math
from collections.abc import Sequence

import jax

from pallas_kernels._target import Target
from pallas_kernels.attention import gpu, tpu
from pallas_kernels.attention._decode import Changed, packed, split
from pallas_kernels.attention._flat import Unsupported
from pallas_kernels.attention._plan import COLS, ROWS, Plan


def fold(plan: Plan, tiles: jax.Array, arrays: Sequence[jax.Array], target: Target) -> tuple[jax.Array, ...]:
    """Add up a plan's tile function over the visible tiles, in fused kernels.

    ``out_i = sum_j tile(row_i, col_j)`` for an output that follows rows, and so on; see ``attnjax.attention``.

    Args:
        plan: what to add up: a tile function, and how its operands and outputs lie on the grid.
        tiles: the block map, by ``plan.visit``: 0 for an empty tile, 1 for a partial, 2 for a full one.
        arrays: the operands.
        target: what to compile for.

    Returns:
        The plan's outputs.

    Raises:
        Unsupported: the tile function, or the shape of its blocks, is none that the kernels run.
    """
    if plan.grid.row_block == 1:
        try:
            return _changed(packed(plan, tiles, arrays, 64 if target.platform == "gpu" else 8), plan, target)
        except Unsupported:
            if target.platform == "gpu" or (plan.grid.rows > 1 and not target.interpret):
                raise  # no tile of one row is run as it is
    pieces = _pieces(plan, target)
    if pieces > 1:
        return _changed(split(plan, tiles, arrays, pieces), plan, target)
    run = tpu.run if target.platform == "tpu" else gpu.run
    return run(plan, tiles, arrays, target)


def _changed(changed: Changed, plan: Plan, target: Target) -> tuple[jax.Array, ...]:
    """Outputs of a plan by one made of it."""
    made, tiles, arrays, restore = changed
    found = restore(fold(made, tiles, arrays, target))
    return tuple(x.astype(r) for x, r in zip(found, plan.results, strict=True))


def _pieces(plan: Plan, target: Target) -> int:
    """Into how many stretches keys are split, so that all of a GPU's processors have something to do."""
    if target.platform != "gpu" or plan.start is not None or any(COLS in s.dims for s in plan.outputs):
        return 1
    if any(ROWS not in s.dims for s in plan.outputs):
        return 1
    blocks = math.prod(plan.grid.outer) * plan.grid.rows
    most = min(target.processors // blocks, plan.grid.cols // 4)
    return max((n for n in range(1, most + 1) if plan.grid.cols % n == 0), default=1)


def check(plan: Plan, tiles: jax.ShapeDtypeStruct, arrays: Sequence[jax.ShapeDtypeStruct], target: Target) -> None:
    """Raise what ``fold`` would raise, without running it."""
    jax.eval_shape(lambda tiles, *arrays: fold(plan, tiles, arrays, target), tiles, *arrays)
