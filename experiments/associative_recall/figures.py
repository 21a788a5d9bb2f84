"""Figures of `associative_recall`."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.associative_recall.study import Result
from experiments.framework import plotting
from experiments.framework.statistics import mean_over_seeds

MARKERS = "osD^vP*Xd"


def plot(result: Result) -> dict[str, Figure]:
    """Accuracy against the state; learning at the greatest width.

    Args:
        result: From `run`.

    Returns:
        Figures by file stem.
    """
    return {"state": plot_state(result), "learning": plot_learning(result)}


def plot_state(result: Result) -> Figure:
    """Accuracy at the end against how many numbers are kept of a sequence, widths joined by lines."""
    config = result.config
    figure, axes = plotting.new_figure(width=7.4, height=4.4)
    for number, (family, courses) in enumerate(result.courses.items()):
        states = np.array([course.state for course in courses.values()])
        finals = mean_over_seeds(np.stack([course.final(config.window) for course in courses.values()], 1))
        errors = np.abs(np.stack([finals.mean - finals.low, finals.high - finals.mean]))
        style = {"color": plotting.COLORS[number % len(plotting.COLORS)], "marker": MARKERS[number % len(MARKERS)]}
        axes.errorbar(states, finals.mean, yerr=errors, capsize=2.5, linewidth=1.2, label=_name(family), **style)
    axes.set_xscale("log")
    _chance(axes, result)
    title = f"{config.pairs} pairs in {config.length} tokens, widths {', '.join(map(str, config.widths))}"
    plotting.label(axes, "numbers kept of a sequence", "accuracy", title)
    axes.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def plot_learning(result: Result) -> Figure:
    """Accuracy over training at the greatest width."""
    config = result.config
    window = max(1, config.steps // 40)
    figure, axes = plotting.new_figure(width=7.4, height=4.4)
    for number, (family, courses) in enumerate(result.courses.items()):
        smooth = courses[config.widths[-1]].smooth(window)
        steps = window * (1 + np.arange(smooth.shape[1]))
        color = plotting.COLORS[number % len(plotting.COLORS)]
        dashes = ("-", "--")[number // len(plotting.COLORS)]
        axes.plot(steps, smooth.mean(0), color=color, linestyle=dashes, label=_name(family))
        axes.fill_between(steps, smooth.min(0), smooth.max(0), color=color, alpha=0.12)
    _chance(axes, result)
    plotting.label(axes, "step", "accuracy", f"Width {config.widths[-1]}; shaded: all seeds")
    axes.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _name(family: str) -> str:
    return family.replace("_", " ")


def _chance(axes: Axes, result: Result) -> None:
    config = result.config
    axes.set_ylim(0, 1.03)
    axes.axhline(result.guessing, color="black", linewidth=1, label="best guess from the position")
    axes.axhline(1 / config.pairs, color="black", linewidth=1, linestyle="--", label="one of the values shown")
    axes.axhline(2 / config.vocabulary, color="black", linewidth=1, linestyle=":", label="one of all values")
