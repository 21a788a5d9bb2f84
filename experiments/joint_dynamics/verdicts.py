"""What JoMA says, beside what was measured."""

import numpy as np
from scipy.stats import spearmanr

from experiments.framework.claim import Claim
from experiments.framework.statistics import mean_over_seeds
from experiments.joint_dynamics.study import BEFORE_BLOW_UP, EXACT, Config, Descent, Flow, Result, Unit, Winner

PAPER = "Tian et al., 2024, JoMA, arXiv 2310.00535"
INTEGRATOR = "The integrator's relative tolerance is 1e-10."
ALIKE = 0.99  # correlation that the paper's Figure 2 shows


def claims(result: Result) -> list[Claim]:
    """Invariants, then the two kinds of unit.

    Args:
        result: From `run`.

    Returns:
        The claims.
    """
    found = [_flow(flow, result.config) for flow in result.flows]
    for name, descent in result.descents.items():
        found += _descent(name, descent, result.config)
    return [*found, *_unit(result.unit, result.config), *_winner(result.winner, result.config)]


def _flow(flow: Flow, config: Config) -> Claim:
    conserved = {"linear": "z^2 / 2 - sum v^2 / 2", "exp": "z - sum v^2 / 2 tau"}
    name = conserved.get(flow.kind, "z - (sum v^2 - b |V|^2) / 2 tau")
    return Claim.equal(
        f"invariant-{flow.kind}-depth-{flow.depth}",
        f"{flow.kind} attention below {flow.depth} matrices{', tanh between them' if flow.depth > 1 else ''}, "
        f"M = {config.distinct + config.common}, {config.classes} classes, tau = {config.temperature:g}: largest "
        f"change of {name} over the largest of z's part, worst of {config.seeds} seeds; attention moved by "
        f"{flow.moved:.2g} at least.",
        f"{PAPER}; derived anew",
        predicted=0.0,
        measured=flow.drift,
        tolerance=1e-6,
        reason=INTEGRATOR if flow.kind in EXACT else "Exact only while the mean attention b stays what it was.",
        assumptions_hold=flow.kind in EXACT,
    )


def _descent(name: str, descent: Descent, config: Config) -> list[Claim]:
    where = (
        f"{name} frequencies, softmax attention, {config.steps} steps of rate {config.learning_rate:g}, "
        f"tau = {config.temperature:g}"
    )
    numbers = mean_over_seeds(np.stack([descent.correlations[:, -1], descent.parts[0, :, -1]], axis=1))
    whole, first = numbers.at(0), numbers.at(1)
    return [
        Claim.at_least(
            f"softmax-{name}",
            f"{where}: correlation at the end between z and what the perceptron says of it.",
            f"{PAPER}, Figure 2",
            predicted=ALIKE,
            measured=whole[0],
            interval=whole[1],
            tolerance=0.0,
            reason="The authors' code, with its one draw, gives no less.",
        ),
        Claim.at_most(
            f"softmax-{name}-first-term",
            f"{where}: the same without the term in |V|^2, which is needed.",
            f"{PAPER}, Figure 2",
            predicted=ALIKE,
            measured=first[0],
            interval=first[1],
            tolerance=0.0,
            reason="Otherwise the check above could not see the second term.",
        ),
    ]


def _unit(unit: Unit, config: Config) -> list[Claim]:
    where = (
        f"nonlinear unit of {config.unit_tokens} weights, mu on {config.unit_range}, "
        f"tau = {config.unit_temperature:g}, {len(unit.mu)} draws"
    )
    dip = unit.entropies.min(axis=1)
    falls, rises = unit.entropies[:, 0] - dip, unit.ends - dip
    changes = mean_over_seeds(np.stack([falls, rises], axis=1))
    halfway = (unit.weights >= unit.mu[:, None] / 2).argmax(axis=1)
    order = np.array([spearmanr(mu, half)[0] for mu, half in zip(unit.mu, halfway, strict=True)])
    ordered, orders = mean_over_seeds(order[:, None]).at(0)
    found = [
        Claim.equal(
            "nonlinear-clock",
            f"{where}: all tokens carry the same clock, the integral of exp(-v^2 / tau) / (mu - v); largest difference "
            f"over the mean, at any time.",
            "own derivation",
            predicted=0.0,
            measured=unit.clock_spread,
            tolerance=1e-6,
            reason=INTEGRATOR,
        ),
        Claim.equal(
            "nonlinear-limit",
            f"{where}: entropy of attention long after, less that of softmax(mu^2 / tau), the worst draw.",
            f"own derivation from the flow of {PAPER}",
            predicted=0.0,
            measured=float(np.abs(unit.ends - unit.limits).max()),
            tolerance=1e-6,
            reason="Integrated until every weight is within 1e-9 of its end.",
        ),
        Claim.at_most(
            "nonlinear-largest-first",
            f"{where}: rank correlation of mu with the time at which a weight is halfway.",
            PAPER,
            predicted=-0.9,
            measured=ordered,
            interval=orders,
            tolerance=0.0,
            reason="Close to -1: the flow is watched at finitely many times.",
        ),
    ]
    for index, (name, verb) in enumerate((("falls", "falls from the start to"), ("rises", "rises to the end from"))):
        measured, interval = changes.at(index)
        found.append(
            Claim.at_least(
                f"nonlinear-entropy-{name}",
                f"{where}: how much the entropy of attention {verb} its least, in nats.",
                f"{PAPER}, Figure 4",
                predicted=0.0,
                measured=measured,
                interval=interval,
                tolerance=0.0,
                reason="A sign.",
            )
        )
    return found


def _winner(winner: Winner, config: Config) -> list[Claim]:
    where = f"linear unit of {config.unit_tokens} weights, normal Delta, up to {BEFORE_BLOW_UP:g} of the blow-up time"
    share, shares = mean_over_seeds(winner.share[:, None]).at(0)
    return [
        Claim.equal(
            "linear-path",
            f"{where}: largest difference of the flow from the closed form over the largest weight, worst draw.",
            "own derivation",
            predicted=0.0,
            measured=winner.error,
            tolerance=1e-6,
            reason=INTEGRATOR,
        ),
        Claim.equal(
            "linear-invariant",
            f"{where}: erf(v_j / sqrt 2) / Delta_j - erf(v_k / sqrt 2) / Delta_k is conserved; largest change over the "
            f"largest, worst draw.",
            PAPER,
            predicted=0.0,
            measured=winner.drift,
            tolerance=1e-6,
            reason=INTEGRATOR,
        ),
        Claim.at_least(
            "linear-winner-takes-all",
            f"{where}: attention of the winner at the end.",
            PAPER,
            predicted=0.9,
            measured=share,
            interval=shares,
            tolerance=0.0,
            reason="It is 1 at the blow-up.",
        ),
    ]
