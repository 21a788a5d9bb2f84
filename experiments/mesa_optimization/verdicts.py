"""What the theory of mesa-optimization says, beside what was measured."""

import numpy as np

from experiments.framework.claim import Claim
from experiments.framework.statistics import mean_over_seeds
from experiments.mesa_optimization.study import EXPECTED, Config, Result, Setting

PAPER = "Zheng et al., 2024, On Mesa-Optimization in Autoregressively Trained Transformers, arXiv 2405.16845"
INTEGRATOR = "The integrator's relative tolerance is 1e-10."
SAMPLES = "Noise of finite batches, and the last of the way to the limit, 0.1%"


def claims(result: Result) -> list[Claim]:
    """The laws that the theorem is about, then those that break its assumptions.

    Args:
        result: From `run`.

    Returns:
        The claims.
    """
    config, settings = result.config, result.settings
    found = []
    for name in EXPECTED:
        found += [*_flow(settings[name], config), *_descent(settings[name], config)]
    found += [_gaussian_part(settings["gaussian"], config), _sparse_whole(settings["sparse"], config)]
    found += _full_one(settings["full-one"], config)
    found += [*_flow(settings["decaying"], config), *_decaying(settings["decaying"], config)]
    return found


def _where(setting: Setting, config: Config) -> str:
    sizes = f"D = {config.dimension}, T = {config.length}, scale {config.scale:g}"
    return f"{setting.name}: {sizes}, |W_jj| = {setting.modulus:g}"


def _source(setting: Setting, place: str) -> str:
    return f"{PAPER} [{place}]" if setting.modulus == 1 else f"own derivation; at |W_jj| = 1 {PAPER} [{place}]"


def _flow(setting: Setting, config: Config) -> list[Claim]:
    where = f"{_where(setting, config)}, {len(config.starts)} starts"
    ends = setting.flows[:, -1]
    worst = ends[np.abs(ends - setting.limit).argmax()]
    return [
        Claim.equal(
            f"{setting.name}-flow-limit",
            f"{where}: the limit of a b along the flow, from the start where it is worst.",
            _source(setting, "limit of the flow"),
            predicted=setting.limit,
            measured=float(worst),
            relative_tolerance=1e-6,
            reason=INTEGRATOR,
        ),
        Claim.equal(
            f"{setting.name}-flow-time-course",
            f"{where}: largest difference of a b along the flow from the closed form, over the limit.",
            "own derivation",
            predicted=0.0,
            measured=float(np.abs(setting.flows - setting.closed).max() / setting.limit),
            tolerance=1e-6,
            reason=INTEGRATOR,
        ),
        Claim.equal(
            f"{setting.name}-flow-invariant",
            f"{where}: a^2 - b^2 is conserved; its largest drift over the largest a^2 + b^2.",
            "own derivation",
            predicted=0.0,
            measured=setting.drift,
            tolerance=1e-6,
            reason=INTEGRATOR,
        ),
    ]


def _loss(setting: Setting, config: Config) -> Claim:
    measured, interval = mean_over_seeds(setting.losses[:, None]).at(0)
    return Claim.equal(
        f"{setting.name}-loss",
        f"{_where(setting, config)}: loss of two diagonals with a b at half its limit, on "
        f"{config.test_sequences} sequences per seed.",
        _source(setting, "expected loss"),
        predicted=setting.expected,
        measured=measured,
        interval=interval,
        relative_tolerance=0.03,
        reason="Finitely many sequences; sixth powers of Gaussians have heavy tails.",
    )


def _limit(setting: Setting, config: Config) -> Claim:
    measured, interval = mean_over_seeds(setting.products).at(-1)
    return Claim.equal(
        f"{setting.name}-limit",
        f"{_where(setting, config)}: a b at the end of {len(setting.descent)} steps on fresh batches of "
        f"{config.batch}, all entries of both matrices free.",
        _source(setting, "limit of the flow"),
        predicted=setting.limit,
        measured=measured,
        interval=interval,
        relative_tolerance=0.02,
        reason=f"{SAMPLES}.",
    )


def _descent(setting: Setting, config: Config) -> list[Claim]:
    where = _where(setting, config)
    half = lambda products: float(setting.descent_times[np.argmax(products >= setting.limit / 2)])
    halves = np.array([half(products) for products in setting.products])[:, None]
    measured, interval = mean_over_seeds(halves).at(0)
    departure, departures = mean_over_seeds(setting.departure[:, None]).at(0)
    return [
        _loss(setting, config),
        _limit(setting, config),
        Claim.equal(
            f"{setting.name}-half-time",
            f"{where}: flow time at which a b passes half its limit, on samples and by descent on the expected loss.",
            _source(setting, "gradient flow"),
            predicted=half(setting.descent),
            measured=measured,
            interval=interval,
            relative_tolerance=0.03,
            reason="Noise of finite batches.",
            assumptions_hold=bool(config.a * config.b < setting.limit / 2),
        ),
        Claim.at_most(
            f"{setting.name}-one-gradient-step",
            f"{where}: the trained layer predicts what one step of gradient descent in context does, of rate a b; RMS "
            f"difference of the two over the RMS of the latter.",
            PAPER,
            predicted=0.0,
            measured=departure,
            interval=departures,
            tolerance=0.05,
            reason=f"{SAMPLES}, spread over all entries.",
        ),
    ]


def _gaussian_part(setting: Setting, config: Config) -> Claim:
    measured, interval = mean_over_seeds(setting.slopes[:, None]).at(0)
    return Claim.equal(
        "gaussian-recovers-a-part",
        f"{_where(setting, config)}: slope of the prediction over the truth at the last state, by least squares; W "
        f"would be recovered at 1. It is 3 a b s^2, fourth moment over second; the paper's own measure, the mean of "
        f"their ratio, is a b s^2 = {setting.limit * config.scale**2:.4g}, but has no variance once entries off the "
        f"diagonals mix coordinates.",
        f"{PAPER} [failure of recovery], at finite T",
        predicted=3 * setting.limit * config.scale**2,
        measured=measured,
        interval=interval,
        relative_tolerance=0.03,
        reason=f"{SAMPLES}.",
    )


def _sparse_whole(setting: Setting, config: Config) -> Claim:
    measured, interval = mean_over_seeds(setting.errors[:, None]).at(0)
    return Claim.at_most(
        "sparse-recovers-all",
        f"{_where(setting, config)}: mean squared error at the last state over the mean square of a state.",
        f"{PAPER} [the sparse example]",
        predicted=0.0,
        measured=measured,
        interval=interval,
        tolerance=1e-4,
        reason="Descent ends within 1% of the limit, whose square this is.",
    )


def _full_one(setting: Setting, config: Config) -> list[Claim]:
    where = _where(setting, config)
    measured, interval = mean_over_seeds(setting.products).at(-1)
    off, offs = mean_over_seeds(setting.off_diagonal[:, None]).at(0)
    return [
        Claim.equal(
            "full-one-limit",
            f"{where}: a b at the end, where constant starts break the theorem's Assumption 4.1.",
            f"{PAPER} [limit of the flow]",
            predicted=setting.published,
            measured=measured,
            interval=interval,
            relative_tolerance=0.02,
            reason=f"{SAMPLES}.",
            assumptions_hold=config.dimension == 1,
        ),
        Claim.at_most(
            "full-one-is-preconditioned",
            f"{where}: entries off the diagonals of both blocks become negative, so the layer preconditions its step; "
            f"their mean over that of the diagonals.",
            f"{PAPER} [beyond Assumption 4.1], and the authors' code",
            predicted=0.0,
            measured=off,
            interval=offs,
            tolerance=0.0,
            reason="A sign.",
            assumptions_hold=config.dimension > 1,
        ),
    ]


def _decaying(setting: Setting, config: Config) -> list[Claim]:
    measured, interval = mean_over_seeds(setting.products).at(-1)
    return [
        _loss(setting, config),
        _limit(setting, config),
        Claim.equal(
            "decaying-published-limit",
            f"{_where(setting, config)}: a b at the end beside the paper's limit, which is for unitary maps.",
            f"{PAPER} [limit of the flow]",
            predicted=setting.published,
            measured=measured,
            interval=interval,
            relative_tolerance=0.02,
            reason=f"{SAMPLES}.",
            assumptions_hold=setting.modulus == 1,
        ),
    ]
