"""A claim: predicted beside measured, with a verdict that is computed and never written by hand."""

import dataclasses
import math
from typing import Any, Literal

Verdict = Literal["pass", "fail", "assumption-not-met"]


@dataclasses.dataclass(frozen=True)
class Claim:
    """One statement of a theory held against a measurement.

    Build it with `Claim.equal`, `Claim.at_least` or `Claim.at_most`. The verdict follows one rule: a claim passes iff
    *every* value of the measured interval agrees with the prediction within the tolerance,

        equal:     predicted - tolerance <= low   and   high <= predicted + tolerance
        at_least:  predicted - tolerance <= low
        at_most:   high <= predicted + tolerance

    so that a measurement too noisy to decide fails instead of passing by luck. A NaN anywhere fails. Where the theory's
    assumptions do not hold at the settings of the run, the verdict is "assumption-not-met" whatever the numbers.

    Attributes:
        id: Short stable name, unique within the experiment.
        statement: One sentence, with the settings at which it was checked.
        source: Author, year, title, equation or theorem, arXiv id; "own derivation" where it is.
        predicted: Value from a closed form, an ODE or the paper.
        measured: The measurement's best estimate.
        interval: Its 95% confidence interval over seeds; a single exact number has `(measured, measured)`.
        tolerance: Absolute, in the unit of `measured`.
        reason: Why this tolerance, followed by the rule that was applied.
        verdict: "pass", "fail" or "assumption-not-met".
    """

    id: str
    statement: str
    source: str
    predicted: float
    measured: float
    interval: tuple[float, float]
    tolerance: float
    reason: str
    verdict: Verdict

    @classmethod
    def equal(cls, id: str, statement: str, source: str, **numbers: Any) -> "Claim":
        """The measurement equals the prediction. See `_judge` for the keyword arguments."""
        return _judge("equal", id, statement, source, **numbers)

    @classmethod
    def at_least(cls, id: str, statement: str, source: str, **numbers: Any) -> "Claim":
        """The measurement is no smaller than the prediction. See `_judge` for the keyword arguments."""
        return _judge("at_least", id, statement, source, **numbers)

    @classmethod
    def at_most(cls, id: str, statement: str, source: str, **numbers: Any) -> "Claim":
        """The measurement is no larger than the prediction. See `_judge` for the keyword arguments."""
        return _judge("at_most", id, statement, source, **numbers)

    def as_dict(self) -> dict[str, Any]:
        """The claim as JSON-ready data with exactly the attributes above; NaN and infinities become None."""
        return {
            **dataclasses.asdict(self),
            "predicted": _finite_or_none(self.predicted),
            "measured": _finite_or_none(self.measured),
            "interval": [_finite_or_none(end) for end in self.interval],
            "tolerance": _finite_or_none(self.tolerance),
        }


_RULES = {
    "equal": "Pass iff the whole interval lies within the tolerance of the prediction.",
    "at_least": "Pass iff the interval's lower end is no smaller than the prediction minus the tolerance.",
    "at_most": "Pass iff the interval's upper end is no larger than the prediction plus the tolerance.",
}


def _judge(
    kind: Literal["equal", "at_least", "at_most"],
    id: str,
    statement: str,
    source: str,
    *,
    predicted: float,
    measured: float,
    reason: str,
    interval: tuple[float, float] | None = None,
    tolerance: float | None = None,
    relative_tolerance: float | None = None,
    assumptions_hold: bool = True,
) -> Claim:
    """Compute the verdict.

    Args:
        kind: Which comparison.
        id: See `Claim`.
        statement: See `Claim`.
        source: See `Claim`.
        predicted: See `Claim`.
        measured: See `Claim`.
        reason: Why this tolerance.
        interval: See `Claim`; None for an exact number.
        tolerance: Absolute tolerance; give this or `relative_tolerance`.
        relative_tolerance: Tolerance as a fraction of |predicted|.
        assumptions_hold: Whether the theory's assumptions hold at the settings of this run.

    Raises:
        ValueError: Both or neither tolerance given, a negative tolerance, or an interval that does not hold `measured`.
    """
    if (tolerance is None) == (relative_tolerance is None):
        raise ValueError(f"claim {id!r}: give exactly one of tolerance and relative_tolerance")
    if relative_tolerance is not None:
        tolerance = relative_tolerance * abs(predicted)
        reason = f"{reason} ({100 * relative_tolerance:.3g}% of the prediction.)"
    assert tolerance is not None
    if tolerance < 0:
        raise ValueError(f"claim {id!r}: tolerance must be non-negative, got {tolerance}")
    low, high = (float(end) for end in (interval or (measured, measured)))
    if low > measured or high < measured:
        raise ValueError(f"claim {id!r}: interval [{low}, {high}] does not contain measured = {measured}")
    above, below = predicted - tolerance <= low, high <= predicted + tolerance  # both False for NaN
    passes = {"equal": above and below, "at_least": above, "at_most": below}[kind]
    known = not any(math.isnan(number) for number in (predicted, measured, low, high))
    verdict: Verdict = "assumption-not-met" if not assumptions_hold else "pass" if passes and known else "fail"
    return Claim(
        id=id,
        statement=statement,
        source=source,
        predicted=float(predicted),
        measured=float(measured),
        interval=(low, high),
        tolerance=float(tolerance),
        reason=f"{reason} {_RULES[kind]}",
        verdict=verdict,
    )


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
