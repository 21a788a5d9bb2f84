"""The experiment end to end, at settings far from its defaults."""

import dataclasses

import pytest

from experiments import joint_dynamics as experiment
from experiments.framework.context import UsageError

ELSEWHERE = experiment.Config(
    distinct=6, common=3, classes=8, temperature=1.5, learning_rate=0.3, steps=100, seeds=2, depths=(2,), width=5,
    flow_scale=0.8, flow_time=20.0, unit_tokens=5, unit_range=(2.0, 3.5), unit_temperature=2.0, seed=3,
)  # fmt: skip


@pytest.mark.slow
def test_exact_claims_hold_elsewhere_and_see_a_wrong_theory(run):
    result = run(experiment, ELSEWHERE)
    verdicts = {claim.id: claim.verdict for claim in experiment.claims(result)}
    assert verdicts["invariant-softmax-depth-2"] == "assumption-not-met"
    exact = {"invariant-linear-depth-2", "invariant-exp-depth-2", "nonlinear-clock", "nonlinear-limit"}
    exact |= {"linear-path", "linear-invariant"}
    assert {verdicts[id] for id in exact} == {"pass"}
    assert set(experiment.plot(result)) == {
        "figure_2_invariant", "figure_3_growth", "figure_4_entropy", "linear_winner",
    }  # fmt: skip
    unit = result.unit._replace(ends=result.unit.ends + 1e-3)
    told = {claim.id: claim.verdict for claim in experiment.claims(result._replace(unit=unit))}
    assert told["nonlinear-limit"] == "fail"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 1}, "--classes must be at least 2, got 1"),
        ({"temperature": 0.0}, "--temperature must be positive"),
        ({"depths": (1, 1)}, "--depths must be one or more different numbers"),
        ({"unit_range": (0.01, 1.0)}, "--unit-range must increase and lie above --unit-start"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(experiment.Config(), **change).check()
