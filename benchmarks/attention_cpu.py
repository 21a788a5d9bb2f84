"""Time of `attend` on a CPU beside jax.nn and torch; visited tiles; dense against blocks; block maps; decoding.

One process, competitors in turns whose order alternates, medians, and the median of the ratios within a turn. Every
timed call follows an untimed one of the same function, so that it meets neither the caches of the one before nor its
threads, which OpenMP lets spin for a while. Nothing is timed before its values are right. Run it alone on the machine:

    python -m benchmarks.attention_cpu --out runs/attention_cpu.json
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from attnjax import BlockSizes, attend, explain, masks
from attnjax.attention._block_map import block_map, successors
from benchmarks.measuring import Runs, WrongValues, alternate, cores, environment, relative_error, save

Section = Literal["speed", "window", "crossover", "block-map", "decoding"]
SECTIONS: tuple[Section, ...] = ("speed", "window", "crossover", "block-map", "decoding")
TOLERANCE = 1e-5
"""Relative RMS error of float32 outputs and gradients; the tests' table gives the reason."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        quick: tiny sizes and few repetitions: shows that everything runs, its times mean nothing.
        only: sections to run; all by default.
        out: where to write the figures as JSON.
        length: T = S of the comparison with other packages.
        heads: query heads, and key/value heads except in decoding.
        width: H = V.
        repetitions: turns, after two for warming up.
        slow_repetitions: turns where one takes seconds.
        window_length: T = S of the comparison of a window with causal attention.
        window: keys to the left that a query sees.
        crossover_lengths: T = S of the comparison of dense with blocks.
        crossover_heads: batch times heads of that comparison, multiples of ``heads``.
        map_length: T = S of the block map.
        cache_lengths: S of a decoding step.
    """

    quick: bool = False
    only: tuple[Section, ...] = SECTIONS
    out: Path | None = None
    length: int = 4096
    heads: int = 8
    width: int = 64
    repetitions: int = 7
    slow_repetitions: int = 5
    window_length: int = 16384
    window: int = 256
    crossover_lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    crossover_heads: tuple[int, ...] = (8, 16, 64)
    map_length: int = 131072
    cache_lengths: tuple[int, ...] = (4096, 16384, 65536)


QUICK = {
    "length": 96,
    "heads": 2,
    "width": 8,
    "repetitions": 2,
    "slow_repetitions": 2,
    "window_length": 192,
    "window": 16,
    "crossover_lengths": (16, 32),
    "crossover_heads": (2,),
    "map_length": 4096,
    "cache_lengths": (64, 128),
}


# --- measuring --------------------------------------------------------------------------------------------------------


def require_equal(label: str, got: Sequence[Any], want: Sequence[Any]) -> None:
    """Refuse to go on where arrays differ.

    Raises:
        WrongValues: one of them does, or holds a NaN.
    """
    for name, one, other in zip(("output", "dq", "dk", "dv"), got, want, strict=False):
        error = relative_error(one, other)
        if not error <= TOLERANCE:
            raise WrongValues(
                f"{label}: relative error of {name} is {error:.1e}, above {TOLERANCE:.0e}; nothing is timed"
            )


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def with_gradients(function: Callable) -> Callable:
    """``(q, k, v, cotangent) -> (output, dq, dk, dv)``."""

    @jax.jit
    def run(q, k, v, cotangent):
        out, pull_back = jax.vjp(function, q, k, v)
        return out, *pull_back(cotangent)

    return run


# --- implementations --------------------------------------------------------------------------------------------------


def blocks(causal: bool) -> Callable:
    return lambda q, k, v: attend(q, k, v, mask=masks.causal() if causal else None, implementation="blocks")


def xla(causal: bool) -> Callable:
    return lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="xla")


def torch_sdpa(q, k, v, cotangent, causal: bool) -> tuple[Callable, Callable] | None:
    """Forward and forward+backward of torch on the same arrays; None where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    torch.set_num_threads(cores())
    q, k, v, cotangent = (torch.from_numpy(np.array(x)).transpose(1, 2).contiguous() for x in (q, k, v, cotangent))
    sdpa = functools.partial(torch.nn.functional.scaled_dot_product_attention, is_causal=causal)

    def forward():
        with torch.no_grad():
            return sdpa(q, k, v).transpose(1, 2).numpy()

    def both():
        moving = [x.detach().requires_grad_() for x in (q, k, v)]
        out = sdpa(moving[0], moving[1], moving[2])
        gradients = torch.autograd.grad(out, moving, cotangent)
        return tuple(x.detach().transpose(1, 2).numpy() for x in (out, *gradients))

    return forward, both


def in_float64(q, k, v, cotangent, causal: bool) -> tuple[np.ndarray, ...]:
    """Attention and its gradients by their formulas, in NumPy."""
    q, k, v, cotangent = (np.asarray(x, np.float64) for x in (q, k, v, cotangent))
    scale = q.shape[-1] ** -0.5
    s = scale * np.einsum("btnh,bsnh->bnts", q, k)
    s = np.where(np.tri(*s.shape[-2:], dtype=bool), s, -np.inf) if causal else s
    p = np.exp(s - s.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    out = np.einsum("bnts,bsnh->btnh", p, v)
    dp = np.einsum("btnh,bsnh->bnts", cotangent, v)
    ds = scale * p * (dp - (dp * p).sum(-1, keepdims=True))
    return out, *(np.einsum(e, a, b) for e, a, b in (
        ("bnts,bsnh->btnh", ds, k), ("bnts,btnh->bsnh", ds, q), ("bnts,btnh->bsnh", p, cotangent)
    ))  # fmt: skip


# --- sections ---------------------------------------------------------------------------------------------------------


def check_values(config: Config) -> None:
    """`attend` in blocks against float64, at a length that is no multiple of a tile.

    Raises:
        WrongValues: see `require_equal`.
    """
    length = min(config.length, 1000)
    arrays = [normal(seed, 2, length, config.heads, config.width) for seed in range(4)]
    for causal in (True, False):
        want = in_float64(*arrays, causal=causal)
        require_equal(f"blocks, causal={causal}, against float64", with_gradients(blocks(causal))(*arrays), want)


def speed(config: Config) -> dict[str, Any]:
    """Forward and forward+backward, causal and full, against jax.nn and torch, whose values are compared first."""
    check_values(config)
    arrays = [normal(seed, 1, config.length, config.heads, config.width) for seed in range(4)]
    found = {}
    for causal in (True, False):
        kind = "causal" if causal else "full"
        ours, theirs = with_gradients(blocks(causal)), with_gradients(xla(causal))
        torch = torch_sdpa(*arrays, causal=causal)
        want = theirs(*arrays)
        require_equal(f"blocks, {kind}, against jax.nn", ours(*arrays), want)
        jitted = {"attnjax blocks": jax.jit(blocks(causal)), "jax.nn": jax.jit(xla(causal))}
        forward: Runs = {name: functools.partial(f, *arrays[:3]) for name, f in jitted.items()}
        both: Runs = {"attnjax blocks": functools.partial(ours, *arrays), "jax.nn": functools.partial(theirs, *arrays)}
        if torch is not None:
            require_equal(f"torch, {kind}, against jax.nn", torch[1](), want)
            forward["torch SDPA"], both["torch SDPA"] = torch
        del want
        found[f"{kind}, forward"] = alternate(forward, config.repetitions)
        found[f"{kind}, forward+backward"] = alternate(both, config.repetitions)
    plan = explain(*arrays[:3], mask=masks.causal(), implementation="blocks")
    found["causal tiles"] = [plan.block_q, plan.block_kv]
    return found


def window(config: Config) -> dict[str, Any]:
    """A window against causal attention, both in blocks: the time follows the visited tiles."""
    arrays = [normal(seed, config.window_length, config.heads, config.width) for seed in range(3)]
    kinds = {"window": masks.window(config.window), "causal": masks.causal()}
    size = min(256, config.window_length)
    short = [x[: 4 * config.window] for x in arrays]
    run = functools.partial(attend, implementation="blocks")
    dense = attend(*short, mask=kinds["window"], implementation="dense")
    require_equal("window in blocks against dense", [run(*short, mask=kinds["window"])], [dense])
    found = {}
    for label, tiles in (("default tiles", None), (f"tiles of {size} x {size}", BlockSizes(size, size))):
        knobs = {name: {"mask": mask, "block_sizes": tiles} for name, mask in kinds.items()}
        plans = {name: explain(*arrays, implementation="blocks", **knobs[name]) for name in kinds}
        jitted = {name: jax.jit(functools.partial(run, **knobs[name])) for name in kinds}
        timed = alternate({name: functools.partial(f, *arrays) for name, f in jitted.items()}, config.slow_repetitions)
        visited = {name: plan.tiles_visited for name, plan in plans.items()}
        found[label] = timed | {
            "tile": {name: [plan.block_q, plan.block_kv] for name, plan in plans.items()},
            "tiles_visited": visited,
            "ratio_of_visited_entries": _entries(plans["causal"]) / _entries(plans["window"]),
            "ratio_of_times": timed["ratio_to_first"]["causal"],
        }
    return found


def _entries(plan: Any) -> int:
    return plan.tiles_visited * plan.block_q * plan.block_kv


def crossover(config: Config) -> list[dict[str, Any]]:
    """Dense against blocks, causal, by length and number of heads: what `auto`'s threshold is read from."""
    rows = []
    for total in config.crossover_heads:
        for length in config.crossover_lengths:
            arrays = [normal(seed, total // config.heads, length, config.heads, config.width) for seed in range(4)]
            forms = {
                form: functools.partial(attend, mask=masks.causal(), implementation=form)
                for form in ("dense", "blocks")
            }
            forward = {form: functools.partial(jax.jit(f), *arrays[:3]) for form, f in forms.items()}
            both = {form: functools.partial(with_gradients(f), *arrays) for form, f in forms.items()}
            require_equal(f"blocks against dense, T={length}", both["blocks"](), both["dense"]())
            timed = alternate(forward, config.repetitions), alternate(both, config.repetitions)
            row = {"length": length, "batch_times_heads": total, "entries_per_head": length**2}
            rows.append(row | {"forward": timed[0], "forward+backward": timed[1]})
    return rows


def map_of(config: Config) -> dict[str, Any]:
    """Milliseconds and bytes of a block map with segment ids, inside jit, tiles of 128."""
    length, tile = config.map_length, 128
    ids = jnp.arange(length, dtype=jnp.int32) // (length // 32)
    near = masks.causal() & masks.window(1024)
    kinds = {
        "causal & window(1024) & segments | sinks(4)": lambda ids: near & masks.segments(ids) | masks.sinks(4),
        "(causal & window(1024) | sinks(4)) & segments": lambda ids: (near | masks.sinks(4)) & masks.segments(ids),
    }
    found = {}
    for label, mask in kinds.items():

        @jax.jit
        def run(ids, mask=mask):
            some = block_map(mask(ids), (), 1, length, length, tile, tile).some
            return some, successors(some)

        memory: Any = run.lower(ids).compile().memory_analysis()
        timed = alternate({"map": functools.partial(run, ids)}, config.repetitions)
        found[label] = timed | {
            "temporary_bytes": memory.temp_size_in_bytes,
            "output_bytes": memory.output_size_in_bytes,
            "tiles_visited": int(run(ids)[0].sum()),
            "tiles": (length // tile) ** 2,
        }
    return found


def decoding(config: Config) -> list[dict[str, Any]]:
    """One query against a cache: multi-query attention (K = 1) against multi-head attention (K = N)."""
    rows = []
    for length in config.cache_lengths:
        q = normal(0, 1, 1, config.heads, config.width)
        caches = {
            name: [normal(seed, 1, length, kv_heads, config.width) for seed in (1, 2)]
            for name, kv_heads in (("multi-query", 1), ("multi-head", config.heads))
        }
        one = caches["multi-query"]
        repeated = attend(q, *(jnp.repeat(x, config.heads, axis=2) for x in one))
        require_equal(f"multi-query attention, S={length}", [attend(q, *one)], [repeated])
        step = jax.jit(attend)
        timed = alternate(
            {name: functools.partial(step, q, *cache) for name, cache in caches.items()}, config.repetitions
        )
        size = {name: sum(x.nbytes for x in cache) for name, cache in caches.items()}
        plan = explain(q, *one).implementation
        rows.append(timed | {"length": length, "cache_bytes": size, "implementation": plan})
    return rows


RUN: dict[Section, Callable[[Config], Any]] = {
    "speed": speed,
    "window": window,
    "crossover": crossover,
    "block-map": map_of,
    "decoding": decoding,
}


# --- output -----------------------------------------------------------------------------------------------------------


def _timed_rows(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every measurement of a section with a label, whatever the section's shape."""
    if isinstance(found, dict):
        return [(label, one) for label, one in found.items() if isinstance(one, dict) and "ms" in one]
    labeled = []
    for row in found:
        place = ", ".join(f"{name} {row[name]}" for name in ("batch_times_heads", "length") if name in row)
        if "ms" in row:
            labeled.append((place, row))
        labeled += [(f"{place}, {label}", one) for label, one in row.items() if isinstance(one, dict) and "ms" in one]
    return labeled


def _remarks(one: dict[str, Any]) -> str:
    keys = (
        "tile",
        "tiles_visited",
        "tiles",
        "ratio_of_visited_entries",
        "temporary_bytes",
        "output_bytes",
        "cache_bytes",
    )
    shown = lambda value: f"{value:.3g}" if isinstance(value, float) else json.dumps(value).replace('"', "")
    return "; ".join(f"{key.replace('_', ' ')} {shown(one[key])}" for key in keys if key in one)


def table_of(section: Section, found: Any) -> Table:
    table = Table("measured", "implementation", "ms", "range", "ratio to first", "remarks", title=section)
    for label, one in _timed_rows(found):
        remarks = _remarks(one)
        for name, ms in one["ms"].items():
            low, high = one["spread"][name]
            ratio = f"{one['ratio_to_first'][name]:.2f}"
            table.add_row(label, name, f"{ms:.2f}", f"{low:.2f} - {high:.2f}", ratio, remarks)
            label = remarks = ""
    return table


def main(config: Config) -> dict[str, Any]:
    """Run the sections and print a table of each.

    Raises:
        WrongValues: before anything of that section is timed.
    """
    if config.quick:
        config = dataclasses.replace(config, **QUICK)
    console = Console(width=160)
    report = environment() | {"config": dataclasses.asdict(config) | {"out": None}, "sections": {}}
    versions = report["versions"]
    torch = versions["torch"] or "not installed"
    console.print(f"{report['machine']['cpu']}, {cores()} cores; jax {versions['jax']}, torch {torch}")
    console.print(
        f"float32, N={config.heads}, H={config.width}, {config.repetitions} turns; medians; ratios are within a turn"
    )
    for section in config.only:
        report["sections"][section] = RUN[section](config)
        console.print(table_of(section, report["sections"][section]))
        save(report, config.out)
    if config.out is not None:
        console.print(f"figures: {config.out}")
    return report


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except WrongValues as wrong:
        sys.exit(f"WRONG VALUES: {wrong}")
