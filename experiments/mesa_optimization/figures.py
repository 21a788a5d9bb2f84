"""Figures of `mesa_optimization`: the paper's Figures 1 to 3, theory as lines through the measured points."""

import numpy as np
from matplotlib.figure import Figure

from experiments.framework import plotting
from experiments.framework.statistics import mean_over_seeds
from experiments.mesa_optimization.study import Result


def plot(result: Result) -> dict[str, Figure]:
    """The product over time, the flow from several starts, and the blocks at the end.

    Args:
        result: From `run`.

    Returns:
        Figures by file stem.
    """
    return {
        "product_over_time": plot_products(result),
        "figure_1_starts": plot_starts(result),
        "figure_3_blocks": plot_blocks(result),
    }


def plot_products(result: Result) -> Figure:
    """a b of gradient descent on samples, and on the expected loss, one panel per law."""
    figure, panels = plotting.new_figure(len(result.settings), width=4.0)
    for axes, setting in zip(panels, result.settings.values(), strict=True):
        plotting.theory(axes, setting.descent_times, setting.descent, label="descent on the expected loss")
        axes.axhline(setting.limit, color="gray", linestyle=":", label=f"limit {setting.limit:.4f}")
        if setting.published != setting.limit:
            axes.axhline(setting.published, color="black", linestyle="--", label=f"if unitary {setting.published:.4f}")
        every = np.unique(np.linspace(0, len(setting.descent) - 1, 16).astype(int))
        estimate = mean_over_seeds(setting.products[:, every])
        plotting.estimated(axes, setting.descent_times[every], estimate, "on samples, 95%")
        plotting.label(axes, "time: sum of the learning rates", "a b", setting.name)
    return figure


def plot_starts(result: Result) -> Figure:
    """The flow from several starts for the two laws of the theorem: integrated points on the closed form."""
    figure, panels = plotting.new_figure(2, width=4.8)
    for axes, name in zip(panels, ("gaussian", "sparse"), strict=True):
        setting = result.settings[name]
        for color, start, times, flow, closed in zip(
            plotting.COLORS, result.config.starts, setting.times, setting.flows, setting.closed, strict=False
        ):
            plotting.theory(axes, times, closed, label=f"(a, b) = ({start[0]:g}, {start[1]:g})", color=color)
            axes.plot(times[::12], flow[::12], "o", color=color, markersize=3.5)
        axes.axhline(setting.limit, color="gray", linestyle=":")
        plotting.label(axes, "flow time", "a b", f"{name}: closed form, integrated")
    return figure


def plot_blocks(result: Result) -> Figure:
    """Both blocks at the end where the theorem holds and where it does not."""
    setting = result.settings
    panels = [
        (f"{name}, {block}", getattr(setting[name], field))
        for name in ("gaussian", "full-one")
        for block, field in (("W_PV", "w_pv"), ("W_KQ", "w_kq"))
    ]
    figure, axes = plotting.new_figure(len(panels), width=3.2, height=3.0)
    largest = max(np.abs(matrix).max() for _, matrix in panels)
    images = [
        at.imshow(matrix, cmap="RdBu_r", vmin=-largest, vmax=largest)
        for at, (_, matrix) in zip(axes, panels, strict=True)
    ]
    for at, (title, _) in zip(axes, panels, strict=True):
        at.set_title(title)
        at.set_xticks([])
        at.set_yticks([])
        at.grid(False)
    figure.colorbar(images[0], ax=axes, label="real part")
    return figure
