"""The command line: made from the experiments' config dataclasses by tyro."""

import dataclasses
import inspect
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any, Union

import jax
import tyro
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.framework.context import UsageError, new_progress
from experiments.framework.record import Record, execute, finished, prepare_folder
from experiments.framework.report import Entry, write_report
from experiments.registry import EXPERIMENTS


@dataclasses.dataclass(frozen=True)
class List:
    """Name every experiment and what it shows."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Run one experiment; its own flags follow its name."""

    config: Any
    quick: bool = False
    """Start from the small sizes: the same claims in about a minute. Other flags still override them."""
    out: Path | None = None
    """Folder for claims.json, result.json and the figures. Default: runs/NAME."""
    strict: bool = False
    """Exit with status 1 when a claim fails."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Run every experiment and gather the claims in one HTML page and one JSON file."""

    quick: bool = False
    """Small sizes."""
    out: Path = Path("runs/report")
    """Folder for report.html, report.json and one subfolder per experiment."""
    fresh: bool = False
    """Run everything again. Without it, complete runs of the same config, code, versions and device are kept."""
    jobs: int = 1
    """Experiments that run at the same time, each in a process of its own; more than 1 needs a CPU."""
    strict: bool = False
    """Exit with status 1 when a claim fails."""


def main(argv: Sequence[str]) -> int:
    """Run a command line.

    Args:
        argv: Arguments after `python -m experiments`.

    Returns:
        Exit status: 0 when it ran, whatever the verdicts; 1 for a failed claim under `--strict` or for an experiment
        that broke inside a report; 2 for a mistake on the command line; 130 when interrupted.
    """
    console = Console(width=None if sys.stdout.isatty() else 110)
    command = shlex.join(["python", "-m", "experiments", *argv])
    try:
        commands = _commands(quick="--quick" in argv)
        options = tyro.cli(commands, args=list(argv), prog="python -m experiments", config=_MARKERS)
        if isinstance(options, Run):
            return _run(options, command, console)
        return _report(options, command, console) if isinstance(options, Report) else _list(console)
    except UsageError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        return 2
    except SystemExit as end:  # tyro has already printed the help or the mistake
        return end.code if isinstance(end.code, int) else 2
    except KeyboardInterrupt:
        console.print("Interrupted.")
        return 130


_MARKERS = (
    tyro.conf.CascadeSubcommandArgs,
    tyro.conf.OmitArgPrefixes,
    tyro.conf.OmitSubcommandPrefixes,
    tyro.conf.FlagCreatePairsOff,
)


def _commands(*, quick: bool) -> Any:
    """The type that tyro parses: the three commands, `run` with one subcommand per experiment."""
    configs = tuple(
        Annotated[
            experiment.Config,
            tyro.conf.subcommand(
                name, default=default_config(name, quick=quick), description=inspect.getdoc(experiment)
            ),
        ]
        for name, experiment in EXPERIMENTS.items()
    )
    run = dataclasses.make_dataclass("Run", [("config", Union[configs])], bases=(Run,), frozen=True)  # noqa: UP007
    run.__doc__ = Run.__doc__
    commands = {"list": List, "run": run, "report": Report}
    return Union[tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in commands.items())]  # noqa: UP007


def default_config(name: str, *, quick: bool) -> Any:
    """The experiment's default settings, or the small ones."""
    config = EXPERIMENTS[name].Config
    return config.quick() if quick else config()


def _list(console: Console) -> int:
    table = Table("name", "what it shows")
    for name in EXPERIMENTS:
        table.add_row(name, summary(name))
    console.print(table)
    console.print(
        "Run one: python -m experiments run NAME --quick      Its flags: python -m experiments run NAME --help"
    )
    return 0


def summary(name: str) -> str:
    """First line of the experiment's docstring."""
    return (inspect.getdoc(EXPERIMENTS[name]) or "").split("\n")[0]


def _run(options: Run, command: str, console: Console) -> int:
    name = next(name for name, experiment in EXPERIMENTS.items() if type(options.config) is experiment.Config)
    out = options.out or Path("runs") / name
    record = execute(name, options.config, out=out, quick=options.quick, command=command, console=console)
    console.print(claims_table({name: record.claims}))
    console.print(f"Wrote claims.json, result.json and {len(record.result['figures'])} figures (SVG, PNG) to {out}.")
    return _status([record], strict=options.strict)


def _report(options: Report, command: str, console: Console) -> int:
    if options.jobs < 1 or (options.jobs > 1 and jax.default_backend() != "cpu"):
        raise UsageError(f"--jobs must be at least 1, and 1 on an accelerator, got {options.jobs}.")
    prepare_folder(options.out)
    if options.jobs > 1:
        _run_ahead(options, console)
        options = dataclasses.replace(options, fresh=False)
    entries, records = [], []
    for name in EXPERIMENTS:
        try:
            record = _kept_or_run(name, options, command, console)
            records.append(record)
            entries.append(Entry(name, summary(name), record, None))
        except Exception:  # one broken experiment must not lose the others' results
            console.print(f"[bold red]{name} broke[/]; the report goes on without it.")
            entries.append(Entry(name, summary(name), None, traceback.format_exc()))
    page = write_report(entries, out=options.out, command=command)
    console.print(claims_table({name: record.claims for name, _, record, _ in entries if record}))
    console.print(f"Wrote {page} and report.json.")
    return 1 if len(records) < len(entries) else _status(records, strict=options.strict)


def _run_ahead(options: Report, console: Console) -> None:
    """Run what is not complete, several at a time; what breaks is left for the report to run again and describe."""

    def run(name: str) -> None:
        began, out = time.perf_counter(), options.out / name
        if not options.fresh and finished(name, default_config(name, quick=options.quick), out) is not None:
            return
        prepare_folder(out)
        (out / "claims.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "experiments", "run", name, "--out", str(out)]
        with (out / "run.log").open("w") as log:
            child = subprocess.run([*command, *["--quick"] * options.quick], stdout=log, stderr=subprocess.STDOUT)
        ended = "done" if child.returncode == 0 else f"ended with status {child.returncode}, see {out / 'run.log'}"
        console.print(f"{name}: {ended} after {time.perf_counter() - began:.0f} s")

    with new_progress(console) as progress, ThreadPoolExecutor(options.jobs) as pool:
        task = progress.add_task(
            f"{len(EXPERIMENTS)} experiments, {options.jobs} at a time", total=len(EXPERIMENTS), note=""
        )
        # The table begins with the short ones: begun with the long ones, no core waits for one of them at the end.
        running = [pool.submit(run, name) for name in reversed(EXPERIMENTS)]
        for done in as_completed(running):
            done.result()
            progress.advance(task)


def _kept_or_run(name: str, options: Report, command: str, console: Console) -> Record:
    config, out = default_config(name, quick=options.quick), options.out / name
    kept = None if options.fresh else finished(name, config, out)
    if kept is not None:
        console.print(f"{name}: kept the complete run in {out} (--fresh runs it again).")
        return kept
    console.print(f"{name}: {summary(name)}")
    return execute(name, config, out=out, quick=options.quick, command=command, console=console)


def claims_table(claims_by_experiment: dict[str, list[dict[str, Any]]]) -> Table:
    """Predicted, measured and verdict of every claim, for the terminal."""
    table = Table("claim", "predicted", "measured", "95% interval", "tolerance", "verdict", box=box.SIMPLE_HEAD)
    colors = {"pass": "green", "fail": "bold red", "assumption-not-met": "yellow"}
    for name, claims in claims_by_experiment.items():
        table.add_row(f"[bold]{name}[/]")
        for claim in claims:
            low, high = claim["interval"]
            interval = "exact" if low == high else f"\\[{number(low)}, {number(high)}]"
            verdict = f"[{colors[claim['verdict']]}]{claim['verdict']}[/]"
            numbers = [number(claim[key]) for key in ("predicted", "measured")]
            table.add_row(claim["id"], *numbers, interval, number(claim["tolerance"]), verdict)
        table.add_section()
    return table


def number(value: float | None) -> str:
    """A number as a reader wants it: five significant digits."""
    return "not finite" if value is None else f"{value:.5g}"


def _status(records: list[Record], *, strict: bool) -> int:
    failed = any(claim["verdict"] == "fail" for record in records for claim in record.claims)
    return 1 if strict and failed else 0
