"""Its measures on made-up traces, and settings that the experiment refuses."""

import dataclasses

import numpy as np
import pytest

from experiments import loss_plateau as experiment
from experiments.framework.context import UsageError
from experiments.loss_plateau.study import Result, Watched

STEPS = np.arange(0, 110, 10)


def watched(drop: int, seeds: int = 3) -> Watched:
    """Traces that stand still until `drop`; attention moves from half of that on."""
    after, moving = STEPS >= drop, STEPS >= drop / 2
    trace = lambda before, then: np.tile(np.where(after, then, before), (seeds, 1))
    return Watched(
        steps=STEPS,
        losses=trace(2.65, 0.1),
        accuracies=trace(0.1, 1.0),
        repetitions=trace(0.3, 0.06),
        progress=np.tile(np.where(moving, 0.5, 0.1), (seeds, 1)),
        collapse=trace(0.97, 0.01),
    )


def result(**change) -> Result:
    config = dataclasses.replace(experiment.Config(), factors=(10.0, 0.5))
    traces = {1.0: watched(60), 10.0: watched(20), 0.5: watched(90)}
    return Result(config, 2.65, 0.06, traces, np.zeros((32, 32)))._replace(**change)


def test_claims_pass_on_what_the_paper_describes_and_fail_on_the_opposite():
    assert {claim.verdict for claim in experiment.claims(result())} == {"pass"}
    swapped = {1.0: watched(60), 10.0: watched(90), 0.5: watched(20)}
    opposite = result(height=2.0, repetition=0.2, watched=swapped)
    failed = {claim.id for claim in experiment.claims(opposite) if claim.verdict == "fail"}
    assert {"height", "repetition-afterwards", "needed-attention-times-10", "needed-attention-times-0.5"} <= failed
    assert set(experiment.plot(result())) == {"plateau", "attention", "interventions"}


def test_a_run_that_never_learns_passes_nothing():
    never = {1.0: watched(1000), 10.0: watched(20), 0.5: watched(90)}
    assert not [claim.id for claim in experiment.claims(result(watched=never)) if claim.verdict == "pass"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 16}, "--window must be below --length = 16, got 16"),
        ({"modulus": 16}, "--modulus must be larger than --largest = 16, got 16"),
        ({"factors": (1.0,)}, "--factors must be positive numbers other than 1"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(experiment.Config(), **change).check()
