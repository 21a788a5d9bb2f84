"""The experiment end to end, at settings far from its defaults."""

import dataclasses

import pytest

from experiments import softmax_regression as experiment
from experiments.framework.context import UsageError

ELSEWHERE = experiment.Config(
    dimension=3, length=20, noise_variance=0.3, heads=(1, 4), condition_number=2.0, steps=2000, learning_rate=3e-3,
    batch=128, seeds=3, test_lengths=(60,), test_prompts=16384, seed=3,
    several_heads=(4,), several_dimension=3, task_inputs=2, several_length=25,
)  # fmt: skip


@pytest.mark.slow
def test_claims_hold_elsewhere_and_see_a_wrong_theory(run):
    result = run(experiment, ELSEWHERE)
    verdicts = {claim.id: claim.verdict for claim in experiment.claims(result)}
    holding = {"loss-1", "loss-4", "one-head-is-worse", "gradient-step-4", "two-tasks-loss-4", "two-tasks-rates-4"}
    assert {verdicts[id] for id in holding} == {"pass"}
    assert set(experiment.plot(result)) == {"figure_1_circuits", "loss_over_time", "loss_by_length", "two_tasks"}
    told = result._replace(config=dataclasses.replace(ELSEWHERE, length=30), pair=result.single, single=result.pair)
    wrong = {claim.id for claim in experiment.claims(told) if claim.verdict == "fail"}
    assert {"loss-1", "loss-4", "one-head-is-worse", "gradient-step-4"} <= wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimension": 0}, "--dimension must be at least 1, got 0"),
        ({"length": 1}, "--length must be at least 2, got 1"),
        ({"noise_variance": -1.0}, "--noise-variance must be positive"),
        ({"heads": (0,)}, "--heads must be one or more different numbers of at least 1"),
        ({"condition_number": 0.5}, "--condition-number must be at least 1"),
        ({"several_heads": (1,)}, "--several-heads must be different numbers of at least 2"),
        ({"task_inputs": 9}, "--task-inputs must be at least 1 and at most --several-dimension = 6"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(experiment.Config(), **change).check()
