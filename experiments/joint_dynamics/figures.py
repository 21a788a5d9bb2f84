"""Figures of `joint_dynamics`, as the paper draws them."""

import numpy as np
from matplotlib.figure import Figure

from experiments.framework import plotting
from experiments.framework.statistics import mean_over_seeds
from experiments.joint_dynamics.study import Result


def plot(result: Result) -> dict[str, Figure]:
    """The paper's Figures 2, 3 and 4, and the winner of the linear case.

    Args:
        result: From `run`.

    Returns:
        Figures by file stem.
    """
    return {
        "figure_2_invariant": plot_invariant(result),
        "figure_3_growth": plot_growth(result),
        "figure_4_entropy": plot_entropy(result),
        "linear_winner": plot_winner(result),
    }


def plot_invariant(result: Result) -> Figure:
    """Correlations between z and what the perceptron says of it, whole and by term."""
    figure, panels = plotting.new_figure(len(result.descents), width=5.2)
    for axes, (name, descent) in zip(panels, result.descents.items(), strict=True):
        curves = {"both terms": descent.correlations, "first term": descent.parts[0], "second term": descent.parts[1]}
        for color, (label, curve) in zip(plotting.COLORS, curves.items(), strict=False):
            estimate = mean_over_seeds(curve)
            axes.plot(estimate.mean, color=color, label=label)
            axes.fill_between(np.arange(curve.shape[1]), estimate.low, estimate.high, color=color, alpha=0.2)
        axes.axhline(1.0, color="gray", linestyle=":")
        axes.set_ylim(-0.05, 1.05)
        plotting.label(axes, "step", "correlation with z", f"{name} frequencies")
    return figure


def plot_growth(result: Result) -> Figure:
    """Weights from the first contextual tokens to the first class."""
    figure, axes = plotting.new_figure()
    for color, (token, weights) in zip(plotting.COLORS, enumerate(result.descents["smooth"].first.T), strict=False):
        axes.plot(weights, color=color, label=f"token {token + 1}")
    plotting.label(axes, "step", "weight to the first class", "The most salient token grows longest")
    return figure


def plot_entropy(result: Result) -> Figure:
    """The nonlinear unit: its weights as time goes on, and the entropy of its attention."""
    unit = result.unit
    figure, (left, right) = plotting.new_figure(2, width=5.2)
    tokens = np.arange(1, unit.mu.shape[1] + 1)
    for moment in range(0, len(unit.times), 5):
        shade = 0.85 * (1 - moment / len(unit.times))
        left.plot(tokens, unit.weights[0, moment], color=(shade, shade, 1.0))
    left.plot(tokens, unit.mu[0], "k--", label="mu")
    plotting.label(left, "token, by mu", "v", "Later is darker")
    right.plot(unit.times, unit.entropies.T, color=plotting.COLORS[0], alpha=0.5)
    plotting.label(right, "time", "entropy of attention, nats", "Sparse, then dense")
    return figure


def plot_winner(result: Result) -> Figure:
    """The linear unit up to its blow-up."""
    figure, axes = plotting.new_figure()
    axes.plot(result.winner.times, result.winner.weights, color=plotting.COLORS[1], alpha=0.8)
    plotting.label(axes, "time over the blow-up time", "v", "Without activation, the winner takes all")
    return figure
