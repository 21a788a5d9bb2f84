"""Figures of `loss_plateau`."""

import numpy as np
from matplotlib.figure import Figure

from experiments.framework import plotting
from experiments.framework.statistics import mean_over_seeds
from experiments.loss_plateau.study import Result


def plot(result: Result) -> dict[str, Figure]:
    """The plateau and what happens on it, attention at the end, the interventions.

    Args:
        result: From `run`.

    Returns:
        Figures by file stem.
    """
    return {
        "plateau": plot_plateau(result),
        "attention": plot_attention(result),
        "interventions": plot_interventions(result),
    }


def plot_plateau(result: Result) -> Figure:
    """Loss with the predicted height; accuracy, progress of attention, repetition and collapse."""
    watched = result.watched[1.0]
    figure, (left, right) = plotting.new_figure(2, width=5.6)
    plotting.estimated(left, watched.steps, mean_over_seeds(watched.losses), "loss over the sums")
    left.axhline(result.height, color=plotting.COLORS[0], label=f"plateau, {result.height:.3f}")
    plotting.label(left, "step", "nats", "Loss")
    series = {
        "accuracy": watched.accuracies,
        "attention where needed": watched.progress,
        "repetition": watched.repetitions,
        "cosine of hidden states": watched.collapse,
    }
    for color, (name, values) in zip(plotting.COLORS, series.items(), strict=False):
        estimate = mean_over_seeds(values)
        right.plot(watched.steps, estimate.mean, color=color, label=name)
        right.fill_between(watched.steps, estimate.low, estimate.high, color=color, alpha=0.2)
    right.axhline(result.repetition, color="gray", linestyle=":", label="repetition of right sums")
    right.set_ylim(-0.05, 1.05)
    plotting.label(right, "step", "", "Meanwhile")
    return figure


def plot_attention(result: Result) -> Figure:
    """Mean attention of the first seed at the end, rows that write sums."""
    figure, axes = plotting.new_figure()
    rows = result.attention[result.config.length :]
    bound = np.abs(rows).max()
    axes.imshow(rows, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto")
    axes.grid(False)
    plotting.label(axes, "position attended to", "sum being written", "Attention at the end")
    return figure


def plot_interventions(result: Result) -> Figure:
    """Loss by the factor of needed attention."""
    figure, axes = plotting.new_figure()
    for color, (factor, watched) in zip(plotting.COLORS, sorted(result.watched.items()), strict=False):
        estimate = mean_over_seeds(watched.losses)
        axes.plot(watched.steps, estimate.mean, color=color, label=f"needed attention x {factor:g}")
        axes.fill_between(watched.steps, estimate.low, estimate.high, color=color, alpha=0.2)
    plotting.label(axes, "step", "loss over the sums, nats", "Attention made larger or smaller while training")
    return figure
