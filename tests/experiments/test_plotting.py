"""Figures belong to their makers."""

import matplotlib.pyplot as plt

from experiments.framework import plotting


def test_figures_are_saved_and_not_kept(tmp_path):
    """Not by pyplot, which would hold every figure of a long session and warn after twenty."""
    figures = {}
    for number in range(2):
        figure, axes = plotting.new_figure()
        axes.plot([0, 1])
        figures[f"figure_{number}"] = figure
    assert plotting.save(figures, tmp_path) == ["figure_0", "figure_1"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".svg", ".png"}
    assert plt.get_fignums() == []
