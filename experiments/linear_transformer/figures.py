"""Figures of `linear_transformer`: depth, weights, optimizers, noise."""

import numpy as np
from matplotlib.figure import Figure

from experiments.framework import plotting
from experiments.framework.statistics import mean_over_seeds
from experiments.linear_transformer.study import Result


def plot(result: Result) -> dict[str, Figure]:
    """Loss by depth, weights at the end, both optimizers, the gradient's noise.

    Args:
        result: From `run`.

    Returns:
        Figures by file stem.
    """
    return {
        "loss_by_depth": plot_depth(result),
        "weights": plot_weights(result),
        "adam_and_sgd": plot_optimizers(result),
        "gradient_noise": plot_noise(result),
    }


def plot_depth(result: Result) -> Figure:
    """Test loss as training goes on, and the least that so many steps can reach."""
    figure, axes = plotting.new_figure()
    for color, (layers, trained) in zip(plotting.COLORS, result.deep.items(), strict=False):
        plotting.estimated(axes, trained.steps, mean_over_seeds(trained.losses), f"{layers} layers", color)
        plain, moving = result.least[layers]
        axes.axhline(moving, color=color, label=f"{layers} steps that move inputs, {moving:.4f}")
        axes.axhline(plain, color=color, linestyle=":")
    axes.set_yscale("log")
    plotting.label(axes, "step of Adam", "loss", "Dotted: plain gradient descent")
    return figure


def plot_weights(result: Result) -> Figure:
    """Blocks of W_KQ and W_PV of the deepest layers, first seed."""
    trained = result.deep[max(result.deep)]
    figure, panels = plotting.new_figure(2 * trained.layers, width=2.3, height=2.5)
    for index in range(trained.layers):
        for axes, name, block in (
            (panels[2 * index], "Q", trained.q[0, index]),
            (panels[2 * index + 1], "P", trained.p[0, index]),
        ):
            bound = np.abs(block).max()
            axes.imshow(block, cmap="RdBu_r", vmin=-bound, vmax=bound)
            axes.set_title(f"layer {index + 1}: {name}, up to {bound:.2f}", fontsize=8)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(False)
    return figure


def plot_optimizers(result: Result) -> Figure:
    """Test loss of both optimizers, by law of inputs."""
    figure, panels = plotting.new_figure(len(result.compared), width=5.2)
    for axes, (name, compared) in zip(np.atleast_1d(panels), result.compared.items(), strict=True):
        for color, label, trained in zip(
            plotting.COLORS, ("Adam", "SGD, momentum 0.9"), (compared.adam, compared.sgd), strict=False
        ):
            plotting.estimated(axes, trained.steps, mean_over_seeds(trained.losses), label, color)
        axes.set_yscale("log")
        plotting.label(axes, "step", "loss", f"{name} inputs")
    return figure


def plot_noise(result: Result) -> Figure:
    """How often the gradient's noise is larger than a multiple of its median."""
    figure, axes = plotting.new_figure()
    for color, (name, compared) in zip(plotting.COLORS, result.compared.items(), strict=False):
        larger = 1 - np.arange(len(compared.noise)) / len(compared.noise)
        axes.loglog(compared.noise, larger, color=color, label=f"{name} inputs")
    plotting.label(axes, "norm of the gradient's noise over its median", "share that is larger", "At the start")
    return figure
