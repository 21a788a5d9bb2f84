"""What the TPU compiler's schedule says a kernel costs, without a TPU: python -m benchmarks.tpu_schedule.

See ``pallas_kernels._schedule`` for what the model holds, and what not.
"""

import dataclasses
import functools
import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from pallas_kernels._schedule import CLOCK, Schedule, cycles, dump_flags, read_all

# --- counting steps -------------------------------------------------------------------------------------------------


def causal_tiles(length: int, block_q: int, block_kv: int) -> np.ndarray:
    """Kinds of the tiles of a causal mask `[rows, cols]`: 0 empty, 1 partial, 2 full."""
    first_q = np.arange(0, length, block_q)[:, None]
    first_k = np.arange(0, length, block_kv)[None, :]
    full = first_q >= first_k + block_kv - 1
    some = first_q + block_q - 1 >= first_k
    return np.where(full, 2, np.where(some, 1, 0))


def cycles_of_splash(schedule: Schedule, visited: int, rows: int) -> float:
    """Cycles for one head of jax's splash attention: it masks every tile, and visits no empty one."""
    (tile,) = schedule.tiles
    return visited * (schedule.overhead + tile.cycles) + rows * schedule.edges[0]


# --- compiling ------------------------------------------------------------------------------------------------------

OURS = (
    "from benchmarks import tpu_schedule; "
    'tpu_schedule.compile_ours("{generation}", {length}, {width}, {exponential!r}, {block_q})'
)
SPLASH = 'from benchmarks import tpu_schedule; tpu_schedule.compile_splash("{generation}", {length}, {width}, {blocks})'
HEADS = 8


def dumped(code: str, generation: str, prefix: str) -> dict[str, Schedule]:
    """Schedules of the kernels named so that a piece of code compiles, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "LIBTPU_INIT_ARGS": dump_flags(folder)}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        return read_all(Path(folder), generation, prefix)


def compile_ours(generation: str, length: int, width: int, exponential: str, block_q: int) -> None:
    """Forward and backward of `attend`, causal, bfloat16, eight heads, in tiles of so many queries and 512 keys."""
    from pallas_kernels import _topology

    _topology.prepare()
    import jax
    import jax.numpy as jnp

    import attnjax
    from pallas_kernels import Target, compile_for

    target = Target("tpu", generation, exponential=exponential)
    turn = lambda x: jnp.swapaxes(x, 0, 1)

    def forward(q, k, v):
        sizes = attnjax.BlockSizes(block_q, 512)
        knobs = {"mask": attnjax.masks.causal(), "implementation": "pallas", "block_sizes": sizes}
        return turn(attnjax.attend(turn(q), turn(k), turn(v), **knobs))

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
        queries: Of a tile of this library.
        tiles: Compare with nothing: print what a tile costs, for all ``widths``.
        widths: Head sizes of that table.
        out: JSON file to write, or nothing.
    """

    generations: tuple[str, ...] = ("v5e", "v5p", "v6e")
    lengths: tuple[int, ...] = (4096, 16384)
    width: int = 128
    exponentials: tuple[str, ...] = ("float32",)
    queries: tuple[int, ...] = (512, 1024)
    tiles: bool = False
    widths: tuple[int, ...] = (64, 128, 256)
    out: str = ""


def ours(generation: str, length: int, width: int, exponential: str, block_q: int) -> dict:
    """Cycles of forward and backward, all heads, over the cores."""
    code = OURS.format(generation=generation, length=length, width=width, exponential=exponential, block_q=block_q)
    passes = dumped(code, generation, "fold")
    tiles = causal_tiles(length, block_q, 512)
    spent = {name: cycles(name, schedule, tiles) for name, schedule in passes.items()}
    scale = HEADS / CORES.get(generation, 1)
    straight = {name: schedule.tiles[0] for name, schedule in passes.items()}
    group = {name: int(name.rpartition("_")[2]) for name in passes}
    spills = {name: round(straight[name].spills / group[name]) for name in passes}
    tile = {name: round(straight[name].cycles / group[name]) for name in passes}
    forward = sum(spent.pop(name) for name in list(spent) if "scaled" in name)
    return {
        "forward": scale * forward,
        "backward": scale * sum(spent.values()),
        "cycles a tile": tile,
        "spills a tile": spills,
    }


@functools.cache
def _splash_schedules(generation: str, width: int, blocks: tuple[int, int, int]) -> dict[str, Schedule]:
    """At T = 4096: the regions of longer ones are the same, only their counts differ."""
    code = SPLASH.format(generation=generation, length=4096, width=width, blocks=blocks)
    return dumped(code, generation, "splash")


def splash(generation: str, length: int, width: int) -> dict:
    """The same of splash attention, at its best block sizes for each pass."""
    best = {"fwd": np.inf, "dq": np.inf, "dkv": np.inf}
    for blocks in BLOCKS:
        found = _splash_schedules(generation, width, blocks)
        for name in best:
            (schedule,) = [s for key, s in found.items() if key.startswith(f"splash_mha_{name}_")]
            visited = int((causal_tiles(length, *blocks[:2]) > 0).sum())
            rows = length // blocks[1 if name == "dkv" else 0]
            cores = CORES.get(generation, 1) if name == "fwd" else 1
            best[name] = min(best[name], HEADS / cores * cycles_of_splash(schedule, visited, rows))
    return {"forward": best["fwd"], "backward": best["dq"] + best["dkv"]}


def traffic(name: str, alone: bool, tiles: np.ndarray, width: int) -> float:
    """Bytes that a pass of one bfloat16 head moves: two matrices of the other side in each step, its own once a place.

    Args:
        name: the kernel's.
        alone: whether no pass by rows stands beside one by columns, so that it holds the gradient of the queries too.
        tiles: kinds of 512 x 512 tiles ``[rows, cols]``.
        width: head size.
    """
    order, _, group = name.removeprefix("fold_").removeprefix("scaled_").partition("_by_")
    some = tiles > 0 if order == "row" else tiles.T > 0
    size = int(group)
    padded = np.pad(some, [(0, 0), (0, -some.shape[1] % size)])
    steps = padded.reshape(len(some), -1, size).any(-1).sum()
    own = 2 if "scaled" in name else 3 if order == "row" else 4
    block = 2 * 512 * width
    return float(block * (2 * size * steps + own * len(some)) + (block * len(tiles) if alone and order == "col" else 0))


def tile_rows(config: Config) -> list[dict]:
    """What a tile of 512 x 512 costs in every pass, for one head of the first length."""
    rows = []
    tiles = causal_tiles(config.lengths[0], 512, 512)
    for generation in config.generations:
        for width in config.widths:
            code = OURS.format(
                generation=generation, length=config.lengths[0], width=width, exponential="float32", block_q=512
            )
            found = dumped(code, generation, "fold")
            alone = not any(n.startswith("fold_row") for n in found)
            for name, schedule in found.items():
                group, tile = int(name.rpartition("_")[2]), schedule.tiles[0]
                rows.append(
                    {
                        "generation": generation,
                        "width": width,
                        "pass": name,
                        "bundles a tile": round(tile.bundles / group),
                        "matrix cycles a tile": round(tile.mxu / group),
                        "fills and spills a tile": round(tile.spills / group),
                        "MB moved a head": round(traffic(name, alone, tiles, width) / 1e6, 1),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    return rows


def main(config: Config) -> list[dict]:
    """Print a line for each comparison, or for each kind of tile."""
    rows = tile_rows(config) if config.tiles else compared_rows(config)
    if config.out:
        versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
        report = {
            "command": " ".join(["python -m benchmarks.tpu_schedule", *sys.argv[1:]]),
            "versions": versions,
            "heads": HEADS,
            "clock in GHz": CLOCK,
            "rows": rows,
        }
        Path(config.out).write_text(json.dumps(report, indent=1) + "\n")
    return rows


def compared_rows(config: Config) -> list[dict]:
    """Cycles beside those of splash attention."""
    rows = []
    for generation in config.generations:
        for length in config.lengths:
            other = splash(generation, length, config.width)
            for exponential, block_q in itertools.product(config.exponentials, config.queries):
                own = ours(generation, length, config.width, exponential, block_q)
                row = {"generation": generation, "length": length, "width": config.width, "exponential": exponential}
                row |= {"tile": f"{block_q} x 512"}
                for name in ("forward", "backward"):
                    row |= {f"{name} Mcycles": own[name] / 1e6, f"{name} splash": other[name] / 1e6}
                    row |= {f"{name} ratio": own[name] / other[name]}
                rows.append(row | {name: own[name] for name in ("cycles a tile", "spills a tile")})
                print(json.dumps(rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
