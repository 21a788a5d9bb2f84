"""What the rows of `benchmarks.attention_gpu` say: the bars that they are held to, and tables."""

import dataclasses
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from benchmarks.gpu_cases import Kind, Name
from benchmarks.gpu_competitors import OURS


@dataclasses.dataclass(frozen=True)
class Unit:
    """One row of figures."""

    name: Name
    width: int
    length: int
    kind: Kind

    def __str__(self) -> str:
        return f"{self.name}, H={self.width}, T={self.length}, {self.kind}"

    @property
    def row(self) -> dict[str, Any]:
        """What a row of figures begins with."""
        return {"case": self.name, "width": self.width, "length": self.length, "pass": self.kind}


@dataclasses.dataclass(frozen=True)
class Bar:
    """What a figure is asked to be: ``"at least"`` or ``"at most"`` so much."""

    figure: str
    unit: Unit
    sense: Literal["at least", "at most"]
    asked: float


BARS = (
    Bar("TFLOP/s", Unit("full", 128, 16384, "forward"), "at least", 600),
    Bar("TFLOP/s", Unit("causal", 128, 16384, "forward"), "at least", 560),
    Bar("TFLOP/s", Unit("full", 128, 16384, "backward"), "at least", 455),
    Bar("TFLOP/s", Unit("full", 64, 16384, "forward"), "at least", 480),
    Bar("TFLOP/s", Unit("full", 256, 16384, "backward"), "at least", 210),
    Bar("softmax's time over sigmoid's", Unit("sigmoid", 128, 16384, "forward"), "at least", 1),
    Bar("tangent's time over forward's", Unit("full", 128, 16384, "tangent"), "at most", 3),
    Bar("time over the visited share of full's", Unit("window", 128, 16384, "forward"), "at most", 1.1),
)


def unit_of(row: dict[str, Any]) -> Unit:
    return Unit(row["case"], row["width"], row["length"], row["pass"])


def against_bars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every bar, with what was measured; None where it was not."""
    by_unit = {unit_of(row): row for row in rows if "ms" in row}
    found = []
    for bar in BARS:
        row = by_unit.get(bar.unit, {})
        figures = {"TFLOP/s": row.get("TFLOP/s", {}).get(OURS), **row.get("ratios", {})}
        measured = passed = figures.get(bar.figure)
        if measured is not None:
            passed = measured >= bar.asked if bar.sense == "at least" else measured <= bar.asked
        asked = {"figure": bar.figure, "of": str(bar.unit), "asked": f"{bar.sense} {bar.asked:g}"}
        found.append(asked | {"measured": measured, "passed": passed})
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is read off the rows: the ratios within each, and the bars."""
    ratios = [
        {"ratio": name, "of": str(unit_of(row)), "value": value}
        for row in rows
        for name, value in row.get("ratios", {}).items()
    ]
    return {"ratios": ratios, "bars": against_bars(rows)}


def line_of(row: dict[str, Any]) -> list[str]:
    """A row of the table of times."""
    unit = [row["case"], str(row["width"]), str(row["length"]), row["pass"]]
    if "ms" not in row:
        return [*unit, "-", "", "", "", "", row["failed"]]
    rates, best = row.get("TFLOP/s") or row.get("GB/s") or {}, row["best_peer"]
    rate = lambda name: f"{rates[name]:.0f}" if name in rates else ""
    remarks = [f"{name} {value:.2f}" for name, value in row["ratios"].items()]
    remarks += [f"no {name}: {why}"[:60] for name, why in row["not_timed"].items() if name.startswith(OURS)]
    memory = row["memory"][OURS].get("temporary_bytes")
    return [
        *unit,
        *(f"{row['ms'][OURS]:.3g}", rate(OURS), "" if memory is None else f"{memory / 1e6:.0f}"),
        *(best or "none", "" if best is None else f"{row['best_peers_time_over_ours']:.2f}", "; ".join(remarks)),
    ]


def times_table(rows: list[dict[str, Any]]) -> Table:
    columns = "case, H, T, pass, ms, TFLOP/s or GB/s, temporary MB, best peer, its time over ours, remarks"
    table = Table(*columns.split(", "), title="times of attnjax's kernels")
    for row in rows:
        table.add_row(*line_of(row))
    return table


def bars_table(bars: list[dict[str, Any]]) -> Table:
    table = Table("figure", "of", "asked", "measured", "", title="bars")
    for bar in bars:
        verdict = {True: "met", False: "not met", None: "not measured"}[bar["passed"]]
        measured = "" if bar["measured"] is None else f"{bar['measured']:.3g}"
        table.add_row(bar["figure"], bar["of"], bar["asked"], measured, verdict)
    return table


def conclude(console: Console, report: dict[str, Any]) -> None:
    """Print what the whole report comes to."""
    gate, left = report["sections"]["gate"], report["left_out"]
    console.print(times_table(report["sections"]["times"]), bars_table(report["bars"]))
    for row in gate:
        if not row["passed"]:
            console.print(f"FAILED, not timed: {row['case']}, H={row['width']}, {row['pass']}: {row['message']}")
    console.print(f"{sum(row['passed'] for row in gate)} of {len(gate)} passes have the values of float64")
    if left:
        console.print(f"left out, time being up: {len(left)} rows: {'; '.join(left[:8])} ...")
    if report["config"]["quick"]:
        console.print("tiny sizes: these times mean nothing")
