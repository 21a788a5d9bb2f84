"""What every benchmark uses: functions timed in turns, errors, and what machine and versions it ran on."""

import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

Runs = dict[str, Callable[[], Any]]


class WrongValues(Exception):
    """An implementation's values are not those of the reference; its speed is of no interest."""


def alternate(
    functions: Runs,
    repetitions: int,
    calls: Mapping[str, int] | None = None,
    wait: Callable[[Any], Any] = jax.block_until_ready,
    compiled: bool = False,
) -> dict[str, Any]:
    """Milliseconds of functions that run in turns, A B B A, and ratios to the first within a turn, as medians.

    Args:
        functions: what to time, by name.
        repetitions: turns.
        calls: of how many calls in a row, with one wait at their end, the mean is taken; 1 where not named. A device
            that runs calls after the host has gone on is kept busy by them.
        wait: waits for the result of a call, and for all calls before it.
        compiled: every function has run before; otherwise the first turn, which compiles, is left out.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(int(compiled), repetitions + 1):
        for name, function in functions.items() if turn % 2 else reversed(functions.items()):
            wait(function())
            begin = time.perf_counter()
            count = (calls or {}).get(name, 1)
            for _ in range(count - 1):
                function()
            wait(function())
            if turn > 0:
                times[name].append(1e3 * (time.perf_counter() - begin) / count)
    first = times[next(iter(times))]
    ratio = lambda other: statistics.median(b / a for a, b in zip(first, other, strict=True))
    return {
        "ms": {name: statistics.median(found) for name, found in times.items()},
        "spread": {name: [min(found), max(found)] for name, found in times.items()},
        "ratio_to_first": {name: ratio(found) for name, found in times.items()},
        "repetitions": repetitions,
    }


def calls_within(function: Callable[[], Any], seconds: float, wait: Callable[[Any], Any], most: int = 200) -> int:
    """How many calls fill that time, by one of them; the function has run before."""
    begin = time.perf_counter()
    wait(function())
    return max(1, min(most, round(seconds / (time.perf_counter() - begin))))


def relative_error(got: Any, want: Any) -> float:
    """RMS(got - want) / RMS(want)."""
    got, want = (np.asarray(x, np.float64) for x in (got, want))
    return float(np.sqrt(((got - want) ** 2).mean() / (want**2).mean()))


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The CPU's name, from where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def version(package: str) -> str | None:
    """Of an installed package; None of one that is absent or runs from its source tree."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def save(report: dict[str, Any], out: Path | None) -> None:
    """Write the figures so far, if they are asked for: a run that is cut short keeps what it has."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _main() -> list[str]:
    """What is run, without the folders of this machine."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return ["-m", spec.name] if spec else [Path(sys.argv[0]).name]


def environment() -> dict[str, Any]:
    packages = ("attnjax", "jax", "jaxlib", "numpy", "torch")
    return {
        "machine": {
            "cpu": processor(),
            "cores": cores(),
            "load_before": os.getloadavg()[0],
            "system": platform.platform(),
        },
        "device": str(jax.devices()[0]),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "command": shlex.join(["python", *_main(), *sys.argv[1:]]),
        "dtype": "float32",
    }
