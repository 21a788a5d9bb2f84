"""What the TPU compiler's schedules say the kernels of linear attention cost: python -m benchmarks.linear_schedule.

Cycles of a chunk beside those that its matrices need on the matrix units, and beside those in which its arrays can be
moved. See ``pallas_kernels._schedule`` for what the model holds, and what not.
"""

import dataclasses
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.tpu_schedule import dumped
from pallas_kernels._schedule import BANDWIDTH, CLOCK, Schedule

CODE = (
    'from benchmarks import linear_schedule; linear_schedule.compile_kind("{generation}", "{kind}", {width}, {chunk})'
)
KINDS = ("by token", "by feature", "delta", "delta by feature")
"""Decay by token or feature; the delta rule with a decay by token or feature."""
LENGTH = 4096


@dataclasses.dataclass
class Config:
    """Read the schedules of the kernels of linear attention.

    Attributes:
        generations: TPU generations.
        kinds: Of linear attention.
        chunks: Tokens of a chunk.
        width: H = V.
        out: JSON file to write, or nothing.
    """

    generations: tuple[str, ...] = ("v4", "v5e", "v5p", "v6e")
    kinds: tuple[str, ...] = KINDS
    chunks: tuple[int, ...] = (64, 128)
    width: int = 128
    out: str = ""


def compile_kind(generation: str, kind: str, width: int, chunk: int) -> None:
    """Forward and backward, bfloat16, one head of 4096 tokens."""
    from pallas_kernels import _topology

    _topology.prepare()
    import jax
    import jax.numpy as jnp

    from attnjax import linear
    from pallas_kernels import Target, compile_for

    def forward(q, k, v, log_decay, beta):
        knobs = {"beta": beta} if "delta" in kind else {}
        return linear.attend(q, k, v, log_decay=log_decay, **knobs, form="pallas", chunk_size=chunk)

    def both(*arrays):
        *arrays, cotangent = arrays
        output, pull = jax.vjp(forward, *arrays)
        return output, pull(cotangent)

    x = jax.ShapeDtypeStruct((LENGTH, 1, width), jnp.bfloat16)
    decay = jax.ShapeDtypeStruct((LENGTH, 1, *([width] if "feature" in kind else [])), jnp.float32)
    beta = jax.ShapeDtypeStruct((LENGTH, 1), jnp.float32)
    target = Target("tpu", generation)
    with compile_for(target):
        _topology.compile_on(_topology.devices(target)[0], both, x, x, x, decay, beta, x)


def moved(kind: str, backward: bool, width: int, chunk: int) -> float:
    """Bytes that a chunk of one head moves: three matrices and the output, decays, the carry; backward all of these,
    and as much for cotangents."""
    matrix, decay = 2 * chunk * width, 4 * chunk * (width if "feature" in kind else 1)
    once = 3 * matrix + 2 * matrix + decay + 4 * width * width  # outputs are float32
    return once + (3 * matrix + decay if backward else 0)


def row(generation: str, kind: str, width: int, chunk: int, name: str, schedule: Schedule) -> dict[str, Any]:
    """A chunk of one pass."""
    group = int(name.rpartition("_")[2])
    cycles = (schedule.overhead + max(0.0, schedule.step.mxu - schedule.step.bundles)) / group
    bytes_moved = moved(kind, "back" in name, width, chunk)
    return {
        "generation": generation,
        "kind": kind,
        "chunk": chunk,
        "pass": "backward" if "back" in name else "forward",
        "cycles": round(cycles),
        "matrix cycles": round(schedule.step.mxu / group),
        "memory cycles": round(bytes_moved / BANDWIDTH[generation] * CLOCK[generation]),
        "fills and spills": round(schedule.step.spills / group),
        "microseconds for 1024 tokens": round(cycles * 1024 / chunk / CLOCK[generation] / 1000, 2),
    }


def main(config: Config) -> list[dict]:
    """Print a line for each pass."""
    rows = []
    for generation in config.generations:
        for kind in config.kinds:
            for chunk in config.chunks:
                code = CODE.format(generation=generation, kind=kind, width=config.width, chunk=chunk)
                for name, schedule in dumped(code, generation, "walk").items():
                    rows.append(row(generation, kind, config.width, chunk, name, schedule))
                    print(json.dumps(rows[-1]), flush=True)
    if config.out:
        report = {
            "command": " ".join(["python -m benchmarks.linear_schedule", *sys.argv[1:]]),
            "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
            "width": config.width,
            "clock in GHz": CLOCK,
            "rows": rows,
        }
        Path(config.out).write_text(json.dumps(report, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
