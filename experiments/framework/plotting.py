"""One look for every figure: theory is a line, a measurement is a point with an error bar."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from experiments.framework.statistics import Estimate

COLORS = ("#2563eb", "#d9480f", "#2b8a3e", "#862e9c", "#0b7285", "#a61e4d")  # distinguishable on white, also in print

_STYLE: dict[Any, Any] = {
    "figure.figsize": (6.4, 4.0),
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "axes.prop_cycle": cycler(color=COLORS),
}


def new_figure(columns: int = 1, *, width: float = 6.4, height: float = 4.0) -> tuple[Figure, Any]:
    """A figure in the house style and its axes (an array of them when `columns > 1`)."""
    with matplotlib.rc_context(_STYLE):  # not through pyplot, which would keep every figure and pick a backend
        figure = Figure(figsize=(width * columns, height))
        return figure, figure.subplots(1, columns)


def theory(axes: Axes, x: np.ndarray, y: np.ndarray, *, label: str, color: str = COLORS[0], **style: Any) -> None:
    """A predicted curve."""
    axes.plot(x, y, color=color, linewidth=1.8, label=label, zorder=2, **style)


def measured(
    axes: Axes, x: np.ndarray, y: np.ndarray, *, low: np.ndarray, high: np.ndarray, label: str, color: str = COLORS[1]
) -> None:
    """Measured points with their confidence interval."""
    errors = np.abs(np.stack([np.asarray(y) - low, np.asarray(high) - y]))
    axes.errorbar(
        x, y, yerr=errors, fmt="o", markersize=4.5, capsize=2.5, linewidth=1.2, color=color, label=label, zorder=3
    )


def estimated(axes: Axes, x: np.ndarray, estimate: Estimate, label: str, color: str = COLORS[1]) -> None:
    """Means over seeds with their confidence interval."""
    measured(axes, x, estimate.mean, low=estimate.low, high=estimate.high, label=label, color=color)


def label(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Name the axes with their units, and show the legend."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    if axes.get_legend_handles_labels()[1]:
        axes.legend()


def save(figures: dict[str, Figure], out: Path) -> list[str]:
    """Write each figure as SVG and PNG.

    Args:
        figures: File stem to figure.
        out: Folder to write to.

    Returns:
        The file stems, in order.
    """
    for stem, figure in figures.items():
        with matplotlib.rc_context({**_STYLE, "svg.hashsalt": stem}):
            figure.savefig(out / f"{stem}.svg", metadata={"Date": None})
            figure.savefig(out / f"{stem}.png")
    return list(figures)
