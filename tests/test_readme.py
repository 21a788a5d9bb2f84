"""The README tells the truth: its examples run, its links lead somewhere, and it lists what there is."""

import re
from pathlib import Path

import pytest

import attnjax

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def python_blocks() -> list:
    """Every Python block, with the heading above it as its name."""
    found, heading = [], ""
    for match in re.finditer(r"^#+ (?P<heading>.*)$|^```python\n(?P<code>[\s\S]*?)^```$", TEXT, re.MULTILINE):
        if match["code"] is None:
            heading = match["heading"]
        else:
            found.append(pytest.param(match["code"], TEXT[: match.start("code")].count("\n"), id=heading))
    return found


@pytest.mark.parametrize(("code", "lines_above"), python_blocks())
def test_example_runs(code, lines_above):
    # Each block stands alone: a reader copies one, not all those above it.
    exec(compile("\n" * lines_above + code, ROOT / "README.md", "exec"), {"__name__": "readme"})


def test_local_links_exist():
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", TEXT)
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert missing == []


@pytest.mark.parametrize("room", ["masks", "scores", "normalizers", "statistics"])
def test_every_part_is_listed(room):
    names = [name for name in getattr(attnjax, room).__all__ if name[0].islower() and name != "named"]
    assert [name for name in names if f"`{name}`" not in TEXT] == []
