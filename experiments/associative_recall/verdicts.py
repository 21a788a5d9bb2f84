"""What is said of recall, beside what was measured."""

import numpy as np

from experiments.associative_recall.models import LINEAR
from experiments.associative_recall.study import Config, Course, Result
from experiments.framework.claim import Claim
from experiments.framework.statistics import mean_over_seeds

PAPER = "Arora et al., 2023, Zoology, arXiv 2312.04927"
ORDER = "An order; intervals over seeds, differences by seed."
LEARNED, HALF_LEARNED = 0.99, 0.9


def claims(result: Result) -> list[Claim]:
    """By hand, learned, by state, selected and without comparing.

    Args:
        result: From `run`.

    Returns:
        The claims.
    """
    found = [_by_hand(width, accuracy) for width, accuracy in result.by_hand.items()]
    found += _learned(result)
    found += _ordered(result)
    found += _selected(result)
    return found + _at_chance(result)


def _where(config: Config) -> str:
    return (
        f"{config.pairs} pairs in {config.length} tokens of {config.vocabulary}, {config.steps} steps of "
        f"{config.batch} sequences, {config.seeds} seeds"
    )


def _over_seeds(samples: np.ndarray) -> tuple[float, tuple[float, float]]:
    return mean_over_seeds(samples[:, None]).at(0)


def _final(result: Result, family: str, width: int | None = None) -> np.ndarray:
    config = result.config
    return result.courses[family][width or config.widths[-1]].final(config.window)


def _by_hand(width: int, accuracy: float) -> Claim:
    return Claim.equal(
        f"by-hand-{width}",
        f"Share of questions answered by two layers of attention that are written down, random embeddings of width "
        f"{width}, 8 pairs in 64 tokens of 256.",
        f"own construction; that it is possible is {PAPER}'s",
        predicted=1.0,
        measured=accuracy,
        tolerance=0.0,
        reason="Every question is answered.",
    )


def _learned(result: Result) -> list[Claim]:
    config, width = result.config, result.config.widths[-1]
    accuracy, interval = _over_seeds(_final(result, "softmax"))
    found = [
        Claim.at_least(
            "softmax-learns",
            f"{_where(config)}: accuracy of a gated convolution and a layer of softmax attention, width {width}; "
            f"{_steps(result.courses['softmax'][width], config)}.",
            PAPER,
            predicted=LEARNED,
            measured=accuracy,
            interval=interval,
            tolerance=0.0,
            reason="Learned, but for one in a hundred.",
        )
    ]
    if "base_conv" in result.courses:
        ahead, interval = _over_seeds(_final(result, "softmax") - _final(result, "base_conv"))
        other = result.courses["base_conv"][width]
        found.append(
            Claim.at_least(
                "softmax-beats-convolution",
                f"{_where(config)}: how far accuracy with attention is above that with a second gated convolution, "
                f"over all tokens, at width {width}; the latter: {_steps(other, config)}.",
                PAPER,
                predicted=0.3,
                measured=ahead,
                interval=interval,
                tolerance=0.0,
                reason="At this size the convolution is far from recall; the paper has 0.5 and more at larger ones.",
            )
        )
    return found


def _steps(course: Course, config: Config) -> str:
    steps = course.steps_to(HALF_LEARNED, max(1, config.steps // 40))
    known = [f"{count:.0f}" if np.isfinite(count) else "never" for count in steps]
    return f"steps to {HALF_LEARNED:g} by seed: {', '.join(known)} (learning rate {course.rate:g})"


def _ordered(result: Result) -> list[Claim]:
    """Orders of recall at the smallest width, where states are scarce: at the largest, many learn everything.

    That states hold anything at all is claimed at the largest, where they have learned to.
    """
    widths = result.config.widths
    here = [family for family in LINEAR if family in result.courses]
    found = [_over(result, "softmax", family, widths[0]) for family in here]
    if "taylor" in here:
        found += [_over(result, "taylor", family, widths[0]) for family in here if family != "taylor"]
    if "base_conv" in result.courses:
        found += [_over(result, family, "base_conv", widths[-1]) for family in here]
    return found + [_grows(result, family) for family in here if len(widths) > 1]


def _over(result: Result, more: str, less: str, width: int) -> Claim:
    states = [result.courses[family][width].state for family in (more, less)]
    return _greater(
        f"{more}-over-{less}",
        f"{_where(result.config)}: accuracy with {more} ({states[0]} numbers of state) less that with {less} "
        f"({states[1]}), width {width}.",
        _final(result, more, width) - _final(result, less, width),
    )


def _grows(result: Result, family: str) -> Claim:
    config, (small, large) = result.config, (result.config.widths[0], result.config.widths[-1])
    states = [result.courses[family][width].state for width in (small, large)]
    return _greater(
        f"{family}-recalls-more-with-more",
        f"{_where(config)}: accuracy with {family} at width {large} ({states[1]} numbers of state) less that at width "
        f"{small} ({states[0]}).",
        _final(result, family, large) - _final(result, family, small),
    )


def _greater(id: str, statement: str, difference: np.ndarray) -> Claim:
    """A difference over seeds is no less than zero."""
    measured, interval = _over_seeds(difference)
    return Claim.at_least(
        id.replace("_", "-"),
        statement,
        f"{PAPER}; Arora et al., 2024, Based, arXiv 2402.18668",
        predicted=0.0,
        measured=measured,
        interval=interval,
        tolerance=0.0,
        reason=ORDER,
    )


def _selected(result: Result) -> list[Claim]:
    config = result.config
    measured, interval = _over_seeds(result.selected)
    return [
        Claim.at_least(
            "selected-tokens-are-enough",
            f"{_where(config)}: accuracy of the trained models where only tokens that have occurred before attend, "
            f"{100 * result.attending:.0f}% of them, width {config.widths[-1]}.",
            PAPER,
            predicted=LEARNED,
            measured=measured,
            interval=interval,
            tolerance=0.0,
            reason="Learned, but for one in a hundred.",
        )
    ]


def _at_chance(result: Result) -> list[Claim]:
    config = result.config
    if "dynamic_conv" not in result.courses:
        return []
    measured, interval = _over_seeds(_final(result, "dynamic_conv"))
    return [
        Claim.at_most(
            "convolutions-made-of-one-token-guess",
            f"{_where(config)}: accuracy with a dynamic convolution over all tokens, whose kernel is made of one token "
            f"alone, width {config.widths[-1]}; beside that of naming the pair most often asked for at a position "
            f"(one of the {config.pairs} values: {1 / config.pairs:.3f}).",
            "own statement: no query is compared with a key",
            predicted=result.guessing,
            measured=measured,
            interval=interval,
            tolerance=0.03,
            reason="Which places were asked at before tells a little more, where not all are.",
        )
    ]
