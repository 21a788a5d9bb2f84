"""The experiment end to end, at settings far from its defaults."""

import dataclasses

import pytest

from experiments import implicit_update as experiment
from experiments.framework.context import UsageError

ELSEWHERE = experiment.Config(
    dimension=3, length=8, width=12, noise=0.3, steps=40, batch=32, seeds=2, test_prompts=64, seed=2
)


@pytest.mark.slow
def test_the_identity_holds_elsewhere_and_a_wrong_update_is_seen(run):
    result = run(experiment, ELSEWHERE)
    verdicts = {claim.id: claim.verdict for claim in experiment.claims(result)}
    exact = {id for id in verdicts if id.startswith(("identity", "rank-one", "descent", "same-loss"))}
    assert {verdicts[id] for id in exact} == {"pass"}
    assert set(experiment.plot(result)) == {"losses", "implicit_gradients"}
    wrong = result._replace(by_update=1.01 * result.by_update, trained=result.trained._replace(rank=1e-6))
    failed = {claim.id for claim in experiment.claims(wrong) if claim.verdict == "fail"}
    assert {"same-loss-while-training", "rank-one-trained"} <= failed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 2}, "--length must be at least 4, got 2"),
        ({"noise": -1.0}, "--noise must not be negative"),
        ({"learning_rate": 0.0}, "--learning-rate must be positive"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(experiment.Config(), **change).check()
