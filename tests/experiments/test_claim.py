"""The verdict: green where the whole interval agrees, red where it does not, by the rule that `Claim` states."""

import json
import math

import numpy as np
import pytest
from scipy.stats import t as student_t

from experiments.framework.claim import Claim
from experiments.framework.statistics import mean_over_seeds

KEYS = ["id", "statement", "source", "predicted", "measured", "interval", "tolerance", "reason", "verdict"]


def verdict(make, predicted, measured, interval=None, *, tolerance: float | None = 0.1, **knobs):
    claim = make(
        "id",
        "statement",
        "source",
        predicted=predicted,
        measured=measured,
        interval=interval,
        reason="Because.",
        **({"tolerance": tolerance} if tolerance is not None else {}),
        **knobs,
    )
    return claim.verdict


@pytest.mark.parametrize(
    ("measured", "interval", "expected"),
    [
        (1.05, None, "pass"),
        (1.2, None, "fail"),
        (0.8, None, "fail"),
        (1.05, (1.01, 1.09), "pass"),
        (1.05, (0.99, 1.11), "fail"),  # too noisy above
        (0.95, (0.8, 1.1), "fail"),  # too noisy below
        (1.0, (-5.0, 7.0), "fail"),  # the best estimate alone does not decide
        (math.nan, None, "fail"),
        (math.inf, None, "fail"),
    ],
)
def test_equal(measured, interval, expected):
    assert verdict(Claim.equal, 1.0, measured, interval) == expected


@pytest.mark.parametrize(
    ("make", "measured", "interval", "expected"),
    [
        (Claim.at_least, 5.0, None, "pass"),
        (Claim.at_least, 0.95, None, "pass"),
        (Claim.at_least, 0.85, None, "fail"),
        (Claim.at_least, 1.5, (0.8, 2.2), "fail"),
        (Claim.at_least, math.nan, None, "fail"),
        (Claim.at_most, -5.0, None, "pass"),
        (Claim.at_most, 1.05, None, "pass"),
        (Claim.at_most, 1.15, None, "fail"),
        (Claim.at_most, 0.5, (0.0, 1.2), "fail"),
        (Claim.at_most, math.nan, None, "fail"),
    ],
)
def test_one_sided(make, measured, interval, expected):
    assert verdict(make, 1.0, measured, interval) == expected


@pytest.mark.parametrize(("make", "measured"), [(Claim.at_least, 2.0), (Claim.at_most, 0.0), (Claim.equal, 1.0)])
@pytest.mark.parametrize("interval", [(math.nan, math.nan), (math.nan, 3.0), (-3.0, math.nan)])
def test_an_unknown_interval_fails(make, measured, interval):
    assert verdict(make, 1.0, measured, interval) == "fail"


def test_assumptions_come_before_numbers():
    for measured in (1.0, 50.0, math.nan):
        assert verdict(Claim.equal, 1.0, measured, assumptions_hold=False) == "assumption-not-met"


def test_relative_tolerance_is_of_the_prediction():
    assert verdict(Claim.equal, -200.0, -202.0, tolerance=None, relative_tolerance=0.02) == "pass"
    assert verdict(Claim.equal, -200.0, -205.0, tolerance=None, relative_tolerance=0.02) == "fail"


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"tolerance": None}, "exactly one of tolerance and relative_tolerance"),
        ({"relative_tolerance": 0.1}, "exactly one of tolerance and relative_tolerance"),
        ({"tolerance": -1.0}, "tolerance must be non-negative"),
        ({"interval": (2.0, 3.0)}, "does not contain measured"),
    ],
)
def test_contradictory_claims_are_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        verdict(Claim.equal, 1.0, 1.0, **knobs)


def test_json_has_exactly_the_schema_and_no_nan():
    claim = Claim.equal("id", "s", "from", predicted=1.0, measured=math.nan, tolerance=0.1, reason="Because.")
    document = claim.as_dict()
    assert list(document) == KEYS
    assert document["measured"] is None
    assert document["interval"] == [None, None]
    assert document["reason"].startswith("Because. Pass iff")
    json.dumps(document, allow_nan=False)


def test_interval_over_seeds_covers_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(3.0, 2.0, (8, 20_000))
    estimate = mean_over_seeds(samples)
    covered = np.mean((estimate.low <= 3.0) & (estimate.high >= 3.0))
    assert covered == pytest.approx(0.95, abs=0.006)
    half = student_t.ppf(0.975, 7) * samples[:, 0].std(ddof=1) / np.sqrt(8)
    mean, interval = estimate.at(0)
    assert mean == pytest.approx(samples[:, 0].mean())
    assert interval == pytest.approx((mean - half, mean + half))


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="at least two seeds"):
        mean_over_seeds(np.ones((1, 3)))
