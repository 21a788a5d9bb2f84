"""What is said of the plateau, beside what was measured."""

import numpy as np

from experiments.framework.claim import Claim
from experiments.framework.statistics import mean_over_seeds
from experiments.loss_plateau.study import LEARNED, Config, Result, Watched

PAPER = "Gopalani and Hu, 2025, What Happens During the Loss Plateau?, arXiv 2506.13688"


def claims(result: Result) -> list[Claim]:
    """The plateau, what moves under it, its symptoms, and the interventions.

    Args:
        result: From `run`.

    Returns:
        The claims.
    """
    config, plain = result.config, result.watched[1.0]
    found = [*_plateau(result), *_symptoms(result)]
    ends = plain.learned_at()
    for factor, watched in result.watched.items():
        if factor != 1:
            found.append(_intervention(factor, watched, ends, config))
    return found


def _where(config: Config) -> str:
    return (
        f"sums of {config.window} of {config.length} numbers up to {config.largest} mod {config.modulus}, "
        f"width {config.width}, {config.seeds} seeds"
    )


def _mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean over the measurements of the plateau, NaN for a seed without one `[R]`."""
    count = where.sum(axis=1)
    return np.where(count > 0, np.where(where, values, 0).sum(axis=1) / np.maximum(count, 1), np.nan)


def _over_seeds(samples: np.ndarray) -> tuple[float, tuple[float, float]]:
    return mean_over_seeds(samples[:, None]).at(0)


def _plateau(result: Result) -> list[Claim]:
    config, plain = result.config, result.watched[1.0]
    where, on = _where(config), plain.plateau()
    height, heights = _over_seeds(_mean(plain.losses, on))
    ends = plain.learned_at()
    # The last measurement at which the model is still near chance; attention must have moved by then.
    near_chance = (plain.accuracies <= 0.2) & (plain.steps <= np.nan_to_num(ends, nan=np.inf)[:, None])
    last = near_chance.shape[1] - 1 - near_chance[:, ::-1].argmax(axis=1)
    moved = plain.progress[np.arange(len(last)), last] / plain.progress[:, 0]
    moved = np.where(np.isnan(ends), np.nan, moved)
    ratio, ratios = _over_seeds(moved)
    return [
        Claim.equal(
            "height",
            f"{where}: loss over the sums on the plateau, beside that of copying what is to be copied and knowing no "
            f"more of the rest than its distribution.",
            f"own derivation; the plateau is {PAPER}'s",
            predicted=result.height,
            measured=height,
            interval=heights,
            tolerance=0.03,
            reason="The plateau is not quite flat, and the test batch is finite.",
        ),
        Claim.at_least(
            "attention-moves-first",
            f"{where}: attention on needed entries when accuracy is last below 0.2, over that at the start.",
            PAPER,
            predicted=2.0,
            measured=ratio,
            interval=ratios,
            tolerance=0.0,
            reason="Doubled while the loss stands still.",
        ),
    ]


def _symptoms(result: Result) -> list[Claim]:
    config, plain = result.config, result.watched[1.0]
    where, on = _where(config), plain.plateau()
    learned = np.isfinite(plain.learned_at())
    after = lambda values: np.where(learned, values[:, -1], np.nan)
    repeated, repeats = _over_seeds(_mean(plain.repetitions, on))
    final, finals = _over_seeds(after(plain.repetitions))
    alike, alikes = _over_seeds(_mean(plain.collapse, on))
    apart, aparts = _over_seeds(after(plain.collapse))
    sign = "The measure falls by far more than this."
    return [
        Claim.at_least(
            "repetition-on-the-plateau",
            f"{where}: share of sums written equal to the one before, on the plateau, beside twice that of right sums.",
            PAPER,
            predicted=2 * result.repetition,
            measured=repeated,
            interval=repeats,
            tolerance=0.0,
            reason="An order.",
        ),
        Claim.equal(
            "repetition-afterwards",
            f"{where}: the same at the end, beside right sums.",
            f"own derivation; {PAPER}",
            predicted=result.repetition,
            measured=final,
            interval=finals,
            tolerance=0.02,
            reason="The test batch is finite.",
        ),
        Claim.at_least(
            "collapse-on-the-plateau",
            f"{where}: mean cosine between hidden states of the sums, on the plateau.",
            PAPER,
            predicted=0.9,
            measured=alike,
            interval=alikes,
            tolerance=0.0,
            reason=sign,
        ),
        Claim.at_most(
            "collapse-afterwards",
            f"{where}: the same at the end.",
            PAPER,
            predicted=0.1,
            measured=apart,
            interval=aparts,
            tolerance=0.0,
            reason=sign,
        ),
    ]


def _intervention(factor: float, watched: Watched, plain_ends: np.ndarray, config: Config) -> Claim:
    # A run that has not learned by its last step learns later, if ever: its last step is a lower bound.
    ends = np.where(np.isnan(watched.learned_at()), watched.steps[-1], watched.learned_at())
    change, changes = _over_seeds(np.log(ends / plain_ends))
    build = Claim.at_most if factor > 1 else Claim.at_least
    return build(
        f"needed-attention-times-{factor:g}",
        f"{_where(config)}: ln of the step at which accuracy is {LEARNED:g}, with needed attention times {factor:g} "
        f"while training, over that without.",
        PAPER,
        predicted=0.0,
        measured=change,
        interval=changes,
        tolerance=0.0,
        reason="A sign.",
    )
