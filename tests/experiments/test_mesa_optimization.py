"""Settings that the experiment refuses."""

import dataclasses

import pytest

from experiments import mesa_optimization as experiment
from experiments.framework.context import UsageError


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
