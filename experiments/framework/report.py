"""The report: one self-contained HTML page and one JSON file."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from experiments.framework.record import Record, device, versions


class Entry(NamedTuple):
    """One experiment's place in the report: either a record or the traceback that it ended in."""

    name: str
    summary: str
    record: Record | None
    error: str | None


def write_report(entries: list[Entry], *, out: Path, command: str) -> Path:
    """Write `report.json` and `report.html`.

    Args:
        entries: One per experiment.
        out: Folder to write to.
        command: The command line that made the report.

    Returns:
        Path of the page.
    """
    document = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": versions(),
        "device": device(),
        "experiments": [_as_dict(entry) for entry in entries],
    }
    (out / "report.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = lambda value: "not finite" if value is None else f"{value:.5g}"
    figures = {entry.name: _inline_figures(entry.record) for entry in entries if entry.record}
    page = environment.get_template("report.html.jinja").render(
        **document, figures=figures, tally=_tally(document["experiments"])
    )
    (out / "report.html").write_text(page, encoding="utf-8")
    return out / "report.html"


def _as_dict(entry: Entry) -> dict[str, Any]:
    record = entry.record
    run = (
        {
            "claims": record.claims,
            **{
                key: record.result[key]
                for key in ("config", "seed", "quick", "command", "timings", "versions", "device")
            },
        }
        if record
        else {"claims": []}
    )
    return {"name": entry.name, "summary": entry.summary, "error": entry.error, **run}


def _tally(experiments: list[dict[str, Any]]) -> dict[str, int]:
    verdicts = [claim["verdict"] for experiment in experiments for claim in experiment["claims"]]
    return {verdict: verdicts.count(verdict) for verdict in ("pass", "fail", "assumption-not-met")}


def _inline_figures(record: Record) -> dict[str, str]:
    """Each figure's SVG element, without the XML prologue, which HTML does not allow inside a page."""
    texts = {stem: (record.out / f"{stem}.svg").read_text(encoding="utf-8") for stem in record.result["figures"]}
    return {
        stem: _with_own_ids(text[text.index("<svg") :], prefix=f"{record.out.name}-{stem}")
        for stem, text in texts.items()
    }


def _with_own_ids(svg: str, *, prefix: str) -> str:
    """Drop the metadata and prefix every id and reference to one: figures on the same page must not share them."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
