"""What all claims share: sources, a mean with its interval, and a law over several cells."""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.framework.claim import Claim
from experiments.framework.statistics import mean_over_seeds

HEBB = "Qiao, 2025, Understanding Transformers through the Lens of Pavlovian Conditioning, arXiv 2508.08289"
DELTA = "Yang et al., 2024, Parallelizing Linear Transformers with the Delta Rule, arXiv 2406.06484"
TITANS = "Behrouz et al., 2025, Titans, arXiv 2501.00663"
MIRAS = "Behrouz et al., 2025, It's All Connected, arXiv 2504.13173"
OWN = "own derivation, attnjax.linear.memory_theory"
DRAWS = "The law is exact; the interval is that of the draws."


def mean(samples: np.ndarray) -> dict[str, Any]:
    """Mean over draws `[R]` with its interval."""
    measured, interval = mean_over_seeds(samples[:, None]).at(0)
    return {"measured": measured, "interval": interval}


def worst(samples: np.ndarray, predicted: np.ndarray, relative: bool = True) -> int:
    """The cell of `[R, cells]` whose mean is furthest from what is predicted."""
    away = np.abs(samples.mean(0) - predicted)
    return int(np.argmax(away / predicted if relative else away))


def law_over(
    id: str, say: Callable[[int], str], source: str, samples: np.ndarray, predicted: np.ndarray, tolerance: float
) -> Claim:
    """A law over several cells `[R, cells]`: the claim about the worst one."""
    cell = worst(samples, np.asarray(predicted))
    return Claim.equal(
        id, f"{say(cell)}; the worst of {len(predicted)}.", source, predicted=float(predicted[cell]),
        **mean(samples[:, cell]), relative_tolerance=tolerance, reason=DRAWS,
    )  # fmt: skip
