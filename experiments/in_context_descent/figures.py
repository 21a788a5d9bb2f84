"""Figures of `in_context_descent`: the trained layers beside steps of gradient descent, the rate, wider inputs."""

import numpy as np
from matplotlib.figure import Figure

from experiments.framework import plotting
from experiments.framework.statistics import mean_over_seeds
from experiments.in_context_descent.study import PIECES, Result, one_step_risk_at


def plot(result: Result) -> dict[str, Figure]:
    """Risk as training goes on, risk over the rate of one step, risk on wider inputs.

    Args:
        result: From `run`.

    Returns:
        Figures by file stem.
    """
    found = {"figure_2_training": plot_training(result), "rate_scan": plot_scan(result)}
    if 1 in result.trained:
        found["wider_inputs"] = plot_wider(result)
    return found


def plot_training(result: Result) -> Figure:
    """Test risk as training goes on, and the least that so many steps can reach."""
    figure, axes = plotting.new_figure()
    steps = result.config.steps * np.arange(1, PIECES + 1) / PIECES
    for color, trained in zip(plotting.COLORS, result.trained.values(), strict=False):
        name = "1 layer" if trained.layers == 1 else f"{trained.layers} layers"
        plotting.estimated(axes, steps, mean_over_seeds(trained.risks), name, color)
        axes.axhline(trained.plain, color=color, label=f"{trained.layers} x GD, {trained.plain:.4f}")
        if trained.layers > 1:
            axes.axhline(trained.moving, color=color, ls="--", label=f"{trained.layers} x GD++, {trained.moving:.4f}")
    plotting.label(axes, "step of Adam", "risk", "Trained layers and steps of gradient descent")
    return figure


def plot_scan(result: Result) -> Figure:
    """Risk of one step over its rate."""
    figure, axes = plotting.new_figure()
    fine = np.linspace(0, result.scan.rates[-1], 200)
    plotting.theory(axes, fine, one_step_risk_at(fine, result.config), label="closed form")
    plotting.estimated(axes, result.scan.rates, mean_over_seeds(result.scan.risks), "on samples")
    axes.axvline(result.scan.best, color="gray", linestyle=":", label=f"best, {result.scan.best:.4g}")
    plotting.label(axes, "rate", "risk", "One step of gradient descent")
    return figure


def plot_wider(result: Result) -> Figure:
    """Risk of the trained layer on inputs of another width."""
    figure, axes = plotting.new_figure()
    config, trained = result.config, result.trained[1]
    fine = np.linspace(min(0.25, *config.test_scales), max(config.test_scales), 200)
    curve = np.array([one_step_risk_at(result.scan.best, config, scale) for scale in fine])
    plotting.theory(axes, fine, curve, label="one step of the best rate, closed form")
    plotting.estimated(axes, np.array(config.test_scales), mean_over_seeds(trained.scaled), "1 trained layer")
    axes.axvline(1.0, color="gray", linestyle=":", label="training")
    axes.set_yscale("log")
    plotting.label(axes, "width of the inputs over that of training", "risk", "Inputs of another width")
    return figure
