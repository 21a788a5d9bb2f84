"""What the identity says, beside what was measured."""

import numpy as np

from experiments.framework.claim import Claim
from experiments.framework.statistics import mean_over_seeds
from experiments.implicit_update.study import Identity, Result

PAPER = "Dherin et al., 2025, Learning without training, arXiv 2507.16003"


def claims(result: Result) -> list[Claim]:
    """The identity before and after training, the losses, the steps.

    Args:
        result: From `run`.

    Returns:
        The claims.
    """
    return [
        *_identity("untrained", result.untrained, result),
        *_identity("trained", result.trained, result),
        *_losses(result),
        _steps(result),
    ]


def _where(result: Result) -> str:
    config = result.config
    return f"softmax attention, D = {config.dimension}, N = {config.length}, width {config.width}"


def _identity(name: str, identity: Identity, result: Result) -> list[Claim]:
    where = f"{_where(result)}, {name}"
    rounding = {"predicted": 0.0, "tolerance": 1e-10, "reason": "Rounding in float64."}
    return [
        Claim.equal(
            f"identity-{name}",
            f"{where}: predictions in context and without it, with the update; largest difference over the largest.",
            f"{PAPER}, Theorem 2.2",
            measured=identity.difference,
            **rounding,
        ),
        Claim.equal(
            f"rank-one-{name}",
            f"{where}: second singular value of the update over the first, the largest.",
            f"{PAPER}, Theorem 2.2",
            measured=identity.rank,
            **rounding,
        ),
        Claim.equal(
            f"descent-{name}",
            f"{where}: the update is the sum of one step of gradient descent per context token; largest difference "
            f"over the largest entry.",
            f"{PAPER}, Proposition 3.1",
            measured=identity.descent,
            **rounding,
        ),
    ]


def _losses(result: Result) -> list[Claim]:
    away = np.abs(result.by_update / result.in_context - 1).max(axis=1)
    measured, interval = mean_over_seeds(away[:, None]).at(0)
    gain = np.log(result.alone / result.in_context[:, -1])
    worth, worths = mean_over_seeds(gain[:, None]).at(0)
    return [
        Claim.at_most(
            "same-loss-while-training",
            f"{_where(result)}: loss with the update beside that in context, largest relative difference while "
            f"training, in float32.",
            f"{PAPER} [loss on validation]",
            predicted=0.0,
            measured=measured,
            interval=interval,
            tolerance=1e-3,
            reason="Rounding in float32.",
        ),
        Claim.at_least(
            "context-is-worth-something",
            f"{_where(result)}: ln of the loss without context or update over that in context, at the end.",
            "own check: otherwise the identity would be empty",
            predicted=0.5,
            measured=worth,
            interval=worths,
            tolerance=0.0,
            reason="The block has learned from contexts.",
        ),
    ]


def _steps(result: Result) -> Claim:
    quarter = max(1, result.config.length // 4)
    ratio = result.gradients[:, -quarter:].mean(axis=1) / result.gradients[:, :quarter].mean(axis=1)
    measured, interval = mean_over_seeds(ratio[:, None]).at(0)
    return Claim.at_most(
        "steps-become-smaller",
        f"{_where(result)}, trained: norm of the implicit gradient over the last quarter of the context, over that "
        f"over the first.",
        f"{PAPER} [convergence of the implicit dynamics]",
        predicted=0.5,
        measured=measured,
        interval=interval,
        tolerance=0.0,
        reason="Steps vanish as the context grows.",
    )
