"""What `in_context_regression` reads off its flows and its SGD runs, for the claims."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.dynamics import linear_attention_theory as theory
from experiments.framework.statistics import mean_over_seeds
from experiments.in_context_regression.settings import ANISOTROPIC, ISOTROPIC, Result, closed_form


def excess_of(result: Result, index: int) -> float:
    """How far gradient flow's risk is above the least when SGD ends, as a fraction."""
    setting = result.settings[index]
    return float(setting.risks[-1] / (2 * theory.minimal_loss(setting.task)) - 1)


def half_time(result: Result) -> jax.Array:
    """When the closed form is halfway; not positive where it starts beyond."""
    config = result.config
    start = config.init_scale**2 / math.sqrt(config.dimension)
    return jnp.nan_to_num(theory.isotropic_half_time(dimension=config.dimension, length=config.length, start=start))


def descent_half_time(result: Result) -> float:
    """When gradient descent with SGD's learning rates is halfway; NaN where it never is or starts beyond."""
    return float(_halfway(result, result.settings[ISOTROPIC].descent[None])[0])


def half_times(result: Result) -> np.ndarray:
    """When each isotropic SGD run is halfway; NaN where it never is or starts beyond `[seeds]`."""
    return _halfway(result, result.sgd.products[ISOTROPIC])


def _halfway(result: Result, runs: np.ndarray) -> np.ndarray:
    """When each of `[runs, steps]` first exceeds half the closed form's limit, interpolated between steps."""
    times, half = result.sgd.times[ISOTROPIC], float(closed_form(result.config, np.inf)) / 2
    after = np.argmax(runs > half, axis=1)
    before = np.maximum(after - 1, 0)
    low, high = (np.take_along_axis(runs, at[:, None], axis=1)[:, 0] for at in (before, after))
    fraction = (half - low) / np.where(high > low, high - low, 1.0)
    return np.where(after > 0, times[before] + fraction * (times[after] - times[before]), np.nan)


def product_errors(result: Result) -> np.ndarray:
    """|S^(1/2) (w u - A) S^(1/2)|_F / |S^(1/2) A S^(1/2)|_F of each anisotropic run `[seeds]`."""
    setting = result.settings[ANISOTROPIC]
    root = np.linalg.cholesky(setting.task.covariance)
    seen = lambda product: root.T @ product @ root
    departures = seen(result.sgd.final_products[ANISOTROPIC] - setting.product)
    return np.linalg.norm(departures, axis=(-2, -1)) / np.linalg.norm(seen(setting.product))


def scale_is_small(result: Result, index: int) -> bool:
    """Whether the start satisfies the theorem's condition scale^2 |Gamma|_op sqrt(D) < 2."""
    task = result.settings[index].task
    return result.config.init_scale < float(theory.largest_init_scale(task))


def spectrum_of(result: Result) -> str:
    """The anisotropic covariance in words."""
    eigenvalues = np.linalg.eigvalsh(result.settings[ANISOTROPIC].task.covariance)[::-1]
    return f"Covariance with eigenvalues {', '.join(f'{value:.3g}' for value in eigenvalues)}"


def single(samples: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Mean and 95% interval over seeds of one number."""
    return mean_over_seeds(samples[:, None]).at(0)
