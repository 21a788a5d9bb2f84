"""What the TPU compiler's schedule says a kernel costs, without a TPU: python -m benchmarks.tpu_schedule.

The compiler's dump holds every bundle that a core issues, in order, and what each functional unit does in it. So the
bundles of the region that runs once a tile, times the tiles, are cycles; where the matrix units need longer than the
bundles, they are the bound. Not in the model: waiting for memory (the bytes over the bandwidth are printed beside) and
clock throttling. Against published times of another kernel it was right within 20%: good for comparing two kernels
that were compiled the same way, not for promises.
"""

import collections
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
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
    """A stretch of bundles that runs if a condition holds.

    Attributes:
        bundles: how many, without those of the regions inside.
        mxu: cycles that the busiest matrix unit needs for them.
        spills: vector registers stored to and filled from memory in them.
        inside: regions inside, in source order.
    """

    bundles: int
    mxu: float
    spills: int
    inside: tuple["Region", ...] = ()

    @property
    def cycles(self) -> float:
        return max(self.bundles, self.mxu)

    @property
    def multiplies(self) -> bool:
        return self.mxu > 0 or any(r.multiplies for r in self.inside)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A kernel with a grid: one loop over its steps, in which each `pl.when` is a region.

    Attributes:
        overhead: bundles of a step outside of the regions.
        regions: those of the kernel's body, in source order.
    """

    overhead: int
    regions: tuple[Region, ...]

    @property
    def tiles(self) -> list[Region]:
        """The regions with products."""
        return [r for r in self.regions if r.multiplies]

    @property
    def edges(self) -> float:
        """Cycles of what begins and ends the sums at one place."""
        return sum(r.cycles for r in self.regions if not r.multiplies)


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
                loops.append((target, min(i + 5, len(bundles))))
            else:
                skips.append((i + 5, target))
    if not loops:
        raise ValueError(f"{bundle_file.name}: no loop over a grid")
    loop = max(loops, key=lambda span: span[1] - span[0])
    inside = sorted({s for s in skips if loop[0] <= s[0] and s[1] <= loop[1] and s[1] > s[0]})
    body = max(_outermost(inside), key=lambda span: span[1] - span[0])

    def region(span: tuple[int, int]) -> Region:
        children = _outermost([s for s in inside if span[0] <= s[0] and s[1] <= span[1] and s != span])
        own = [i for i in range(*span) if not any(c[0] <= i < c[1] for c in children)]
        per_unit: collections.Counter = collections.Counter()
        for i in own:
            for op in re.findall(r"= (vmatmul[a-z0-9._]*)", bundles[i]):
                unit = re.search(r"mxu\d|mrb|$", op)
                per_unit[unit.group() if unit else ""] += 16 if "bf16" in op else 8
        mxu = max(per_unit.values(), default=0) / ROWS_PER_CYCLE.get(generation, 1)
        return Region(len(own), mxu, sum(use[i][j] for i in own for j in spilled), tuple(map(region, children)))

    whole = region(body)
    return Schedule(loop[1] - loop[0] - (body[1] - body[0]) + whole.bundles, whole.inside)


def _outermost(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those that lie in no other one."""
    found: list[tuple[int, int]] = []
    for span in sorted(spans, key=lambda s: (s[0], -s[1])):
        if not found or span[1] > found[-1][1]:
            found.append(span)
    return found


def read_all(folder: Path, generation: str) -> dict[str, Schedule]:
    """Schedules of the named kernels in a dump, by name."""
    found = {}
    for bundles in sorted(folder.glob("*-final_bundles.txt")):
        if "schedule-analysis" in bundles.name or "<late" in bundles.name or "TLP" in bundles.name:
            continue
        matched = re.match(r"\d+-(.+?)(?:\.\d+)?-(\d+)-final_bundles\.txt$", bundles.name)
        if not matched:
            continue
        uses = list(folder.glob(bundles.name.replace(matched.group(2) + "-final_bundles.txt", "*utilization.txt")))
        uses = [u for u in uses if "final_hlo-static-per-bundle-utilization" in u.name]
        if uses:
            try:
                found[matched.group(1)] = read(bundles, uses[0], generation)
            except ValueError as error:
                print(f"skipped: {error}", file=sys.stderr)
    return found


# --- counting steps -------------------------------------------------------------------------------------------------


def causal_tiles(length: int, block_q: int, block_kv: int) -> np.ndarray:
    """Kinds of the tiles of a causal mask `[rows, cols]`: 0 empty, 1 partial, 2 full."""
    first_q = np.arange(0, length, block_q)[:, None]
    first_k = np.arange(0, length, block_kv)[None, :]
    full = first_q >= first_k + block_kv - 1
    some = first_q + block_q - 1 >= first_k
    return np.where(full, 2, np.where(some, 1, 0))


def cycles_of_ours(schedule: Schedule, tiles: np.ndarray, order: str, group: int) -> float:
    """Cycles for one head of a pass of this library."""
    kinds = tiles if order == "row" else tiles.T
    after = -kinds.shape[1] % group
    grouped = np.pad(kinds, [(0, 0), (0, after)]).reshape(kinds.shape[0], -1, group)
    full = (grouped == 2).all(-1)
    mixed = (grouped > 0).any(-1) & ~full
    straight, loop = schedule.tiles
    partial, alone = loop.inside
    inside = grouped[mixed]
    return (
        (full.sum() + mixed.sum()) * schedule.overhead
        + full.sum() * straight.cycles
        + mixed.sum() * loop.bundles * group
        + (inside == 1).sum() * partial.cycles
        + (inside == 2).sum() * alone.cycles
        + len(kinds) * schedule.edges
    )


def cycles_of_splash(schedule: Schedule, visited: int, rows: int) -> float:
    """Cycles for one head of jax's splash attention: it masks every tile, and visits no empty one."""
    (tile,) = schedule.tiles
    return visited * (schedule.overhead + tile.cycles) + rows * schedule.edges


# --- compiling ------------------------------------------------------------------------------------------------------

OURS = (
    'from benchmarks import tpu_schedule; tpu_schedule.compile_ours("{generation}", {length}, {width}, {exponential!r})'
)
SPLASH = 'from benchmarks import tpu_schedule; tpu_schedule.compile_splash("{generation}", {length}, {width}, {blocks})'
HEADS = 8


def dumped(code: str, generation: str) -> dict[str, Schedule]:
    """Schedules of what a piece of code compiles, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "LIBTPU_INIT_ARGS": flags}, check=True)
        return read_all(Path(folder), generation)


def compile_ours(generation: str, length: int, width: int, exponential: str) -> None:
    """Forward and backward of `attend`, causal, bfloat16, eight heads."""
    from pallas_kernels import _topology

    _topology.prepare()
    import jax
    import jax.numpy as jnp

    import attnjax
    from pallas_kernels import Target, compile_for

    target = Target("tpu", generation, exponential=exponential)
    turn = lambda x: jnp.swapaxes(x, 0, 1)

    def forward(q, k, v):
        found = attnjax.attend(turn(q), turn(k), turn(v), mask=attnjax.masks.causal(), implementation="pallas")
        return turn(found)

    def both(q, k, v, cotangent):
        output, pull = jax.vjp(forward, q, k, v)
        return output, pull(cotangent)

    shape = jax.ShapeDtypeStruct((HEADS, length, width), jnp.bfloat16)
    with compile_for(target):
        _topology.compile_on(_topology.devices(target)[0], both, *[shape] * 4)


def compile_splash(generation: str, length: int, width: int, blocks: tuple[int, int, int]) -> None:
    """Forward and backward of jax's splash attention, the same call."""
    from pallas_kernels import _topology

    _topology.prepare()
    import jax
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

    from pallas_kernels import Target

    q, kv, compute = blocks
    sizes = splash.BlockSizes(
        block_q=q, block_kv=kv, block_kv_compute=compute, block_q_dkv=q, block_kv_dkv=kv, block_kv_dkv_compute=compute,
        block_q_dq=q, block_kv_dq=kv,
    )  # fmt: skip
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((length, length))] * HEADS)
    kernel = splash.make_splash_mha_single_device(mask=mask, block_sizes=sizes)

    def both(q, k, v, cotangent):
        output, pull = jax.vjp(kernel, q, k, v)
        return output, pull(cotangent)

    shape = jax.ShapeDtypeStruct((HEADS, length, width), jnp.bfloat16)
    _topology.compile_on(_topology.devices(Target("tpu", generation))[0], both, *[shape] * 4)


# --- the table ------------------------------------------------------------------------------------------------------

BLOCKS = ((512, 512, 512), (1024, 1024, 512), (512, 1024, 512), (512, 2048, 512))
"""Block sizes of splash attention that are tried; its best is compared."""

CORES = {"v4": 2, "v5p": 2}
"""Cores that run a kernel whose batch and heads are marked parallel. Splash marks them in its forward kernel only."""


@dataclasses.dataclass
class Config:
    """Compare the schedules of this library's attention with those of jax's splash attention.

    Attributes:
        generations: TPU generations.
        lengths: T = S.
        width: Head size.
        exponentials: Types of the exponential.
        out: JSON file to write, or nothing.
    """

    generations: tuple[str, ...] = ("v5e", "v5p", "v6e")
    lengths: tuple[int, ...] = (4096, 16384)
    width: int = 128
    exponentials: tuple[str, ...] = ("float32",)
    out: str = ""


def ours(generation: str, length: int, width: int, exponential: str) -> dict:
    """Cycles of forward and backward, all heads, over the cores."""
    code = OURS.format(generation=generation, length=length, width=width, exponential=exponential)
    found = dumped(code, generation)
    tiles, group = causal_tiles(length, 512, 512), min(4, length // 512)
    cycles = {
        name: cycles_of_ours(s, tiles, "col" if "col" in name else "row", group)
        for name, s in found.items()
        if name.startswith("fold")
    }
    scale = HEADS / CORES.get(generation, 1)
    spills = {name: max(t.spills for t in found[name].tiles) for name in cycles}
    tile = {name: round(found[name].tiles[0].cycles / group) for name in cycles}
    forward = cycles.pop("fold_row_scaled")
    return {
        "forward": scale * forward,
        "backward": scale * sum(cycles.values()),
        "cycles a tile": tile,
        "spills": spills,
    }


def splash(generation: str, length: int, width: int) -> dict:
    """The same of splash attention, at its best block sizes for each pass."""
    best = {"fwd": np.inf, "dq": np.inf, "dkv": np.inf}
    for blocks in BLOCKS:
        found = dumped(SPLASH.format(generation=generation, length=4096, width=width, blocks=blocks), generation)
        for name in best:
            (schedule,) = [s for key, s in found.items() if key.startswith(f"splash_mha_{name}_")]
            visited = int((causal_tiles(length, *blocks[:2]) > 0).sum())
            rows = length // blocks[1 if name == "dkv" else 0]
            cores = CORES.get(generation, 1) if name == "fwd" else 1
            best[name] = min(best[name], HEADS / cores * cycles_of_splash(schedule, visited, rows))
    return {"forward": best["fwd"], "backward": best["dq"] + best["dkv"]}


def main(config: Config) -> list[dict]:
    """Print a line for each comparison."""
    rows = []
    for generation in config.generations:
        for length in config.lengths:
            other = splash(generation, length, config.width)
            for exponential in config.exponentials:
                own = ours(generation, length, config.width, exponential)
                row = {"generation": generation, "length": length, "width": config.width, "exponential": exponential}
                for name in ("forward", "backward"):
                    row |= {f"{name} Mcycles": own[name] / 1e6, f"{name} splash": other[name] / 1e6}
                    row |= {f"{name} ratio": own[name] / other[name]}
                rows.append(row | {"cycles a 512 x 512 tile": own["cycles a tile"], "spills": own["spills"]})
                print(json.dumps(rows[-1]), flush=True)
    if config.out:
        Path(config.out).write_text(json.dumps(rows, indent=1))
    return rows


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
