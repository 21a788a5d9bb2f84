"""A fold as fused kernels."""

from collections.abc import Sequence

import jax

from pallas_kernels._target import Target
from pallas_kernels.attention import _gpu, _tpu
from pallas_kernels.attention._plan import Plan


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
    run = _tpu.run if target.platform == "tpu" else _gpu.run
    return run(plan, tiles, arrays, target)


def check(plan: Plan, tiles: jax.ShapeDtypeStruct, arrays: Sequence[jax.ShapeDtypeStruct], target: Target) -> None:
    """Raise what ``fold`` would raise, without running it."""
    jax.eval_shape(lambda tiles, *arrays: fold(plan, tiles, arrays, target), tiles, *arrays)
