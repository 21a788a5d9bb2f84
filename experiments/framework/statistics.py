"""Confidence intervals over seeds."""

from typing import NamedTuple

import numpy as np
from scipy.stats import t as student_t


class Estimate(NamedTuple):
    """A mean over seeds and its confidence interval."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def at(self, index: int) -> tuple[float, tuple[float, float]]:
        """Mean and (low, high) of one entry as plain numbers, in the form that `Claim` takes."""
        return float(self.mean[index]), (float(self.low[index]), float(self.high[index]))


def mean_over_seeds(samples: np.ndarray, *, level: float = 0.95) -> Estimate:
    """Mean over the leading axis with its Student-t interval: mean +- t_{(1+level)/2, n-1} s / sqrt(n).

    The seeds are taken as independent draws whose mean is near normal.

    Args:
        samples: `[n, ...]`, one row per seed, n >= 2.
        level: Coverage in (0, 1).

    Returns:
        Mean, low and high, each of shape `[...]`.

    Raises:
        ValueError: Fewer than two seeds.

    Example:
        >>> estimate = mean_over_seeds(np.array([1.0, 2.0, 3.0]))
        >>> print(f"{estimate.mean:.2f} in [{estimate.low:.2f}, {estimate.high:.2f}]")
        2.00 in [-0.48, 4.48]
    """
    samples = np.asarray(samples, dtype=np.float64)
    n = samples.shape[0] if samples.ndim else 0
    if n < 2:
        raise ValueError(
            f"samples needs at least two seeds on its leading axis for an interval, got shape {samples.shape}"
        )
    mean = samples.mean(axis=0)
    half = student_t.ppf((1 + level) / 2, n - 1) * samples.std(axis=0, ddof=1) / np.sqrt(n)
    return Estimate(mean, mean - half, mean + half)
