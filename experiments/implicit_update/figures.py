"""Figures of `implicit_update`."""

import numpy as np
from matplotlib.figure import Figure

from experiments.framework import plotting
from experiments.framework.statistics import mean_over_seeds
from experiments.implicit_update.study import Result


def plot(result: Result) -> dict[str, Figure]:
    """Both losses while training; the implicit gradients by context token.

    Args:
        result: From `run`.

    Returns:
        Figures by file stem.
    """
    return {"losses": plot_losses(result), "implicit_gradients": plot_gradients(result)}


def plot_losses(result: Result) -> Figure:
    """Test loss in context, and without it with the update."""
    figure, axes = plotting.new_figure()
    plotting.theory(axes, result.steps, result.in_context.mean(axis=0), label="in context")
    plotting.estimated(axes, result.steps, mean_over_seeds(result.by_update), "without it, with the update")
    axes.set_yscale("log")
    plotting.label(axes, "step", "loss", "The update does what the context does")
    return figure


def plot_gradients(result: Result) -> Figure:
    """Norm of the implicit gradient by context token."""
    figure, axes = plotting.new_figure()
    tokens = np.arange(1, result.gradients.shape[1] + 1)
    plotting.estimated(axes, tokens, mean_over_seeds(result.gradients), "trained block")
    axes.set_yscale("log")
    plotting.label(axes, "context token", "norm of the implicit gradient", "Implicit descent settles")
    return figure
