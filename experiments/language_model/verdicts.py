"""What is held against the measurements of `language_model`."""

from typing import Literal

import numpy as np

from experiments.framework.claim import Claim
from experiments.framework.statistics import mean_over_seeds
from experiments.language_model import model as lm
from experiments.language_model import training
from experiments.language_model.study import Course, Result

GU = "Gu, Pang, Du, Liu, Zhang, Du, Wang, Lin, 2025, When Attention Sink Emerges in Language Models, arXiv 2410.10781"
GZIP = "the held-out files in one gzip -9 stream, each costing what it adds to the stream"
BIGRAM = "a bigram model of the training files that backs off to the unigram, its strength fitted by leave-one-out"
ENOUGH = 1_500_000  # bytes read, repetitions counted
RESAMPLES = 10_000
STRONGEST = "Interval over the held-out windows that had no part in choosing the head."


def difference(result: Result, course: Course, baseline: str) -> tuple[float, tuple[float, float]]:
    """Bits per byte of the model minus the baseline's, and its 95% interval: bootstrap over held-out files."""
    gain = course.file_bits - result.baseline_bits[baseline]
    files = len(gain)
    drawn = np.random.default_rng(0).integers(0, files, (RESAMPLES, files))
    resampled = gain[drawn].sum(1) / result.file_bytes[drawn].sum(1)
    measured = float(gain.sum() / result.file_bytes.sum())
    low, high = np.quantile(resampled, [0.025, 0.975])
    return measured, (min(float(low), measured), max(float(high), measured))


def grown(course: Course, kind: Literal["share", "weight"]) -> np.ndarray:
    """Attention on the first position at the end of the learning rate's warm-up and at the end, `[2, L, N, W]`.

    While the rate warms up, the embedding of the byte that starts every window, and with it all scores of the first
    position, moves away from where it began; what training then makes of it is the sink.
    """
    values = getattr(course.measured, f"far_{kind}")
    warm = int(np.searchsorted(course.measured_at, training.warmup_steps(len(course.losses))))
    return values[[min(warm, len(values) - 1), -1]]


def mean_growth(values: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Last minus first of `[M, L, N, W]`, averaged over windows and heads, with its 95% t-interval over the heads."""
    return _estimate((values[-1] - values[0]).mean(-1).reshape(-1))


def strongest_growth(values: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Last minus first of `[M, L, N, W]` in the head with the largest last value, and its 95% t-interval over windows.

    Every other window chooses the head and the rest measure it, so that the choice does not flatter the result.
    """
    layer, head = np.unravel_index(values[-1, ..., ::2].mean(-1).argmax(), values.shape[1:3])
    return _estimate((values[-1] - values[0])[layer, head, 1::2])


def _estimate(samples: np.ndarray) -> tuple[float, tuple[float, float]]:
    if len(samples) < 2:
        return float(samples.mean()) if len(samples) else float("nan"), (-np.inf, np.inf)
    estimate = mean_over_seeds(samples)
    return float(estimate.mean), (float(estimate.low), float(estimate.high))


def claims(result: Result) -> list[Claim]:
    """What is held against the measurements."""
    main = result.courses[0]
    found = [_beats(result, main, "gzip", GZIP), _beats(result, main, "bigram", BIGRAM)]
    found += [_sink_grows(result, main), _sink_grows_on_average(result, main)]
    for other in result.courses[1:]:
        found += [_grows_more(result, main, other), _no_sink(result, other, "weight"), _no_sink(result, other, "share")]
    return found


def _beats(result: Result, course: Course, baseline: str, described: str) -> Claim:
    measured, interval = difference(result, course, baseline)
    return Claim.at_most(
        f"beats-{baseline}",
        f"On {len(result.files)} held-out pieces of text the {course.attention} Transformer needs fewer bits per byte "
        f"({course.bits_per_byte:.3f}) than {described} ({result.baselines[baseline]:.3f}). Measured: the difference.",
        f"own test: a model that has read {ENOUGH / 1e6:.1f} MB or more (this one: {result.bytes_read / 1e6:.1f} MB) "
        "learns more than a text's local statistics",
        predicted=0.0,
        measured=measured,
        interval=interval,
        tolerance=0.0,
        reason="A sign: any difference below zero will do. Interval: bootstrap over held-out files.",
        assumptions_hold=result.bytes_read >= ENOUGH,
    )


def uniform(result: Result) -> float:
    """What uniform attention gives the first position, over the queries of a window's second half."""
    return lm.uniform_sink(result.context, start=result.context // 2)


def _described(result: Result) -> str:
    return (
        f"attention on the first position by the queries of a window's second half, at the end minus at the end of the "
        f"warm-up (uniform attention gives {uniform(result):.4f})"
    )


def _sink_grows(result: Result, course: Course) -> Claim:
    measured, interval = strongest_growth(grown(course, "share"))
    return Claim.at_least(
        "sink-grows",
        f"With {course.attention} attention a head grows a sink; measured in the strongest head: {_described(result)}.",
        f"{GU}, section 4",
        predicted=uniform(result),
        measured=measured,
        interval=interval,
        tolerance=0.0,
        reason=f"Growing by less than uniform attention has is no sink. {STRONGEST}",
        assumptions_hold=course.attention == "softmax",
    )


def _sink_grows_on_average(result: Result, course: Course) -> Claim:
    measured, interval = mean_growth(grown(course, "share"))
    return Claim.at_least(
        "sink-grows-on-average",
        f"With {course.attention} attention sinks grow on average over all heads: {_described(result)}.",
        f"{GU}, section 4",
        predicted=0.0,
        measured=measured,
        interval=interval,
        tolerance=0.0,
        reason="A sign: the paper trains larger models, longer, and has no value for this size. Interval over heads.",
        assumptions_hold=course.attention == "softmax",
    )


def _grows_more(result: Result, course: Course, other: Course) -> Claim:
    (more, (low, _)), (less, (_, high)) = (strongest_growth(grown(c, "weight")) for c in (course, other))
    return Claim.at_least(
        "sink-grows-more",
        f"Sinks grow more with {course.attention} ({more:.3f}) than with {other.attention} ({less:.3f}); measured, in "
        f"the strongest head of each, weights as they are: {_described(result)}.",
        f"{GU}, section 7",
        predicted=0.0,
        measured=more - less,
        interval=(low - high, more - less + (more - low) + (high - less)),
        tolerance=0.0,
        reason="A sign. The interval is the widest that the two models' own intervals allow.",
        assumptions_hold=(course.attention, other.attention) == ("softmax", "sigmoid"),
    )


def _no_sink(result: Result, course: Course, kind: Literal["weight", "share"]) -> Claim:
    measured, interval = strongest_growth(grown(course, kind))
    how = {"weight": "weights as they are", "share": "weights divided by their sum over the row"}[kind]
    return Claim.at_most(
        f"no-sink-{kind}",
        f"With {course.attention} attention no head grows a sink ({how}); measured in the strongest: "
        f"{_described(result)}.",
        f"{GU}, section 7 (sigmoid attention without normalization)",
        predicted=0.0,
        measured=measured,
        interval=interval,
        tolerance=uniform(result),
        reason=f"Growing by less than uniform attention has is no sink. {STRONGEST}",
        assumptions_hold=course.attention == "sigmoid",
    )
