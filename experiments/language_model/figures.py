"""Figures of `language_model`."""

import numpy as np
from matplotlib.figure import Figure

from experiments.framework import plotting
from experiments.language_model.study import Result
from experiments.language_model.verdicts import uniform


def plot(result: Result) -> dict[str, Figure]:
    """Loss against the baselines; entropy and sink by layer and head over training; attention received by each key.

    The last two are of what has weights.
    """
    weighted = tuple(course for course in result.courses if np.isfinite(course.measured.entropy).all())
    if not weighted:
        return {"loss": _plot_loss(result)}
    shown = result._replace(courses=weighted)
    return {"loss": _plot_loss(result), "attention": _plot_attention(shown), "key_mass": _plot_key_mass(shown)}


def _plot_loss(result: Result) -> Figure:
    figure, axes = plotting.new_figure()
    for color, course in zip(plotting.COLORS, result.courses, strict=False):
        steps = np.arange(1, len(course.losses) + 1)
        axes.plot(steps, course.losses, color=color, linewidth=0.6, alpha=0.35)
        held_out = f"{course.attention}, held-out batch (all held-out text: {course.bits_per_byte:.2f})"
        axes.plot(course.measured_at[1:], course.measured.bits[1:], "o-", color=color, markersize=3.5, label=held_out)
    for (name, bits), style in zip(result.baselines.items(), (":", "--", "-"), strict=True):
        axes.axhline(bits, color="black", linewidth=1, linestyle=style, label=f"{name} ({bits:.2f})")
    axes.set_ylim(1, 6)
    axes.set_xscale("log")
    plotting.label(axes, "step", "bits per byte", "Thin: training batches")
    return figure


def _plot_attention(result: Result) -> Figure:
    """One row for the entropy and one for the sink; one line for each head, colored by layer."""
    panels = [(course, name) for course in result.courses for name in ("entropy", "far_share")]
    titles = {"entropy": "entropy of attention (nats)", "far_share": "attention on the first position (share)"}
    figure, all_axes = plotting.new_figure(len(panels), width=4.2, height=3.6)
    for axes, (course, name) in zip(all_axes, panels, strict=True):
        values = getattr(course.measured, name)
        values = values.mean(-1) if name == "far_share" else values  # [M, L, N]
        for layer in range(values.shape[1]):
            for head in range(values.shape[2]):
                text = f"layer {layer + 1}" if head == 0 else None
                color = plotting.COLORS[layer % len(plotting.COLORS)]
                axes.plot(course.measured_at, values[:, layer, head], color=color, linewidth=1.1, label=text)
        if name == "far_share":
            axes.axhline(uniform(result), color="black", linewidth=1, linestyle=":", label="uniform attention")
            axes.set_ylim(bottom=0, top=max(0.1, *(1.05 * c.measured.far_share.mean(-1).max() for c in result.courses)))
        axes.set_xscale("symlog", linthresh=1)
        plotting.label(axes, "step", titles[name], course.attention)
    return figure


def _plot_key_mass(result: Result) -> Figure:
    figure, all_axes = plotting.new_figure(len(result.courses), width=5.0)
    for axes, course in zip(np.atleast_1d(all_axes), result.courses, strict=True):
        profile = course.measured.key_mass  # [M, L, N, T]
        positions = np.arange(1, profile.shape[-1] + 1)
        axes.plot(
            positions, profile[0].mean((0, 1)), color="black", linewidth=1, linestyle=":", label="before training"
        )
        for layer in range(profile.shape[1]):
            color = plotting.COLORS[layer % len(plotting.COLORS)]
            axes.plot(positions, np.abs(profile[-1, layer]).mean(0), color=color, label=f"layer {layer + 1}")
        axes.set_xscale("log")
        axes.set_yscale("log")
        title = f"{course.attention}: weight received"
        plotting.label(axes, "position of the key", "per query that may see it", title)
    return figure
