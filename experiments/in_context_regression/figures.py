"""Figures of `in_context_regression`: theory is a line through SGD's points."""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from attnjax.dynamics import linear_attention_theory as theory
from experiments.framework import plotting
from experiments.framework.statistics import mean_over_seeds
from experiments.in_context_regression.settings import ANISOTROPIC, ISOTROPIC, SETTINGS, Result, closed_form


def plot(result: Result) -> dict[str, Figure]:
    """Loss over time, the abrupt rise, and the risk by prompt length.

    Args:
        result: From `run`.

    Returns:
        Figures by file stem.
    """
    with jax.enable_x64(True):
        return {
            "loss_over_time": plot_loss(result),
            "abrupt_rise": plot_rise(result),
            "risk_by_length": plot_lengths(result),
        }


def plot_loss(result: Result) -> Figure:
    """Test loss of SGD over gradient flow's, one panel per setting."""
    figure, panels = plotting.new_figure(3, width=4.6)
    for index, axes in enumerate(panels):
        setting = result.settings[index]
        least = float(theory.minimal_loss(setting.task))
        axes.axhline(least, color="gray", linestyle=":", label=f"least possible, {least:.3f}")
        plotting.theory(axes, setting.times, setting.risks / 2, label="gradient flow (theory)")
        losses = mean_over_seeds(result.sgd.risks[index] / 2)
        plotting.estimated(
            axes, result.sgd.times[index, result.sgd.checkpoints], losses, f"SGD, {result.config.seeds} seeds, 95%"
        )
        axes.set_ylim(bottom=0)
        plotting.label(axes, "time: sum of the learning rates", "loss: half squared error", SETTINGS[index])
    return figure


def plot_rise(result: Result) -> Figure:
    """The isotropic product over time: logistic closed form through SGD's points."""
    figure, axes = plotting.new_figure()
    setting, sgd = result.settings[ISOTROPIC], result.sgd
    plotting.theory(axes, setting.times, closed_form(result.config, setting.times), label="closed form")
    products = mean_over_seeds(sgd.products[ISOTROPIC][:, sgd.checkpoints])
    plotting.estimated(axes, sgd.times[ISOTROPIC, sgd.checkpoints], products, "SGD, mean and 95%")
    plotting.label(axes, "time: sum of the learning rates", "product of the blocks, tr(w u) / D", "one abrupt rise")
    return figure


def plot_lengths(result: Result) -> Figure:
    """Risk by test length, theory through the points."""
    figure, axes = plotting.new_figure()
    setting, sgd = result.settings[ANISOTROPIC], result.sgd
    grid = np.geomspace(min(sgd.lengths) * 0.8, max(sgd.lengths) * 1.25, 200)
    at = jax.vmap(lambda length: theory.risk(setting.product, setting.task._replace(length=length)))
    plotting.theory(axes, grid, np.asarray(at(jnp.asarray(grid))), label="closed form")
    plotting.estimated(
        axes, np.asarray(sgd.lengths), mean_over_seeds(sgd.risks_by_length[ANISOTROPIC]), "SGD, mean and 95%"
    )
    axes.axvline(result.config.length, color="gray", linestyle=":", label="training length")
    axes.set_xscale("log")
    axes.set_xticks(sgd.lengths, labels=[str(length) for length in sgd.lengths])
    axes.minorticks_off()
    plotting.label(axes, "labeled examples in the test prompt", "test risk: squared error", "anisotropic")
    return figure
