"""Numbers that the authors of Scan and Snap published with their code, facebookresearch/luckmatters."""

LOG = {2: 2.3679, 4: 0.7335, 6: 0.1608, 8: 0.0444, 10: 0.01295}
"""Loss by step on Syn-Small at equal learning rates of 1, one seed: scan_snap/figure_4.log."""

RATES, RATIOS = (0.5, 1.0, 2.0, 3.0), (1.0, 2.0, 5.0, 10.0)
"""Learning rates of Z, and ratios of the rates of Y and Z: rows and columns of the tables of Figure 6."""

FIGURE_6 = {
    1: (
        (1.971, 2.007, 2.066, 2.092),
        (1.871, 1.937, 2.022, 2.053),
        (1.699, 1.810, 1.934, 1.900),
        (1.551, 1.708, 1.786, 1.825),
    ),
    3: (
        (2.019, 1.988, 2.031, 2.063),
        (1.963, 1.920, 1.982, 2.024),
        (1.842, 1.809, 1.899, 1.955),
        (1.737, 1.715, 1.821, 1.839),
    ),
    5: (
        (2.026, 1.994, 2.020, 2.055),
        (1.995, 1.931, 1.971, 2.014),
        (1.906, 1.816, 1.884, 1.926),
        (1.817, 1.718, 1.802, 1.831),
    ),
    10: (
        (2.033, 2.012, 2.018, 2.051),
        (2.027, 1.975, 1.976, 2.015),
        (1.990, 1.888, 1.899, 1.947),
        (1.940, 1.805, 1.829, 1.875),
    ),
}
"""Entropy of attention on distinct tokens by number of last tokens, ten seeds: scan_snap/figure_6_data.pkl."""
