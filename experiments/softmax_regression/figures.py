"""Figures of `softmax_regression`: circuits as the paper shows them, losses over time and over lengths."""

import numpy as np
from matplotlib.figure import Figure

from experiments.framework import plotting
from experiments.framework.statistics import mean_over_seeds
from experiments.softmax_regression.study import PIECES, Result


def plot(result: Result) -> dict[str, Figure]:
    """Circuits, loss as training goes on, loss over prompt lengths, the rates of two tasks.

    Args:
        result: From `run`.

    Returns:
        Figures by file stem.
    """
    return {
        "figure_1_circuits": plot_circuits(result),
        "loss_over_time": plot_losses(result),
        "loss_by_length": plot_lengths(result),
    } | ({"two_tasks": plot_shared(result)} if result.shared else {})


def plot_circuits(result: Result) -> Figure:
    """KQ and OV of the first seed's heads, for the second number of heads (or the only one)."""
    setting = list(result.isotropic.values())[:2][-1]
    heads = min(setting.heads, 4)
    figure, panels = plotting.new_figure(2 * heads, width=2.4, height=2.6)
    for head in range(heads):
        for axes, name, matrix in (
            (panels[2 * head], "KQ", setting.kq[0, head]),
            (panels[2 * head + 1], "OV", setting.ov[0, head][None]),
        ):
            bound = np.abs(matrix).max()
            axes.imshow(matrix, cmap="RdBu_r", vmin=-bound, vmax=bound)
            axes.set_title(f"head {head + 1}: {name}, up to {bound:.2f}", fontsize=8)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(False)
    return figure


def plot_losses(result: Result) -> Figure:
    """Test loss as training goes on, and the least that one head and a pair can reach."""
    figure, axes = plotting.new_figure()
    noise, config = result.config.noise_variance, result.config
    steps = config.steps * np.arange(1, PIECES + 1) / PIECES
    for color, setting in zip(plotting.COLORS, result.isotropic.values(), strict=False):
        estimate = mean_over_seeds(setting.risks + noise)
        plotting.estimated(axes, steps, estimate, f"{setting.heads} heads", color)
    lines = {"one head": result.single.risk, "a pair": result.pair.risk, "ridge": result.ridge}
    for style, (name, risk) in zip(("-", "--", ":"), lines.items(), strict=True):
        axes.axhline(risk + noise, color="gray", linestyle=style, label=f"{name}, at best {risk + noise:.4f}")
    plotting.label(axes, "step", "loss", "Softmax heads on regression")
    return figure


def plot_lengths(result: Result) -> Figure:
    """Loss by prompt length: the measured strengths' own prediction through the measured points."""
    figure, axes = plotting.new_figure()
    noise = result.config.noise_variance
    for color, setting in zip(plotting.COLORS, result.isotropic.values(), strict=False):
        order = np.argsort(setting.lengths)
        lengths = np.array(setting.lengths)[order]
        plotting.theory(axes, lengths, (setting.predicted_by_length.mean(0) + noise)[order], label="", color=color)
        estimate = mean_over_seeds((setting.risks_by_length + noise)[:, order])
        plotting.estimated(axes, lengths, estimate, f"{setting.heads} heads", color)
    axes.axvline(result.config.length, color="gray", linestyle=":", label="training length")
    axes.set_xscale("log")
    plotting.label(axes, "examples in a prompt", "loss", "Lines: heads of the measured strengths")
    return figure


def plot_shared(result: Result) -> Figure:
    """Rates of both tasks on every input: the best that so many heads can take, and what every seed's heads take."""
    figure, panels = plotting.new_figure(len(result.shared), width=3.2)
    for axes, shared in zip(np.atleast_1d(panels), result.shared.values(), strict=True):
        inputs = np.arange(shared.best.shape[1]) + 1
        for task, color in enumerate(plotting.COLORS[: len(shared.best)]):
            plotting.theory(axes, inputs, shared.best[task], label=f"task {task + 1}", color=color)
            for taken in shared.taken[:, task]:
                axes.plot(inputs, taken, "o", color=color, markersize=4, fillstyle="none")
        plotting.label(axes, "input", "rate", f"{shared.heads} heads")
    return figure
