"""Settings that the experiment refuses."""

import dataclasses

import pytest

from experiments import softmax_regression as experiment
from experiments.framework.context import UsageError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimension": 0}, "--dimension must be at least 1, got 0"),
        ({"length": 1}, "--length must be at least 2, got 1"),
        ({"noise_variance": -1.0}, "--noise-variance must be positive"),
        ({"heads": (0,)}, "--heads must be one or more different numbers of at least 1"),
        ({"condition_number": 0.5}, "--condition-number must be at least 1"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(experiment.Config(), **change).check()
