"""What the theory of gradient descent in context says, beside what was measured."""

import numpy as np

from experiments.framework.claim import Claim
from experiments.framework.statistics import mean_over_seeds
from experiments.in_context_descent.study import CONSTRUCTED, Config, Result, Scan, Trained

PAPER = "von Oswald et al., 2023, Transformers Learn In-Context by Gradient Descent, arXiv 2212.07677"
SAMPLED = "Finitely many prompts, and Adam's last noise."


def claims(result: Result) -> list[Claim]:
    """The construction, the rate, then every number of layers.

    Args:
        result: From `run`.

    Returns:
        The claims.
    """
    config = result.config
    found = [_constructed(layers, result.constructed[layers], config) for layers in CONSTRUCTED]
    found += _scan(result.scan, config)
    for trained in result.trained.values():
        found += _one(trained, config) if trained.layers == 1 else _several(trained, config)
    return found


def _where(config: Config) -> str:
    return f"D = {config.dimension}, N = {config.length}, inputs uniform on +-{config.half_range:g}"


def _constructed(layers: int, error: float, config: Config) -> Claim:
    return Claim.equal(
        f"construction-{layers}",
        f"{layers} layers made by hand take {layers} steps of preconditioned gradient descent, D = {config.dimension}, "
        f"N = {config.length}, correlated inputs, noisy labels, random preconditioners: largest difference over the "
        f"largest prediction, in float64.",
        f"{PAPER}, Proposition 1",
        predicted=0.0,
        measured=error,
        tolerance=1e-12,
        reason="Rounding.",
    )


def _scan(scan: Scan, config: Config) -> list[Claim]:
    best, interval = mean_over_seeds(scan.measured[:, None]).at(0)
    found = [
        Claim.equal(
            "best-rate",
            f"One step of gradient descent, {_where(config)}: the rate of least risk.",
            f"own derivation; {PAPER} scans it",
            predicted=scan.best,
            measured=best,
            interval=interval,
            relative_tolerance=0.02,
            reason="Finitely many prompts.",
        )
    ]
    estimate = mean_over_seeds(scan.risks)
    for index, rate in enumerate(scan.rates):
        measured, interval = estimate.at(index)
        found.append(
            Claim.equal(
                f"risk-at-{rate / scan.best:g}-of-the-rate",
                f"One step of rate {rate:.4g}, {_where(config)}: risk.",
                "own derivation",
                predicted=float(scan.expected[index]),
                measured=measured,
                interval=interval,
                relative_tolerance=0.03,
                reason="Finitely many prompts.",
            )
        )
    return found


def _equal(id: str, statement: str, source: str, samples: np.ndarray, predicted: float, tolerance: float) -> Claim:
    measured, interval = mean_over_seeds(samples[:, None]).at(0)
    numbers = {"predicted": predicted, "measured": measured, "interval": interval}
    return Claim.equal(id, statement, source, **numbers, relative_tolerance=tolerance, reason=SAMPLED)


def _small(id: str, statement: str, source: str, samples: np.ndarray, tolerance: float) -> Claim:
    measured, interval = mean_over_seeds(samples[:, None]).at(0)
    numbers = {"predicted": 0.0, "measured": measured, "interval": interval}
    return Claim.at_most(id, statement, source, **numbers, tolerance=tolerance, reason=SAMPLED)


def _one(trained: Trained, config: Config) -> list[Claim]:
    where = f"1 trained layer, {_where(config)}"
    found = [
        _equal(
            "trained-risk",
            f"{where}: risk at the end, beside the least that one step of gradient descent has.",
            f"{PAPER}; its value is an own derivation",
            trained.final,
            trained.plain,
            0.02,
        ),
        _small(
            "trained-predictions",
            f"{where}: RMS difference of predictions from those of the best step, over the RMS of the latter.",
            PAPER,
            trained.difference,
            0.05,
        ),
        _small(
            "trained-sensitivity",
            f"{where}: 1 - cosine between the gradients of both predictions with respect to the query.",
            PAPER,
            1 - trained.angle,
            0.005,
        ),
    ]
    return [
        *found,
        *(
            _equal(
                f"wider-by-{scale:g}",
                f"{where}: risk on inputs {scale:g} times as wide, beside that of the one step it was trained to take.",
                f"{PAPER} [out-of-distribution inputs]; the value is an own derivation",
                trained.scaled[:, index],
                float(trained.expected_scaled[index]),
                0.05,
            )
            for index, scale in enumerate(config.test_scales)
        ),
    ]


def _several(trained: Trained, config: Config) -> list[Claim]:
    layers = trained.layers
    where = f"{layers} trained layers, {_where(config)}"
    measured, interval = mean_over_seeds(trained.final[:, None]).at(0)
    return [
        Claim.at_most(
            f"trained-{layers}-beats-plain",
            f"{where}: risk at the end, beside the least of {layers} plain steps of gradient descent.",
            f"{PAPER} [GD++]; the value is an own derivation",
            predicted=trained.plain,
            measured=measured,
            interval=interval,
            tolerance=0.0,
            reason="An order.",
        ),
        _equal(
            f"trained-{layers}-risk",
            f"{where}: risk at the end, beside the least of {layers} steps that move the inputs too.",
            f"{PAPER} [GD++]; the value is an own derivation",
            trained.final,
            trained.moving,
            0.05,
        ),
        _small(
            f"trained-{layers}-predictions",
            f"{where}: RMS difference of predictions from those of these steps, over the RMS of the latter.",
            PAPER,
            trained.difference,
            0.1,
        ),
        _small(
            f"trained-{layers}-sensitivity",
            f"{where}: 1 - cosine between the gradients of both predictions with respect to the query.",
            PAPER,
            1 - trained.angle,
            0.01,
        ),
    ]
