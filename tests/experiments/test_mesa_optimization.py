"""The experiment end to end, at settings far from its defaults."""

import dataclasses

import pytest

from experiments import mesa_optimization as experiment
from experiments.framework.context import UsageError

ELSEWHERE = experiment.Config(dimension=3, length=8, scale=0.7, modulus=0.8, a=0.2, b=0.4, batch=512, seed=3)
UNMET = {"full-one-limit", "decaying-published-limit"}


@pytest.mark.slow
def test_claims_hold_elsewhere_and_see_a_wrong_theory(run):
    result = run(experiment, ELSEWHERE)
    verdicts = {claim.id: claim.verdict for claim in experiment.claims(result)}
    assert {id for id, verdict in verdicts.items() if verdict == "assumption-not-met"} == UNMET
    assert {verdict for id, verdict in verdicts.items() if id not in UNMET} == {"pass"}
    assert set(experiment.plot(result)) == {"product_over_time", "figure_1_starts", "figure_3_blocks"}
    # The published limit is another number where the map is not unitary: nothing passes there by a loose tolerance.
    decaying = result.settings["decaying"]
    assert abs(decaying.published / decaying.limit - 1) > 2 * 0.02
    told = {name: setting._replace(limit=1.1 * setting.limit) for name, setting in result.settings.items()}
    wrong = {claim.id for claim in experiment.claims(result._replace(settings=told)) if claim.verdict == "fail"}
    assert {
        f"{name}-{claim}" for name in ("gaussian", "sparse", "decaying") for claim in ("flow-limit", "limit")
    } <= wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimension": 0}, "--dimension must be at least 1, got 0"),
        ({"length": 2}, "--length must be at least 3, got 2"),
        ({"scale": -1.0}, "--scale must be positive"),
        ({"starts": ((1.0, -1.0),)}, "--starts must be pairs of numbers"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(experiment.Config(), **change).check()
