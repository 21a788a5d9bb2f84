"""Run an experiment from a notebook or a test and keep its result in memory."""

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from experiments.framework.claim import Claim
from experiments.framework.cli import claims_table
from experiments.framework.context import Context, new_progress


def run(experiment: Any, config: Any, out: Path | None = None) -> Any:
    """What the experiment's `run` returns.

    Args:
        experiment: A module such as `experiments.scan_and_snap`.
        config: An instance of its `Config`.
        out: Where it may write files of its own; None is a new temporary folder.

    Returns:
        The result, for the experiment's `claims` and `plot`.
    """
    _let_cells_show_figures()
    out = Path(tempfile.mkdtemp()) if out is None else out
    with new_progress() as progress:
        return experiment.run(config, Context(out=out, seed=config.seed, quick=False, progress=progress))


def table(claims: list[Claim], title: str = "") -> Table:
    """The claims as the command line prints them; a notebook shows it in color."""
    return claims_table({title: [claim.as_dict() for claim in claims]})


def _let_cells_show_figures() -> None:
    """In a notebook, a cell that ends with a figure shows it, also where pyplot has not been used yet."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        importlib.import_module("IPython.core.pylabtools").select_figure_formats(shell, {"png"})
