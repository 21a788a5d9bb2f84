"""The experiment end to end, at settings far from its defaults."""

import dataclasses

import pytest

from experiments import in_context_descent as experiment
from experiments.framework.context import UsageError

ELSEWHERE = experiment.Config(
    dimension=3, length=6, half_range=1.5, layers=(1,), steps=1000, learning_rate=5e-3, batch=128, seeds=4,
    test_scales=(1.4,), test_prompts=8192, seed=3,
)  # fmt: skip


@pytest.mark.slow
def test_claims_hold_elsewhere_and_see_a_wrong_theory(run):
    result = run(experiment, ELSEWHERE)
    verdicts = {claim.id: claim.verdict for claim in experiment.claims(result)}
    sampled = {"best-rate", "trained-risk", "trained-predictions", "trained-sensitivity", "wider-by-1.4"}
    exact = {"construction-1", "construction-2", "construction-5"}
    assert {verdicts[id] for id in sampled | exact} == {"pass"}
    assert set(experiment.plot(result)) == {"figure_2_training", "rate_scan", "wider_inputs"}
    one = result.trained[1]
    told = result._replace(
        constructed={layers: 1e-6 for layers in result.constructed},
        scan=result.scan._replace(best=1.1 * result.scan.best),
        trained={1: one._replace(plain=1.1 * one.plain, expected_scaled=1.2 * one.expected_scaled)},
    )
    wrong = {claim.id for claim in experiment.claims(told) if claim.verdict == "fail"}
    assert {"best-rate", "trained-risk", "wider-by-1.4"} | exact <= wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 0}, "--length must be at least 1, got 0"),
        ({"half_range": 0.0}, "--half-range must be positive"),
        ({"layers": (0,)}, "--layers must be one or more different numbers of at least 1"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(experiment.Config(), **change).check()
