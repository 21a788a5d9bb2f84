"""Speed of `attend`'s kernels on a Hopper GPU, beside jax.nn, torch and tokamax, once their values are right.

One process. Every case is first held, at a moderate length, against formulas in float64 NumPy; one that is wrong or
raises is reported and not timed, and the others go on. At the timed length every competitor's values are compared with
float64 again, at a few queries. Then competitors run in turns whose order alternates: a turn is a loop of calls with
one wait at its end, the figures are medians. The most telling cases come first, and the figures are written after each,
so that a run cut short keeps what it has:

    python -m benchmarks.attention_gpu --out benchmarks/results/h200.json

``--quick`` runs one tiny case anywhere, in interpreted kernels where there is no GPU; its times mean nothing.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks.gpu_cases import CASES, KINDS, NAMES, Data, Formulas, Kind, Name, Problem, data_of, named, tolerance
from benchmarks.gpu_competitors import (
    OURS,
    PEERS,
    Competitor,
    absence,
    calls_of,
    in_jax,
    message_of,
    ours,
    require_small_map,
    visited_share,
    wait,
)
from benchmarks.gpu_report import BARS, Unit, conclude, line_of, summary
from benchmarks.measuring import WrongValues, alternate, calls_within, environment, relative_error, version
from pallas_kernels import Target, _compat, compile_for

PEERS_SLACK = 3
"""Peers need only compute the same function; how they round is their own business."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        quick: one tiny case, few repetitions, on any machine: shows that everything runs, its times mean nothing.
        gate_only: compare values with float64 and time nothing.
        out: where to write the figures as JSON.
        minutes: after these no case is begun; those left out are named.
        dtype: of queries, keys and values.
        cases: which ones; ``grouped`` is causal with grouped queries, ``decode`` one query against a cache, ``alibi``
            and ``bias`` have gradients of their slopes and of a bias of every pair.
        kinds: passes. ``backward`` is the pull of `jax.vjp` alone, with saved residuals; ``tangent`` is `jax.jvp`.
        peers: other implementations.
        lengths: T = S.
        widths: H = V.
        heads: query heads.
        group: query heads to a key/value head, in ``grouped`` and ``decode``.
        tokens: batch times length, as far as it goes.
        decode_batch: batch of ``decode``.
        window: keys to the left that a query of ``window`` sees.
        gate_length: T = S at which all values are compared.
        gate_heads: query heads there, a multiple of ``group``.
        repetitions: turns.
        seconds: that the calls of a turn fill.
    """

    quick: bool = False
    gate_only: bool = False
    out: Path | None = None
    minutes: float = 8
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    cases: tuple[Name, ...] = NAMES
    kinds: tuple[Kind, ...] = KINDS
    peers: tuple[str, ...] = tuple(PEERS)
    lengths: tuple[int, ...] = (16384, 4096, 1024, 65536)
    widths: tuple[int, ...] = (128, 64, 256)
    heads: int = 16
    group: int = 8
    tokens: int = 16384
    decode_batch: int = 16
    window: int = 1024
    gate_length: int = 512
    gate_heads: int = 8
    repetitions: int = 7
    seconds: float = 0.03


QUICK = {
    "cases": ("causal",),
    "kinds": ("forward", "backward"),
    "lengths": (128,),
    "widths": (64,),
    "heads": 1,
    "group": 1,
    "tokens": 128,
    "window": 48,
    "gate_length": 128,
    "gate_heads": 1,
    "repetitions": 1,
    "seconds": 0.0,
}


def problem_of(config: Config, name: Name, width: int, length: int, *, gate: bool = False) -> Problem:
    case = CASES[name]
    heads = config.gate_heads if gate else config.heads
    batch = 2 if gate else config.decode_batch if case.decoding else max(1, config.tokens // length)
    return Problem(
        case,
        batch=batch,
        queries=1 if case.decoding else length,
        keys=length,
        heads=heads,
        kv_heads=heads // config.group if case.grouped else heads,
        width=width,
        window=min(config.window, length // 4) if gate else config.window,
        dtype=config.dtype,
    )


@contextlib.contextmanager
def kernels(config: Config) -> Iterator[str]:
    """What kernels run within the context: the GPU's, else interpreted ones, which are for ``quick`` alone.

    Raises:
        SystemExit: there is no GPU, and sizes are not those of ``quick``.
    """
    if jax.default_backend() == "gpu":
        yield "compiled"
    elif not config.quick:
        raise SystemExit(f"this needs a Hopper GPU and finds {jax.devices()[0].device_kind}; --quick runs anywhere")
    elif _compat.can_interpret():  # whose callbacks are in an order that no jit knows of
        with compile_for(Target("gpu", "h100", interpret=True)), jax.disable_jit():
            yield "those for GPU, interpreted"
    else:
        with compile_for(Target("tpu", interpret=True)):
            yield "those for TPU, interpreted: this jax cannot interpret those for GPU"


def units(config: Config) -> list[Unit]:
    """All rows, the most telling first: what a bar asks; plain cases at all widths; other cases at the first width."""
    asked = {bar.unit: number for number, bar in enumerate(BARS)}

    def rank(unit: Unit) -> tuple:
        plain = unit.name in ("full", "causal", "decode")
        far = not plain and unit.width != config.widths[0]
        late = unit.kind == "forward+backward"
        return asked.get(unit, len(asked)), far, late, config.lengths.index(unit.length), not plain

    every = [
        Unit(name, width, length, kind)
        for length in config.lengths
        for name in config.cases
        for width in config.widths
        for kind in config.kinds
        if kind == "forward" or name != "decode"
    ]
    return sorted(every, key=rank)


class Gate:
    """Whether a pass has the right values, at a moderate length; found once for each case, width and pass."""

    def __init__(self, config: Config, tell: Callable[[str], Any]):
        self.config, self.tell = config, tell
        self.found: dict[Unit, dict[str, Any]] = {}

    def __call__(self, unit: Unit) -> dict[str, Any]:
        kind = "backward" if unit.kind == "forward+backward" else unit.kind
        unit = dataclasses.replace(unit, length=self.config.gate_length, kind=kind)
        if unit not in self.found:
            try:
                row = unit.row | self._errors(unit)
            except Exception as error:  # a kernel that does not compile or run must not end the others' measurement
                row = unit.row | {"passed": False, "message": message_of(error)}
            self.found[unit] = row
            errors = ", ".join(f"{part} {error:.1e}" for part, error in row.get("errors", {}).items())
            self.tell(f"values of {unit.name}, H={unit.width}, {kind}: {errors} {row['message']}")
        return self.found[unit]

    def _errors(self, unit: Unit) -> dict[str, Any]:
        problem = problem_of(self.config, unit.name, unit.width, unit.length, gate=True)
        data = data_of(problem)
        function, arguments = calls_of(ours(problem), data, unit.kind)
        got = named(unit.kind, jax.jit(function)(*arguments))
        want = Formulas(problem, data).expected(unit.kind)
        errors = {part: relative_error(got[part], want[part]) for part in want}
        wrong = [part for part, error in errors.items() if not error <= tolerance(problem, part)]
        message = "; ".join(
            f"{part} is off by {errors[part]:.1e}, above {tolerance(problem, part):.0e}" for part in wrong
        )
        return {"errors": errors, "passed": not wrong, "message": message}


def checked(problem: Problem, data: Data, kind: Kind) -> Callable[[Competitor, float], None]:
    """Compares some of a competitor's values with float64.

    Raises:
        WrongValues: they lie further apart than the tolerance times the given factor.
    """
    rows = np.unique(np.linspace(0, problem.queries - 1, 16).astype(int))
    want = Formulas(problem, data, rows).expected(kind)

    def check(competitor: Competitor, factor: float) -> None:
        for name, got in competitor.some(competitor.run()).items():
            error, bound = relative_error(got[rows], want[name][0, :, 0]), factor * tolerance(problem, name)
            if not error <= bound:
                raise WrongValues(f"{name} is off by {error:.1e} at some queries, above {bound:.0e}")

    return check


def beside(unit: Unit, problem: Problem, data: Data) -> dict[str, Callable[[], Competitor]]:
    """Our own other passes and cases that a row's ratios are taken to."""
    full = dataclasses.replace(problem, case=CASES["full"])
    found = {}
    if unit.kind == "tangent":
        found[f"{OURS}, forward"] = lambda: in_jax(ours(problem), data, "forward")
    if unit.name in ("sigmoid", "window"):
        other = "softmax" if unit.name == "sigmoid" else "full"
        found[f"{OURS}, {other}"] = lambda: in_jax(ours(full), data, unit.kind)
    return found


def measure(config: Config, unit: Unit, peers: tuple[str, ...]) -> dict[str, Any]:
    """Times of a row's competitors; one that fails, or is wrong, is not timed and says why."""
    problem = problem_of(config, unit.name, unit.width, unit.length)
    row = unit.row | {"batch": problem.batch, "heads": [problem.heads, problem.kv_heads], "not_timed": {}}
    if problem.case.learned == "bias":
        require_small_map(problem)
    data = data_of(problem)
    check = checked(problem, data, unit.kind)
    competitors = {OURS: in_jax(ours(problem), data, unit.kind)}
    check(competitors[OURS], 1)
    row |= _device_peak()
    others = beside(unit, problem, data)
    others |= {name: functools.partial(PEERS[name], problem, data, unit.kind) for name in peers}
    for name, build in others.items():
        try:
            competitor = build()
            check(competitor, PEERS_SLACK) if name in peers else wait(competitor.run())
            competitors[name] = competitor
        except Exception as error:
            row["not_timed"][name] = message_of(error)
    runs = {name: c.run for name, c in competitors.items()}
    calls = {name: calls_within(run, config.seconds, wait) for name, run in runs.items()}
    row |= alternate(runs, config.repetitions, calls, wait, compiled=True) | {"calls": calls}
    row["memory"] = {name: c.memory for name, c in competitors.items()}
    return row | derived(unit, problem, row, peers)


def _device_peak() -> dict[str, int]:
    """The greatest memory that jax had in use, since the process began."""
    found = jax.devices()[0].memory_stats() or {}
    return {"peak_bytes_since_start": found["peak_bytes_in_use"]} if "peak_bytes_in_use" in found else {}


def derived(unit: Unit, problem: Problem, row: dict[str, Any], peers: tuple[str, ...]) -> dict[str, Any]:
    """Rates, the ratio to the best peer, and the ratios that bars ask for."""
    over = row["ratio_to_first"]  # the other's time over ours
    timed = [name for name in peers if name in over]
    best = min(timed, key=lambda name: row["ms"][name]) if timed else None
    found: dict[str, Any] = {"best_peer": best, "best_peers_time_over_ours": over[best] if best else None}
    own = {name: ms for name, ms in row["ms"].items() if name == OURS or name in peers}
    if unit.name == "decode":
        cache = 2 * problem.batch * problem.keys * problem.kv_heads * problem.width * jnp.dtype(problem.dtype).itemsize
        found["GB/s"] = {name: cache / ms / 1e6 for name, ms in own.items()}
    elif (operations := problem.operations(unit.kind)) is not None:
        found["TFLOP/s"] = {name: operations / ms / 1e9 for name, ms in own.items()}
    ratios = {}
    if f"{OURS}, forward" in over:
        ratios["tangent's time over forward's"] = 1 / over[f"{OURS}, forward"]
    if f"{OURS}, softmax" in over:
        ratios["softmax's time over sigmoid's"] = over[f"{OURS}, softmax"]
    if f"{OURS}, full" in over:
        found["visited_share"] = share = visited_share(problem)
        ratios["time over the visited share of full's"] = 1 / over[f"{OURS}, full"] / share
    return found | {"ratios": ratios}


def opening(config: Config, how: str, peers: dict[str, str]) -> dict[str, Any]:
    """The report before anything is measured."""
    packages = ("tokamax", "triton", "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")
    report = environment()
    report["versions"] |= {name: found for name in packages if (found := version(name)) is not None}
    return report | {
        "dtype": config.dtype,
        "device_kind": jax.devices()[0].device_kind,
        "kernels": how,
        "times_mean": "nothing: tiny sizes, to see that everything runs" if config.quick else "milliseconds of a call",
        "config": dataclasses.asdict(config) | {"out": None},
        "peers": peers,
        "sections": {"gate": [], "times": []},
        **summary([]),
        "left_out": [],
        "at_work_on": None,
    }


def save(report: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def run_unit(config: Config, unit: Unit, gate: Gate, peers: tuple[str, ...]) -> dict[str, Any] | None:
    """The row of a unit, with why where nothing was timed; None where nothing was to be timed."""
    needed = [unit, dataclasses.replace(unit, kind="forward")]
    wrong = [found["message"] for found in map(gate, needed) if not found["passed"]]
    if config.gate_only:
        return None
    if wrong:
        return unit.row | {"failed": wrong[0]}
    try:
        return measure(config, unit, peers)
    except Exception as error:
        return unit.row | {"failed": message_of(error)}


def main(config: Config) -> dict[str, Any]:
    """Check, time, print and write, row by row."""
    begin = time.monotonic()
    if config.quick:
        config = dataclasses.replace(config, **QUICK)
    else:  # leaves torch its share; jax reads it at its first use of the device
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")
    console = Console(width=160)
    missing = {name: absence(name) for name in config.peers}
    peers = tuple(name for name, why in missing.items() if why is None)
    with kernels(config) as how:
        report = opening(config, how, {name: why or "present" for name, why in missing.items()})
        console.print(f"{report['device_kind']}, kernels {how}; {report['versions']}; peers {report['peers']}")
        gate, sections = Gate(config, console.print), report["sections"]
        for unit in units(config):
            if time.monotonic() - begin > 60 * config.minutes:
                report["left_out"].append(str(unit))
                continue
            report["at_work_on"] = str(unit)
            save(report, config.out)
            row = run_unit(config, unit, gate, peers)
            sections["gate"] = list(gate.found.values())
            if row is not None:
                sections["times"].append(row)
                line = line_of(row)
                spent = time.monotonic() - begin
                console.print(f"{spent:.0f} s: {unit}: {line[4]} ms, {line[5]}; {'; '.join(line[7:])}")
                report |= summary(sections["times"])
        report["at_work_on"] = None
        save(report, config.out)
    conclude(console, report)
    return report


def asked() -> Config:
    """What the command line asks for; machines lent for an hour may lack tyro."""
    if importlib.util.find_spec("tyro") is not None:
        import tyro

        return tyro.cli(Config, description=__doc__)
    if sys.argv[1:] and (len(sys.argv) != 3 or sys.argv[1] != "--out"):
        sys.exit("tyro is not installed: without it, --out PATH is the only option")
    return Config(out=Path(sys.argv[2]) if sys.argv[1:] else None)


if __name__ == "__main__":
    figures = main(asked())
    if not all(row["passed"] for row in figures["sections"]["gate"]):
        sys.exit("WRONG VALUES, or kernels that do not run: see FAILED above")
