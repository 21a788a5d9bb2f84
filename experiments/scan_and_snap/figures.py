"""Figures of `scan_and_snap`: the paper's Figures 3, 4 and 6."""

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from attnjax.dynamics import scan_and_snap_theory as theory
from experiments.framework import plotting
from experiments.framework.statistics import mean_over_seeds
from experiments.scan_and_snap.published import FIGURE_6, LOG, RATES, RATIOS
from experiments.scan_and_snap.study import Result, snap_knobs


def plot(result: Result) -> dict[str, Figure]:
    """Snapping over time, the loss, attention as it is learned, and the table of entropies.

    Args:
        result: From `run`.

    Returns:
        Figures by file stem.
    """
    return {
        "figure_3_snapping": plot_snapping(result),
        "figure_4_attention": plot_attention(result),
        "loss": plot_loss(result),
        "figure_6_entropy": plot_entropies(result),
    }


def plot_snapping(result: Result) -> Figure:
    """B(t): integration as points, the closed form as a line, the snapping time where each turns."""
    figure, axes = plotting.new_figure()
    config, every = result.config, slice(1, None, 12)
    for color, rate, integrated in zip(plotting.COLORS, config.snap_rates_y, result.snap, strict=False):
        closed = np.asarray(theory.scanned(jnp.asarray(result.snap_times), rate_y=rate, **snap_knobs(config)))
        axes.plot(result.snap_times[1:], closed[1:], color=color, label=f"eta_Y = {rate:g}, closed form")
        axes.plot(result.snap_times[every], integrated[every], "o", color=color, markersize=3.5)
        snap = theory.snapping_time(vocabulary=config.snap_vocabulary, classes=config.snap_classes, rate=rate)
        axes.axvline(snap, color=color, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    plotting.label(axes, "samples", "B: how far attention has moved", "Points: integrated. Dotted: snapping time")
    return figure


def plot_attention(result: Result) -> Figure:
    """c of the first class at a few steps, one row each, averaged over the seeds."""
    figure, axes = plotting.new_figure()
    shown = result.law > 0
    image = axes.imshow(result.attention.mean(1)[:, shown], aspect="auto", cmap="viridis", interpolation="nearest")
    axes.set_yticks(range(len(result.checkpoints)), labels=[str(step) for step in result.checkpoints])
    axes.axvline(result.config.common - 0.5, color="white", linewidth=1, linestyle="--")
    axes.set_xlabel("token: common, then distinct from rare to frequent")
    axes.set_ylabel("step")
    figure.colorbar(image, ax=axes, label="attention")
    return figure


def plot_loss(result: Result) -> Figure:
    """SGD's loss, with the authors' log as the line."""
    figure, axes = plotting.new_figure()
    plotting.theory(axes, np.array(list(LOG)), np.array(list(LOG.values())), label="the authors' log, one seed")
    estimate = mean_over_seeds(result.losses)
    steps = np.arange(result.losses.shape[1])[:20:2]
    low, high = estimate.low[steps], estimate.high[steps]
    plotting.measured(axes, steps, estimate.mean[steps], low=low, high=high, label=f"SGD, {result.config.seeds} seeds")
    axes.set_yscale("log")
    plotting.label(axes, "step", "loss (nats)", "Syn-Small")
    return figure


def plot_entropies(result: Result) -> Figure:
    """Entropy by ratio of the learning rates, one panel per number of last tokens; the paper's values as lines."""
    config = result.config
    figure, panels = plotting.new_figure(len(config.table_last), width=4.2)
    for axes, last, cells in zip(np.atleast_1d(panels), config.table_last, result.entropies, strict=True):
        for color, rate, row in zip(plotting.COLORS, config.table_rates, cells, strict=False):
            if last in FIGURE_6 and rate in RATES:
                axes.plot(RATIOS, FIGURE_6[last][RATES.index(rate)], color=color, linewidth=1)
            estimate = mean_over_seeds(row.T)
            bars = np.stack([estimate.mean - estimate.low, estimate.high - estimate.mean])
            axes.errorbar(config.table_ratios, estimate.mean, bars, fmt="o", color=color, label=f"eta_Z = {rate:g}")
        axes.set_xscale("log")
        plotting.label(axes, "eta_Y / eta_Z", "entropy on distinct tokens", f"{last} last tokens. Lines: the paper")
    return figure
