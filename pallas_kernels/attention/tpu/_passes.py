"""The orders in which a plan's outputs are added up."""

import dataclasses
from collections.abc import Sequence

from pallas_kernels._target import Target
from pallas_kernels.attention._plan import COLS, ROWS, Plan, running
from pallas_kernels.attention.tpu._budget import budget


@dataclasses.dataclass(frozen=True)
class Pass:
    """One walk over the tiles.

    What is added up at one place must come one after another, or stay on the chip. So outputs that follow queries are
    added up in order of rows, those that follow keys in order of columns, and those that follow both where they stand.

    Attributes:
        order: "row", "col" or "pair".
        outputs: which of the plan's outputs.
        inner: outer dimensions that these outputs do not follow: they are walked through inside the list of tiles.
        resident: outputs kept on the chip as a whole.
        group: tiles, along the dimension that is walked through, that make one step.
    """

    order: str
    outputs: tuple[int, ...]
    inner: tuple[int, ...] = ()
    resident: tuple[int, ...] = ()
    group: int = 1

    def name(self, scaled: bool) -> str:
        """The kernel's, in which ``pallas_kernels._schedule`` reads order and group."""
        return f"fold_{'scaled_' if scaled else ''}{self.order}_by_{self.group}"


GROUPS = (4, 2, 1)
"""Tiles in a step: more of them share the step's cost, and one's products overlap with another's exponentials."""


def passes(plan: Plan, target: Target) -> list[Pass]:
    """The walks that a plan takes."""
    lengths = {"row": plan.grid.cols, "col": plan.grid.rows, "pair": 1}
    found = []
    for walk in _walks(plan, target):
        fits = [n for n in GROUPS if n <= lengths[walk.order] and _fits(plan, walk, n, target)]
        found.append(dataclasses.replace(walk, group=max(fits, default=1)))
    return found


def _fits(plan: Plan, walk: Pass, group: int, target: Target) -> bool:
    taken = budget(plan, walk.order, walk.outputs, walk.inner, walk.resident, group)
    return taken.total <= 0.85 * target.vmem


def _walks(plan: Plan, target: Target) -> list[Pass]:
    if running(plan):
        return [Pass("row", tuple(range(len(plan.outputs))))]
    kinds: dict[str, list[int]] = {"row": [], "col": [], "pair": [], "whole": []}
    for i, spec in enumerate(plan.outputs):
        row, col = ROWS in spec.dims, COLS in spec.dims
        kinds["pair" if row and col else "row" if row else "col" if col else "whole"].append(i)
    found = []
    if kinds["row"] or kinds["whole"]:
        by_row = (*kinds["row"], *kinds["whole"])
        inner = _lacked(plan, kinds["col"])
        resident = tuple(kinds["row"])
        alone = not kinds["whole"] or not inner
        both = Pass("col", (*kinds["col"], *by_row), inner, resident)
        if kinds["col"] and alone and _fits(plan, both, 1, target):
            return [both, *_pairs(plan, kinds["pair"])]
        found.append(Pass("row", by_row))
    if kinds["col"]:
        found.append(Pass("col", tuple(kinds["col"]), _lacked(plan, kinds["col"])))
    return [*found, *_pairs(plan, kinds["pair"])]


def _lacked(plan: Plan, outputs: Sequence[int]) -> tuple[int, ...]:
    """Outer dimensions that none of the outputs follow."""
    if not outputs:
        return ()
    dims = range(len(plan.grid.outer))
    return tuple(d for d in dims if all(d not in plan.outputs[i].dims for i in outputs))


def _pairs(plan: Plan, outputs: Sequence[int]) -> list[Pass]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in outputs:
        groups.setdefault(_lacked(plan, [i]), []).append(i)
    return [Pass("pair", tuple(group), inner) for inner, group in groups.items()]
