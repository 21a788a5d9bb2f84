"""Every notebook is its percent script, without outputs, and imports what it names."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "colab").glob("*.py"))


def cells_of(script: str) -> list[tuple[str, str]]:
    """Kind and source of every cell of a percent script."""
    found = []
    for part in script.split("# %%")[1:]:
        head, _, body = part.partition("\n")
        if head.strip() == "[markdown]":
            lines = [line.removeprefix("# ").removeprefix("#") for line in body.strip().splitlines()]
            found.append(("markdown", "\n".join(lines)))
        else:
            found.append(("code", body.strip()))
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebook_is_its_script(script):
    notebook = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert cells == cells_of(script.read_text(encoding="utf-8")), "run: jupytext --to ipynb colab/*.py"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)


def test_every_notebook_has_its_script():
    assert {path.stem for path in (ROOT / "colab").glob("*.ipynb")} == {path.stem for path in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_first_cells_say_and_install(script):
    (kind, claim), (_, install), *_ = cells_of(script.read_text(encoding="utf-8"))
    assert kind == "markdown"
    assert {"**Claim**", "**Time**", "arXiv"} <= {word for word in ("**Claim**", "**Time**", "arXiv") if word in claim}
    assert "pip" in install
