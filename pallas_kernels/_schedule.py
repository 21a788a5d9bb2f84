"""Reading the schedule that the TPU's compiler has made for a kernel, without a TPU.

The compiler's dump holds every bundle that a core issues, in order, and what each functional unit does in it. So the
bundles of the region that runs once a tile, times the tiles, are cycles; where the matrix units need longer than the
bundles, they are the bound. Not in the model: waiting for memory and clock throttling. Against published times of
another kernel it was right within 20%: good for comparing kernels that were compiled the same way, not for promises.

To have the dump written, start the process with ``LIBTPU_INIT_ARGS`` as ``dump_flags`` says.
"""

import collections
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

CLOCK = {"v4": 1.05, "v5e": 1.5, "v5p": 1.75, "v6e": 1.75}
"""GHz; those at which the peak rates of the matrix units are the published ones."""

ROWS_PER_CYCLE = {"v4": 1, "v5e": 1, "v5p": 1, "v6e": 2}
"""Rows that one matrix unit takes in a cycle."""

BANDWIDTH = {"v4": 1228, "v5e": 819, "v5p": 2765, "v6e": 1640}
"""GB/s of device memory."""

BUNDLE = re.compile(r"^\s*(0x[0-9a-f]+|\d+)\s+(LH|LB|LE|PB|PF|CT)?\s*:((?:\s*>)*)\s*\{(.*)$")
START = re.compile(r"Start(?:/End empty)? region (\d+)")
BRANCH = re.compile(r"sbr\.rel \(!?%p\w+\) target = \$region(\d+)")


@dataclasses.dataclass(frozen=True)
class Region:
    """A stretch of bundles that runs if a condition holds, or again and again.

    Attributes:
        bundles: how many, without those of the regions inside.
        mxu: cycles that the busiest matrix unit needs for them.
        spills: vector registers stored to and filled from memory in them.
        inside: regions inside, in source order.
        repeats: whether it is the body of a loop.
    """

    bundles: int
    mxu: float
    spills: int
    inside: tuple["Region", ...] = ()
    repeats: bool = False

    @property
    def cycles(self) -> float:
        return max(float(self.bundles), self.mxu)

    @property
    def multiplies(self) -> bool:
        return self.mxu > 0 or any(r.multiplies for r in self.inside)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A kernel with a grid: one loop over its steps, in which each `pl.when` is a region.

    Attributes:
        overhead: bundles of a step outside of the regions.
        regions: those of the kernel's body, in source order.
        step: what every step does, outside of the regions.
    """

    overhead: int
    regions: tuple[Region, ...]
    step: Region = Region(0, 0.0, 0)

    @property
    def tiles(self) -> list[Region]:
        """The regions with products."""
        return [r for r in self.regions if r.multiplies]

    @property
    def edges(self) -> tuple[float, float]:
        """Cycles of what begins and ends the sums at one place, and of what is done once for the whole list.

        Sums that stay on the chip are cleared before all others, and written after them.
        """
        sums = [r.cycles for r in self.regions if not r.multiplies]
        return (sum(sums[1:-1]), sums[0] + sums[-1]) if len(sums) == 4 else (sum(sums), 0.0)


def read(bundle_file: Path, use_file: Path, generation: str) -> Schedule:
    """The schedule of one kernel.

    Args:
        bundle_file: The compiler's `...-final_bundles.txt`.
        use_file: Its `...-final_hlo-static-per-bundle-utilization.txt`.
        generation: Of the chip.

    Returns:
        The schedule.

    Raises:
        ValueError: The files do not look as this reader expects: it does not guess.
    """
    bundles: list[str] = []
    for line in bundle_file.read_text(errors="replace").splitlines():
        if found := BUNDLE.match(line):
            bundles.append(found.group(4))
        elif bundles and not line.startswith("="):
            bundles[-1] += " " + line.strip()  # the attributes of a copy continue a bundle
    lines = use_file.read_text().split("\n")
    columns = [c.strip() for c in lines[1].split(",")]
    use = [[int(x) for x in line.split()] for line in lines[4:] if line.strip()]
    if len(use) != len(bundles):
        raise ValueError(f"{bundle_file.name}: {len(bundles)} bundles, but utilization of {len(use)}")
    spilled = [i for i, c in enumerate(columns) if "FILL" in c or "SPILL" in c]
    start = {int(r): i for i, text in enumerate(bundles) for r in START.findall(text)}
    loops, skips = [], []
    for i, text in enumerate(bundles):
        for label in BRANCH.findall(text):
            target = start.get(int(label))
            if target is None:
                continue
            if target <= i:
                loops.append((target, i + 1))
            else:
                skips.append((i + 5, target))
    if not loops:
        raise ValueError(f"{bundle_file.name}: no loop over a grid")
    loop = max(loops, key=lambda span: span[1] - span[0])
    loop = loop[0], min(loop[1] + 4, len(bundles))  # four bundles after a branch always run
    skipped = {s for s in skips if loop[0] <= s[0] and s[1] <= loop[1] and s[1] > s[0]}
    body = max(_outermost(list(skipped)), key=lambda span: span[1] - span[0])
    repeated = {s for s in loops if body[0] <= s[0] and s[1] <= body[1]}
    inside = sorted(skipped | repeated)

    def region(span: tuple[int, int]) -> Region:
        children = _outermost([s for s in inside if span[0] <= s[0] and s[1] <= span[1] and s != span])
        own = [i for i in range(*span) if not any(c[0] <= i < c[1] for c in children)]
        per_unit: collections.Counter = collections.Counter()
        for i in own:
            for op in re.findall(r"= (vmatmul[a-z0-9._]*)", bundles[i]):
                unit = re.search(r"mxu\d|mrb|$", op)
                per_unit[unit.group() if unit else ""] += 16 if "bf16" in op else 8
        mxu = max(per_unit.values(), default=0) / ROWS_PER_CYCLE.get(generation, 1)
        spills = sum(use[i][j] for i in own for j in spilled)
        return Region(len(own), mxu, spills, tuple(map(region, children)), span in repeated)

    whole = region(body)
    return Schedule(loop[1] - loop[0] - (body[1] - body[0]) + whole.bundles, whole.inside, whole)


def _outermost(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those that lie in no other one; a loop may reach a few bundles beyond the region around it."""
    found: list[tuple[int, int]] = []
    for span in sorted(spans, key=lambda s: (s[0], -s[1])):
        if not found or span[0] >= found[-1][1]:
            found.append(span)
    return found


def read_all(folder: Path, generation: str, prefix: str) -> dict[str, Schedule]:
    """Schedules of the kernels in a dump whose names begin so, by name."""
    found = {}
    for bundles in sorted(folder.glob("*-final_bundles.txt")):
        if "schedule-analysis" in bundles.name or "<late" in bundles.name or "TLP" in bundles.name:
            continue
        matched = re.match(r"\d+-(.+?)(?:\.\d+)?-(\d+)-final_bundles\.txt$", bundles.name)
        if not matched or not matched.group(1).startswith(prefix):
            continue
        uses = list(folder.glob(bundles.name.replace(matched.group(2) + "-final_bundles.txt", "*utilization.txt")))
        uses = [u for u in uses if "final_hlo-static-per-bundle-utilization" in u.name]
        if uses:
            try:
                found[matched.group(1)] = read(bundles, uses[0], generation)
            except ValueError as error:
                print(f"skipped: {error}", file=sys.stderr)
    return found


def dump_flags(folder: str) -> str:
    """What ``LIBTPU_INIT_ARGS`` must be, before libtpu is loaded, for its schedules to be written to a folder."""
    return f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"


def cycles(name: str, schedule: Schedule, tiles: np.ndarray) -> float:
    """Cycles of a pass of ``pallas_kernels.attention`` over one point of its grid.

    Args:
        name: Of the kernel: "fold_", "scaled_" of a scaled fold, the order, "_by_", the tiles in a step.
        schedule: Of the pass.
        tiles: Kinds of tiles `[rows, cols]`: 0 empty, 1 partial, 2 full.
    """
    found = re.fullmatch(r"fold_(?:scaled_)?(\w+)_by_(\d+)", name)
    if not found:
        raise ValueError(f"{name!r} is no kernel of a pass")
    order, group = found[1], int(found[2])
    kinds = tiles if order == "row" else tiles.T
    after = -kinds.shape[1] % group
    groups = np.pad(kinds, [(0, 0), (0, after)]).reshape(-1, group)
    visited = groups[(groups > 0).any(1)]
    each, once = schedule.edges
    return len(visited) * schedule.overhead + _spans(schedule.tiles, visited) + len(kinds) * each + once


def _spans(regions: Sequence[Region], kinds: np.ndarray) -> float:
    """Cycles of runs of tiles `[runs, tiles]`: the first region takes full runs, the other mixed ones, by halves."""
    full, mixed = regions
    whole = (kinds == 2).all(1)
    rest = kinds[(kinds > 0).any(1) & ~whole]
    spent = whole.sum() * full.cycles
    if not len(rest) or kinds.shape[1] == 1:
        return spent + len(rest) * mixed.cycles
    loop = mixed  # if there is nothing beside it in its region
    if not mixed.repeats:
        spent += len(rest) * mixed.cycles
        (loop,) = [r for r in mixed.inside if r.repeats]
    return spent + 2 * len(rest) * loop.cycles + _spans(loop.inside, rest.reshape(2 * len(rest), -1))
