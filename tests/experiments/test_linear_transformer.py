"""The experiment end to end, at settings far from its defaults."""

import dataclasses

import pytest

from experiments import linear_transformer as experiment
from experiments.framework.context import UsageError

ELSEWHERE = experiment.Config(
    dimension=3, length=8, layers=(1,), compared_layers=1, condition_number=3.0, steps=300, compared_steps=300, batch=256,
    seeds=2, test_prompts=65536, seed=3,
)  # fmt: skip


@pytest.mark.slow
def test_claims_hold_elsewhere_and_see_a_wrong_theory(run):
    result = run(experiment, ELSEWHERE)
    verdicts = {claim.id: claim.verdict for claim in experiment.claims(result)}
    assert {verdicts[id] for id in ("q-is-identity-1", "unequal-preconditioner", "heavy-inputs-make-heavy-noise")} == {
        "pass"
    }
    assert set(experiment.plot(result)) == {"loss_by_depth", "weights", "adam_and_sgd", "gradient_noise"}
    told = result._replace(least={1: (2.0, 2.0)}, preconditioner=result.preconditioner[::-1], unequal_least=2.0)
    wrong = {claim.id for claim in experiment.claims(told) if claim.verdict == "fail"}
    assert {"loss-1", "unequal-loss", "unequal-preconditioner"} <= wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimension": 0}, "--dimension must be at least 1, got 0"),
        ({"tail": 0.0}, "--tail must be positive"),
        ({"compared_steps": 5}, "--compared-steps must be at least 10, got 5"),
        ({"layers": ()}, "--layers must be one or more different numbers of at least 1"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(experiment.Config(), **change).check()
