"""What the laws say of recall, and of memories that learn while they are read, beside what was measured."""

from typing import Any

import numpy as np

from attnjax.linear import memory_theory as theory
from experiments.framework.claim import Claim
from experiments.memory_capacity.learning import curve_law
from experiments.memory_capacity.recall import MECHANISMS
from experiments.memory_capacity.statements import DELTA, DRAWS, HEBB, MIRAS, OWN, TITANS, law_over, mean, worst
from experiments.memory_capacity.study import Result


def recall(result: Result) -> list[Claim]:
    config, found = result.config, []
    for width, table, law in zip(config.recall_widths, result.recall, result.recall_law, strict=True):
        for name, samples, predicted in zip(MECHANISMS, np.moveaxis(table.all, 1, 0), law, strict=True):
            cell = worst(samples, predicted, relative=False)
            found.append(
                Claim.equal(
                    f"recall-{name}-{width}",
                    f"d = {width}, n = {config.recall_pairs[cell]}: share of words of a book of {config.words} found "
                    "again "
                    f"by {name}, beside that under isotropic noise of the same size; the worst of {len(predicted)}.",
                    f"own derivation: the noise of a kernel is (n - 1) E w(k, k')^2 / w(k, k)^2; {HEBB}",
                    predicted=float(predicted[cell]),
                    **mean(samples[:, cell]),
                    tolerance=0.1,
                    reason="With few pairs the noise is not normal, and the words it is made of are in the book.",
                )
            )
        over = table.all.mean(2)
        place = {name: over[:, i] for i, name in enumerate(MECHANISMS)}
        gaps = {
            "softmax over taylor-2": place["softmax"] - place["taylor-2"],
            "taylor-2 over linear": place["taylor-2"] - place["linear"],
            "delta over elu+1": place["delta"] - place["elu+1"],
        }
        name, gap = min(gaps.items(), key=lambda item: item[1].mean())
        found.append(
            Claim.at_least(
                f"recall-order-{width}",
                f"d = {width}, mean over n = {config.recall_pairs[0]} to {config.recall_pairs[-1]}: recall falls "
                "from softmax "
                f"to Taylor of order 2 to linear and delta to elu + 1; the least step, {name}.",
                "own check: the noise of their kernels",
                predicted=0.0,
                **mean(gap),
                tolerance=1e-3,
                reason="An order; softmax and Taylor may both be perfect.",
            )
        )
        found.extend(_delta_recall(result, width, table))
    return found


def _delta_recall(result: Result, width: int, table: Any) -> list[Claim]:
    pairs = result.config.recall_pairs
    cell = int(np.argmin([abs(n - width) for n in pairs]))
    gap = lambda shares: shares[:, MECHANISMS.index("delta"), cell] - shares[:, MECHANISMS.index("linear"), cell]
    where = f"d = {width}, n = {pairs[cell]}: recall of words by the delta rule less that by Hebb's sum"
    return [
        Claim.at_least(
            f"delta-finds-more-words-{width}",
            f"{where}, of all pairs. The usual sentence, that the delta rule stores more; it forgets the oldest.",
            f"as usually said; {DELTA}",
            predicted=0.0,
            **mean(gap(table.all)),
            tolerance=0.0,
            reason="An order.",
            assumptions_hold=2 * pairs[cell] >= width,
        ),
        Claim.at_least(
            f"delta-finds-more-recent-words-{width}",
            f"{where}, of the last quarter of them.",
            f"{OWN}; {DELTA}",
            predicted=0.0,
            **mean(gap(table.recent)),
            tolerance=0.0,
            reason="An order.",
            assumptions_hold=2 * pairs[cell] >= width,
        ),
    ]


def learning(result: Result) -> list[Claim]:
    config, found = result.config, []
    d, steps, rate = config.learning_width, config.learning_steps, config.learning_rate
    for forget, samples in zip((0.0, config.forget), result.curves, strict=True):
        ends = np.linspace(0, 2 * steps, 9).astype(int)
        windows = lambda curve, ends=ends: np.stack(
            [curve[..., a:b].mean(-1) for a, b in zip(ends[:-1], ends[1:], strict=True)], -1
        )
        say = lambda cell, forget=forget, ends=ends: (
            f"d = {d}, rate {rate:g}, weight decay {forget:g}, another task after {steps} tokens: relative squared "
            "error "
            f"after tokens {ends[cell] + 1} to {ends[cell + 1]}"
        )
        law = windows(curve_law(steps, d, rate, forget))
        found.append(law_over(f"learning-curve-{forget:g}", say, f"{OWN}; {TITANS}", windows(samples), law, 0.2))
    return [*found, *_outliers(result), _chunks(result)]


def _outliers(result: Result) -> list[Claim]:
    config = result.config
    squares, huber = result.outliers["squares"], result.outliers["huber"]
    variance = config.outlier_share * config.outlier_size**2
    share, size, rate = config.outlier_share, config.outlier_size, config.outlier_rate
    where = f"{100 * share:g}% of tokens off by {size:g} N(0, 1), rate {rate:g}"
    clean = np.stack([squares[:, 1], huber[:, 1]], 1)
    return [
        Claim.equal(
            "outliers-squares",
            f"{where}: relative squared error of the map that least squares learn, theta s / (2 - theta).",
            OWN,
            predicted=theory.descent_noise(config.outlier_rate, variance),
            **mean(squares[:, 0]),
            relative_tolerance=0.2,
            reason=DRAWS,
        ),
        Claim.at_most(
            "outliers-huber",
            f"{where}: the same of Huber's loss with threshold {config.threshold:g}, over the law of squares: ten "
            "times "
            f"nearer.",
            MIRAS,
            predicted=0.01,
            **mean(huber[:, 0] / theory.descent_noise(config.outlier_rate, variance)),
            tolerance=0.0,
            reason="Its steps are no longer than the threshold.",
        ),
        Claim.at_most(
            "no-outliers",
            "Without outliers: relative squared error of both; the larger.",
            MIRAS,
            predicted=0.0,
            **mean(clean[:, int(clean.mean(0).argmax())]),
            tolerance=1e-8,
            reason="Rounding in float32.",
            assumptions_hold=theory.descent_curve(config.outlier_steps, 8, config.outlier_rate)[-1] < 1e-12,
        ),
    ]


def _chunks(result: Result) -> Claim:
    config = result.config
    steps = np.diff(np.concatenate([np.zeros((len(result.chunks), 1)), result.chunks], 1), axis=1)
    least = int(steps.mean(0).argmin())
    distances = ", ".join(f"{x:.3f}" for x in result.chunks.mean(0))
    return Claim.at_least(
        "chunks-are-another-memory",
        f"A perceptron memory with gradients before each chunk of {', '.join(map(str, config.chunk_sizes))} tokens: "
        f"relative distance from the one with gradients before each token, {distances}; the least growth from one "
        "size to "
        f"the next, at {config.chunk_sizes[least]}.",
        f"{TITANS}, chunks",
        predicted=0.0,
        **mean(steps[:, least]),
        tolerance=0.0,
        reason="A sign: a chunk is no faster form of the same function.",
    )
