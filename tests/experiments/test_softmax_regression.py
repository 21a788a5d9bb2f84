"""The experiment end to end, at settings far from its defaults."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from attnjax.dynamics import softmax_attention_theory as theory
from experiments import softmax_regression as experiment
from experiments.framework.context import UsageError
from experiments.softmax_regression import several
from experiments.softmax_regression.figures import plot_shared
from experiments.softmax_regression.verdicts import _shared

ELSEWHERE = experiment.Config(
    dimension=3, length=20, noise_variance=0.3, heads=(1, 4), condition_number=2.0, steps=3000, learning_rate=1e-2,
    batch=512, seeds=3, test_lengths=(60,), test_prompts=16384, seed=3,
    several_heads=(),
)  # fmt: skip


@pytest.mark.slow
def test_claims_hold_elsewhere_and_see_a_wrong_theory(run):
    result = run(experiment, ELSEWHERE)
    verdicts = {claim.id: claim.verdict for claim in experiment.claims(result)}
    holding = {"loss-1", "loss-4", "one-head-is-worse", "zero-sum-4", "gradient-step-4", "length-60-heads-4"}
    assert {verdicts[id] for id in holding} == {"pass"}
    assert set(experiment.plot(result)) == {"figure_1_circuits", "loss_over_time", "loss_by_length"}
    told = result._replace(config=dataclasses.replace(ELSEWHERE, length=30), pair=result.single, single=result.pair)
    wrong = {claim.id for claim in experiment.claims(told) if claim.verdict == "fail"}
    assert {"loss-1", "loss-4", "one-head-is-worse", "gradient-step-4"} <= wrong


def made_by_hand(best: np.ndarray) -> several.Shared:
    """Three heads that take given rates of two tasks, the second head with both; two seeds."""
    omega = 0.1 * np.stack([best[0] - 0.5, np.full(6, -0.5), best[1] - 0.5])
    mu = 10 * np.array([[1.0, 0.0], [-1.0, -1.0], [0.0, 1.0]])
    kq, ov = np.zeros((2, 3, 8, 8)), np.zeros((2, 3, 2, 8))
    kq[:, :, range(6), range(6)] = omega
    ov[:, :, range(2), range(6, 8)] = mu
    of = theory.rates(several.priors_of(experiment.Config()), length=48, noise=0.1**0.5)
    own = of.gain / of.curvature
    least = np.asarray(theory.rates_risk(own, of))
    return several.Shared(3, np.asarray(own), least, least, least + np.array([[1e-5], [-1e-5]]), kq, ov)


def test_claims_about_two_tasks_follow_the_rates():
    of = theory.rates(several.priors_of(experiment.Config()), length=48, noise=0.1**0.5)
    own = np.asarray(of.gain / of.curvature)
    right, wrong = made_by_hand(own), made_by_hand(own[:, ::-1])
    np.testing.assert_allclose(right.taken[0], own, atol=1e-6)
    verdicts = lambda shared: {claim.id: claim.verdict for claim in _shared(shared, experiment.Config())}
    assert set(verdicts(right).values()) == {"pass"}
    assert verdicts(wrong)["two-tasks-rates-3"] == "fail"
    assert verdicts(right._replace(risks=right.risks + 0.1))["two-tasks-loss-3"] == "fail"
    assert len(plot_shared(SimpleNamespace(shared={3: right})).axes) == 1


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
