"""The experiment end to end, at settings far from its defaults."""

import dataclasses

import pytest

from experiments import memory_capacity as experiment
from experiments.framework.context import UsageError

ELSEWHERE = dataclasses.replace(
    experiment.Config.quick(), draws=250, widths=(24, 96), loads=(0.2, 0.7), width=40, heads=(1, 3), layers=(1, 3),
    delta_pairs=(5, 60), decay=0.8, common=0.7, spectrum=(3.0, 1.0, 0.5), oja_steps=3000, recall_widths=(24,),
    recall_pairs=(6, 24), recall_draws=60, words=200, learning_width=10, learning_steps=40, learning_rate=0.7,
    forget=0.05, outlier_share=0.1, outlier_size=10.0, outlier_steps=1500, threshold=0.5, chunk_sizes=(8,),
    chunk_draws=4, seed=3,
)  # fmt: skip


@pytest.mark.slow
def test_laws_hold_elsewhere_and_wrong_numbers_fail(run):
    """The delta rule finds fewer words than a sum also here; each group of claims sees numbers that are not its own."""
    result = run(experiment, ELSEWHERE)
    verdicts = {claim.id: claim.verdict for claim in experiment.claims(result)}
    assert verdicts.pop("delta-finds-more-words-24") == "fail"
    assert verdicts.pop("delta-first-order-60") == "assumption-not-met"
    assert set(verdicts.values()) == {"pass"}, verdicts
    assert set(experiment.plot(result)) == {"capacity", "noise", "corrections", "recall", "learning", "chunks"}

    told = dataclasses.replace(
        ELSEWHERE, widths=(30, 150), decay=0.7, common=0.9, oja_rate=0.02, learning_rate=1.0, outlier_size=15.0
    )
    wrong = result._replace(
        config=told, noise=[result.noise[0], 1.5 * result.noise[1]], heads=1.1 * result.heads, layers=1.2 * result.layers, chunks=-result.chunks,
        corrected={name: 1.2 * found for name, found in result.corrected.items()},
        shared={name: 1.2 * found for name, found in result.shared.items()},
        recall_law=[0.5 * law for law in result.recall_law],
    )  # fmt: skip
    failed = {claim.id for claim in experiment.claims(wrong) if claim.verdict == "fail"}
    assert {
        "read-noise-150", "safe-pairs-150", "average-capacity-slope", "heads", "layers", "delta-noise", "decay-signal",
        "common-mode", "covariance-rule", "oja-angle", "recall-linear-24", "learning-curve-0", "learning-curve-0.05",
        "outliers-squares", "chunks-are-another-memory",
    } <= failed  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draws": 1}, "--draws must be at least 2, got 1"),
        ({"words": 100}, "--words must be at least 128, got 100"),
        ({"widths": (64, 16)}, "--widths must be one or more positive numbers, increasing"),
        ({"loads": (0.5, 1.0)}, "--loads must reach from 0.25 or less"),
        ({"spectrum": (1.0, 2.0)}, "--spectrum must be positive, the greatest first"),
        ({"decay": 1.0}, "--decay must be between 0 and 1, got 1.0"),
        ({"threshold": 0.0}, "--threshold must be positive"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(experiment.Config(), **change).check()
