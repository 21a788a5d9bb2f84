"""Whether attention compiles for a chip that is not there, and what it costs: python -m attnjax.aot --help.

Needs the extra ``aot`` (the compilers for TPU and CUDA), in an environment of its own.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.attention import BlockSizes, attend, explain, masks


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m attnjax.aot", description=__doc__)
    parser.add_argument("--target", default="v5e", help="TPU v4, v5e, v5p, v6e or 7x; GPU h100 or h200")
    parser.add_argument("--batch", type=int, default=1, help="B")
    parser.add_argument("--queries", type=int, default=4096, help="T")
    parser.add_argument("--keys", type=int, help="S; T by default")
    parser.add_argument("--heads", type=int, default=8, help="N, query heads")
    parser.add_argument("--kv-heads", type=int, help="K; N by default")
    parser.add_argument("--width", type=int, default=128, help="H, head size")
    parser.add_argument("--value-width", type=int, help="V; H by default")
    parser.add_argument("--dtype", default="bfloat16", help="of queries, keys and values")
    parser.add_argument("--mask", default="causal", help="causal, full, or window=N (causal, N keys back)")
    parser.add_argument("--block-q", type=int, help="queries in a tile")
    parser.add_argument("--block-kv", type=int, help="keys in a tile")
    parser.add_argument("--exponential", default="float32", help="float32 or bfloat16")
    parser.add_argument("--forward", action="store_true", help="no backward pass")
    return parser


def _mask(text: str) -> Any:
    name, _, number = text.partition("=")
    if name == "causal" and not number:
        return masks.causal()
    if name == "full" and not number:
        return None
    if name == "window" and number.isdigit():
        return masks.window(int(number))
    raise SystemExit(f"--mask: got {text!r}, want causal, full or window=N")


def main(arguments: list[str] | None = None) -> int:
    """Compile, and print what was found.

    Args:
        arguments: of the command line.

    Returns:
        The exit status: 0 if it compiles, 1 if not, 2 for a request that makes no sense.

    Example:
        >>> main(["--mask", "diagonal"])
        Traceback (most recent call last):
        SystemExit: --mask: got 'diagonal', want causal, full or window=N
    """
    given = _parser().parse_args(arguments)
    mask = _mask(given.mask)
    from pallas_kernels import _topology, compile_for
    from pallas_kernels._schedule import dump_flags
    from pallas_kernels._target import named

    try:
        target = named(given.target, exponential=given.exponential)
    except ValueError as error:
        print(f"--target or --exponential: {error}", file=sys.stderr)
        return 2
    _topology.prepare()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIBTPU_INIT_ARGS"] = " ".join(
            filter(None, [os.environ.get("LIBTPU_INIT_ARGS"), dump_flags(folder)])
        )
        os.environ |= {"MOSAIC_GPU_DUMP_TO": folder, "MOSAIC_GPU_DUMP_PTXAS": "1"}
        try:
            device = _topology.devices(target)[0]
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 2
        function, shapes = _request(given, mask)
        begin = time.perf_counter()
        try:
            with compile_for(target):
                compiled = _topology.compile_on(device, function, *shapes)
        except Exception as error:  # whatever the compiler says is the answer
            print(f"does not compile for {given.target}: {type(error).__name__}: {error}")
            return 1
        memory = compiled.memory_analysis()
        print(f"compiles for {given.target} in {time.perf_counter() - begin:.1f} s (with the schedule written)")
        print(f"arguments {memory.argument_size_in_bytes:,} bytes, outputs {memory.output_size_in_bytes:,}")
        print(f"temporary {memory.temp_size_in_bytes:,} bytes")
        if target.platform == "tpu":
            _report_schedules(given, mask, memory, Path(folder))
        else:
            _report_registers(Path(folder))
    return 0


def _request(given: Any, mask: Any) -> tuple[Any, list[jax.ShapeDtypeStruct]]:
    """The function that is compiled, of arrays as its kernels read them, and the shapes of its arguments."""
    from pallas_kernels._target import SHARED

    heads_first = given.target not in SHARED
    turn = (lambda x: jnp.swapaxes(x, 1, 2)) if heads_first else lambda x: x
    sizes = _sizes(given)

    def forward(q, k, v):
        return turn(attend(turn(q), turn(k), turn(v), mask=mask, implementation="pallas", block_sizes=sizes))

    def backward(q, k, v, cotangent):
        output, pull = jax.vjp(forward, q, k, v)
        return output, pull(cotangent)

    keys, kv_heads = given.keys or given.queries, given.kv_heads or given.heads
    value_width = given.value_width or given.width

    def of(heads, length, width):
        lengths = (heads, length) if heads_first else (length, heads)
        return jax.ShapeDtypeStruct((given.batch, *lengths, width), jnp.dtype(given.dtype))

    q = of(given.heads, given.queries, given.width)
    shapes = [q, of(kv_heads, keys, given.width), of(kv_heads, keys, value_width)]
    return (forward, shapes) if given.forward else (backward, [*shapes, of(given.heads, given.queries, value_width)])


def _sizes(given: Any) -> BlockSizes | None:
    return BlockSizes(given.block_q, given.block_kv) if given.block_q or given.block_kv else None


def _report_registers(folder: Path) -> None:
    for path in sorted(folder.glob("*.ptxas")):
        text = path.read_text()
        stores, loads, used = (
            max([int(n) for n in re.findall(pattern, text)], default=0)
            for pattern in (r"(\d+) bytes spill stores", r"(\d+) bytes spill loads", r"Used (\d+) registers")
        )
        print(
            f"{path.stem}: {used} registers a thread at the start; spills {stores} bytes of stores and {loads} of loads"
        )


def _report_schedules(given: Any, mask: Any, memory: Any, folder: Path) -> None:
    from attnjax.attention._block_map import block_map, kinds
    from pallas_kernels import compile_for
    from pallas_kernels._schedule import BANDWIDTH, CLOCK, cycles, read_all
    from pallas_kernels._target import named

    schedules = read_all(folder, given.target, "fold")
    keys = given.keys or given.queries
    q, k = (jax.ShapeDtypeStruct((n, 1, given.width), jnp.dtype(given.dtype)) for n in (given.queries, keys))
    with compile_for(named(given.target, exponential=given.exponential)):
        plan = explain(q, k, k, mask=mask, implementation="pallas", block_sizes=_sizes(given))
    block_q, block_kv = plan.block_q, plan.block_kv
    blocks = block_map(mask, (), 1, given.queries, keys, block_q, block_kv)
    tiles = np.asarray(kinds(blocks, keys, block_kv)).reshape(-(-given.queries // block_q), -1)
    points = given.batch * given.heads
    for name, schedule in schedules.items():
        group = int(name.rpartition("_")[2])
        tile = schedule.tiles[0]
        print(
            f"{name}: {tile.bundles / group:.0f} bundles a tile of {block_q} x {block_kv}, matrix units need "
            f"{tile.mxu / group:.0f}; {tile.spills / group:.0f} spills a tile; {schedule.overhead} bundles a step"
        )
        total = points * cycles(name, schedule, tiles)
        if given.target in CLOCK:
            spent = total / CLOCK[given.target] / 1e6
            print(f"  {int((tiles > 0).sum())} of {tiles.size} tiles a head: {spent:.3f} ms on one core")
    moved = memory.argument_size_in_bytes + memory.output_size_in_bytes
    if given.target in BANDWIDTH:
        print(f"arguments and outputs alone take {moved / BANDWIDTH[given.target] / 1e6:.3f} ms to move")


if __name__ == "__main__":
    sys.exit(main())
