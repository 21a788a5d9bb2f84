"""Figures of `memory_capacity`: laws are lines."""

import numpy as np
from matplotlib.figure import Figure

from attnjax.linear import memory_theory as theory
from experiments.framework import plotting
from experiments.framework.statistics import mean_over_seeds
from experiments.memory_capacity.learning import curve_law
from experiments.memory_capacity.recall import MECHANISMS
from experiments.memory_capacity.storing import average_capacity
from experiments.memory_capacity.study import Result


def plot(result: Result) -> dict[str, Figure]:
    """Capacity over width, noise over load, corrections, recall, learning curves and chunks.

    Args:
        result: From `run`.

    Returns:
        Figures by file stem.
    """
    return {
        "capacity": plot_capacity(result),
        "noise": plot_noise(result),
        "corrections": plot_corrections(result),
        "recall": plot_recall(result),
        "learning": plot_learning(result),
        "chunks": plot_chunks(result),
    }


def plot_capacity(result: Result) -> Figure:
    """How many pairs fit, on average and for certain."""
    figure, axes = plotting.new_figure()
    widths = np.array(result.config.widths)
    smooth = np.geomspace(widths[0], widths[-1], 50)
    average = [average_capacity(result.config.counts(w), x) for w, x in zip(widths, result.noise, strict=True)]
    lines = {
        "error 1/4 on average: 1 + d / 4": (np.array([theory.capacity(d) for d in smooth]), average),
        "no error for certain: as root d": (np.array([theory.guaranteed_capacity(d) for d in smooth]), result.safe),
    }  # fmt: skip
    for color, (name, (law, samples)) in zip(plotting.COLORS, lines.items(), strict=False):
        plotting.theory(axes, smooth, law, label=name, color=color)
        plotting.estimated(axes, widths, mean_over_seeds(np.stack(samples, 1)), "", color)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    plotting.label(axes, "d, entries of a key", "pairs", "How many pairs a matrix holds. Points: measured")
    return figure


def plot_noise(result: Result) -> Figure:
    """Squared error of Hebb's sum over its load, and of averaged heads."""
    config = result.config
    figure, (left, right) = plotting.new_figure(2, width=5.0)
    loads = np.geomspace(min(config.loads) / 1.3, max(config.loads) * 1.3, 20)
    plotting.theory(left, loads, loads, label="(n - 1) / d", color="0.4")
    for color, width, errors in zip(plotting.COLORS[1:], config.widths, result.noise, strict=False):
        at = (np.array(config.counts(width)) - 1) / width
        plotting.estimated(left, at, mean_over_seeds(errors), f"d = {width}", color)
    half = 1 + config.width // 2
    law = [theory.sum_noise(half, config.width, h) for h in config.heads]
    plotting.theory(right, np.array(config.heads), np.array(law), label="(n - 1) / (d H)")
    plotting.estimated(right, np.array(config.heads), mean_over_seeds(result.heads), f"d = {config.width}, n = {half}")
    for axes, x, title in ((left, "(n - 1) / d", "One head"), (right, "heads", "Heads averaged")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        plotting.label(axes, x, "squared error of a read", title)
    return figure


def plot_corrections(result: Result) -> Figure:
    """Mean squared error of the delta rule and of Hebb's sum over the number of pairs."""
    figure, axes = plotting.new_figure()
    config = result.config
    counts = np.array(config.delta_pairs)
    smooth = np.unique(np.geomspace(counts[0], counts[-1], 24).astype(int)).tolist()
    laws = {
        "hebb": [theory.sum_noise(n, config.width) for n in smooth],
        "delta": [theory.delta_noise(n, config.width).mean() for n in smooth],
    }
    names = {"hebb": "Hebb's sum", "delta": "delta rule"}
    for color, (name, law) in zip(plotting.COLORS, laws.items(), strict=False):
        plotting.theory(axes, np.array(smooth), np.array(law), label=names[name], color=color)
        plotting.estimated(axes, counts, mean_over_seeds(np.nanmean(result.corrected[name], 2)), "", color)
    first = np.array([np.mean(1 - (1 - 1 / config.width) ** np.arange(n)) for n in smooth])
    plotting.theory(axes, np.array(smooth), first, label="delta rule, to first order", color="0.6", linestyle="--")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    plotting.label(axes, "pairs", "mean squared error", f"d = {config.width}. Lines: laws. Points: measured")
    return figure


def plot_recall(result: Result) -> Figure:
    """Share of words found again, one panel per width."""
    config = result.config
    figure, panels = plotting.new_figure(len(config.recall_widths), width=5.0)
    panels = np.atleast_1d(panels)
    for axes, width, table, law in zip(panels, config.recall_widths, result.recall, result.recall_law, strict=True):
        for i, (color, name) in enumerate(zip(plotting.COLORS, MECHANISMS, strict=False)):
            plotting.theory(axes, np.array(config.recall_pairs), law[i], label=name, color=color)
            plotting.estimated(axes, np.array(config.recall_pairs), mean_over_seeds(table.all[:, i]), "", color)
        axes.set_xscale("log", base=2)
        plotting.label(axes, "pairs", "share of words found", f"d = {width}. Lines: from the noise of each kernel")
        axes.legend(loc="center left")
    return figure


def plot_learning(result: Result) -> Figure:
    """Relative error through a change of task."""
    figure, axes = plotting.new_figure()
    config = result.config
    steps = np.arange(1, 2 * config.learning_steps + 1)
    every = slice(0, None, max(1, len(steps) // 24))
    for color, forget, samples in zip(plotting.COLORS, (0.0, config.forget), result.curves, strict=False):
        law = curve_law(config.learning_steps, config.learning_width, config.learning_rate, forget)
        plotting.theory(axes, steps, law, label=f"weight decay {forget:g}", color=color)
        estimate = mean_over_seeds(samples[:, every])
        plotting.estimated(axes, steps[every], estimate, "", color)
    axes.set_yscale("log")
    plotting.label(
        axes, "tokens", "relative squared error", "A linear memory learns while it reads, then the task changes"
    )
    return figure


def plot_chunks(result: Result) -> Figure:
    """Distance of a perceptron memory in chunks from the exact one."""
    figure, axes = plotting.new_figure()
    sizes = np.array(result.config.chunk_sizes)
    plotting.estimated(axes, sizes, mean_over_seeds(result.chunks), "perceptron memory")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    plotting.label(axes, "tokens in a chunk", "relative distance", "Gradients before each chunk are another memory")
    return figure
