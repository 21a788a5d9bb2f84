"""What theory says of `in_context_regression`, beside what was measured."""

import jax
import numpy as np

from attnjax.dynamics import linear_attention_theory as theory
from experiments.framework.claim import Claim
from experiments.framework.statistics import mean_over_seeds
from experiments.in_context_regression.measures import (
    descent_half_time,
    excess_of,
    half_time,
    half_times,
    product_errors,
    scale_is_small,
    single,
    spectrum_of,
)
from experiments.in_context_regression.settings import (
    ANISOTROPIC,
    ISOTROPIC,
    NOISY,
    SETTINGS,
    Result,
    closed_form,
    shifts,
)

PAPER = (
    "Zhang, Frei, Bartlett, 2024, Trained Transformers Learn Linear Models In-Context, JMLR 25(49), arXiv 2306.09927"
)


def claims(result: Result) -> list[Claim]:
    """Closed forms beside gradient flow, then beside SGD.

    Args:
        result: From `run`.

    Returns:
        The claims.
    """
    with jax.enable_x64(True):
        more = [*shift_claims(result), *noise_claims(result)]
        return [*flow_claims(result), *sgd_claims(result), *length_claims(result), *more]


def flow_claims(result: Result) -> list[Claim]:
    """Gradient flow in float64 against the closed forms; every number is exact but for the integrator."""
    config, setting, isotropic = result.config, result.settings[ANISOTROPIC], result.settings[ISOTROPIC]
    minimum, small = theory.global_minimum(setting.task), scale_is_small(result, ANISOTROPIC)
    off = lambda u: float(np.linalg.norm(u - minimum.u) / np.linalg.norm(minimum.u))
    error = np.max(np.abs(isotropic.products - closed_form(result.config, isotropic.times))) / closed_form(
        result.config, np.inf
    )
    integrator = "The integrator's relative tolerance is 1e-10."
    where = f"D = {config.dimension}, N = {config.length}"
    return [
        Claim.equal(
            "flow-time-course",
            f"Identity covariance, {where}: the largest departure of gradient flow's product w u from the logistic "
            "closed form, over the limit.",
            f"Own derivation from Lemma 5.2 of {PAPER}",
            predicted=0.0,
            measured=float(error),
            tolerance=1e-6,
            reason=integrator,
        ),
        Claim.equal(
            "flow-corner",
            f"{spectrum_of(result)}, {where}: gradient flow ends at W_PV[D, D] = tr(Gamma^-2)^(1/4).",
            f"Theorem 4.1 of {PAPER}",
            predicted=float(minimum.w),
            measured=float(setting.limit.w),
            relative_tolerance=1e-6,
            reason=integrator,
            assumptions_hold=small,
        ),
        Claim.equal(
            "flow-block",
            f"{spectrum_of(result)}, {where}: gradient flow ends at W_KQ[:D, :D] = tr(Gamma^-2)^(-1/4) Gamma^-1; "
            "relative distance.",
            f"Theorem 4.1 of {PAPER}",
            predicted=0.0,
            measured=off(setting.limit.u),
            tolerance=1e-6,
            reason=integrator,
            assumptions_hold=small,
        ),
        Claim.equal(
            "flow-minimal-loss",
            f"{spectrum_of(result)}, {where}: gradient flow ends at the loss (tr S - tr(S^2 Gamma^-1)) / 2.",
            f"Theorem 4.1 and Lemma 5.2 of {PAPER}",
            predicted=float(theory.minimal_loss(setting.task)),
            measured=float(theory.population_loss(setting.limit, setting.task)),
            relative_tolerance=1e-6,
            reason=integrator,
            assumptions_hold=small,
        ),
        Claim.equal(
            "flow-conserves-balance",
            f"{spectrum_of(result)}, {where}: w^2 - |u|_F^2 stays where it started; largest change.",
            f"Proof of Theorem 4.1 of {PAPER}",
            predicted=0.0,
            measured=setting.drift,
            tolerance=1e-6,
            reason=integrator,
        ),
    ]


def sgd_claims(result: Result) -> list[Claim]:
    """SGD with all parameters free against the closed forms."""
    config, sgd = result.config, result.sgd
    where = f"D = {config.dimension}, N = {config.length}"
    runs = f"{config.seeds} seeds, {sgd.steps} steps of {config.batch} prompts"
    limit = float(half_time(result))
    reached = half_times(result)
    half_mean, half_interval = single(reached)
    stray, stray_interval = single(sgd.stray[ANISOTROPIC])
    product, product_interval = single(product_errors(result))
    return [
        Claim.equal(
            "sgd-half-time",
            f"Identity covariance, {where}, {runs}: SGD's product tr(w u) / D is halfway to its limit at the time (sum "
            "of the learning rates) at which gradient descent with the same learning rates is; as these vanish, that "
            f"tends to ln(p*/p0 - 1) / (2 sqrt D) = {limit:.4f}.",
            f"Own derivation from Lemma 5.2 of {PAPER}",
            predicted=descent_half_time(result),
            measured=half_mean,
            interval=half_interval,
            relative_tolerance=0.05,
            reason="Batch noise delays growth on the plateau: a logarithm's mean is below the logarithm of the mean.",
            assumptions_hold=0 < limit < sgd.times[ISOTROPIC, -1],
        ),
        *(risk_claim(result, index) for index in (ISOTROPIC, ANISOTROPIC)),
        least_risk_claim(result),
        Claim.at_most(
            "sgd-product",
            f"{spectrum_of(result)}, {where}, {runs}: distance of SGD's w u from gradient flow's A at the same time, "
            "as the risk sees it: |S^(1/2) (w u - A) S^(1/2)|_F / |S^(1/2) A S^(1/2)|_F.",
            f"Lemma 5.2 of {PAPER}",
            predicted=0.0,
            measured=product,
            interval=product_interval,
            tolerance=0.1,
            reason="Batch noise keeps SGD moving near the minimum; a tenth in the product is a hundredth in the risk.",
        ),
        Claim.at_most(
            "sgd-other-blocks-stay-zero",
            f"{spectrum_of(result)}, {where}, {runs}: norm of the weights outside the two blocks over the norm of all.",
            f"Lemma 5.2 of {PAPER}: they stay zero under gradient flow",
            predicted=0.0,
            measured=stray,
            interval=stray_interval,
            tolerance=0.1,
            reason="Batch noise moves them, the flow pulls them back; a tenth of the norm is a hundredth squared.",
        ),
    ]


def risk_claim(result: Result, index: int) -> Claim:
    """SGD's test risk at the end against gradient flow's at the same time."""
    config, sgd, setting = result.config, result.sgd, result.settings[index]
    measured, interval = single(sgd.risks_by_length[index, :, 0])
    covariance = "Identity covariance" if index == ISOTROPIC else spectrum_of(result)
    return Claim.equal(
        f"sgd-risk-{SETTINGS[index]}",
        f"{covariance}, D = {config.dimension}, N = {config.length}, {config.seeds} seeds: SGD's test risk at the end "
        f"is that of gradient flow at the same time, {excess_of(result, index):.2%} above the least possible.",
        f"Lemma 5.2 of {PAPER}",
        predicted=float(setting.risks[-1]),
        measured=measured,
        interval=interval,
        relative_tolerance=0.03,
        reason="Batch noise leaves SGD a little higher, and the test set is finite.",
    )


def least_risk_claim(result: Result) -> Claim:
    """SGD's test risk at the end against the least risk, where gradient flow had the time to get there."""
    config, setting = result.config, result.settings[ANISOTROPIC]
    measured, interval = single(result.sgd.risks_by_length[ANISOTROPIC, :, 0])
    return Claim.equal(
        "sgd-reaches-least-risk",
        f"{spectrum_of(result)}, D = {config.dimension}, N = {config.length}, {config.seeds} seeds: SGD's test risk at "
        "the end is the least possible, tr S - tr(S^2 Gamma^-1), if gradient flow comes within 1% in the same time.",
        f"Theorem 4.1 of {PAPER}",
        predicted=2 * float(theory.minimal_loss(setting.task)),
        measured=measured,
        interval=interval,
        relative_tolerance=0.03,
        reason="Besides batch noise and the test set, gradient flow itself is only near its limit.",
        assumptions_hold=excess_of(result, ANISOTROPIC) <= 0.01 and scale_is_small(result, ANISOTROPIC),
    )


def length_claims(result: Result) -> list[Claim]:
    """The layer trained at one prompt length, tested at others."""
    config, sgd = result.config, result.sgd
    setting = result.settings[ANISOTROPIC]
    estimates = mean_over_seeds(sgd.risks_by_length[ANISOTROPIC])
    found = []
    for place, length in enumerate(sgd.lengths[1:], start=1):
        measured, interval = estimates.at(place)
        found.append(
            Claim.equal(
                f"sgd-risk-at-length-{length}",
                f"{spectrum_of(result)}, D = {config.dimension}, trained at N = {config.length}, {config.seeds} seeds: "
                f"test risk on prompts of length {length}.",
                f"Own derivation (equality in place of the bound of Theorem 4.2), {PAPER}",
                predicted=float(theory.risk(setting.product, setting.task._replace(length=length))),
                measured=measured,
                interval=interval,
                relative_tolerance=0.05,
                reason="Elsewhere than at the training length the product is not the best one, so what SGD errs in it "
                "counts in first order; and the test set is finite.",
            )
        )
    return found


def shift_claims(result: Result) -> list[Claim]:
    """The layer tested on other laws of tasks, queries and contexts than that of its training."""
    config, setting = result.config, result.settings[ANISOTROPIC]
    says = {
        "task": "tasks are likelier along the inputs' large variances",
        "query": "the query's inputs have equal variances, the context's have not",
        "covariate": "all inputs have equal variances",
    }
    found = []
    for name, shift in shifts(setting.task.covariance).items():
        measured, interval = single(result.sgd.risks_by_shift[name])
        task = setting.task._replace(covariance=shift.covariance, prior=shift.prior)
        found.append(
            Claim.equal(
                f"sgd-risk-under-{name}-shift",
                f"{spectrum_of(result)}, D = {config.dimension}, N = {config.length}, {config.seeds} seeds: test risk "
                f"where {says[name]}.",
                f"Own derivation; {PAPER} [task, query and covariate shift]",
                predicted=float(theory.risk(setting.product, task, shift.query)),
                measured=measured,
                interval=interval,
                relative_tolerance=0.05,
                reason="The product is not the best one for another law, so what SGD errs in it counts in first order; "
                "and the test set is finite.",
            )
        )
    return found


def noise_claims(result: Result) -> list[Claim]:
    """Label noise: how far the theorem is off without it, and the extended closed form."""
    config, sgd, setting = result.config, result.sgd, result.settings[NOISY]
    measured, interval = single(sgd.risks_by_length[NOISY, :, 0])
    where = (
        f"{spectrum_of(result)}, D = {config.dimension}, N = {config.length}, label noise {config.noise:g}, "
        f"{config.seeds} seeds"
    )
    return [
        Claim.equal(
            "noise-theorem-as-stated",
            f"{where}: SGD's test risk at the end against the noise-free theorem's, which has no label noise.",
            f"Theorem 4.1 of {PAPER}",
            predicted=2 * float(theory.minimal_loss(setting.task._replace(noise=0.0))),
            measured=measured,
            interval=interval,
            relative_tolerance=0.03,
            reason="The tolerance that the noise-free setting meets.",
            assumptions_hold=config.noise == 0,
        ),
        Claim.equal(
            "noise-extended",
            f"{where}: SGD's test risk at the end is that of the flow with Gamma + (noise^2 / N) I for Gamma at the "
            f"same time, {excess_of(result, NOISY):.2%} above the least possible.",
            "Own derivation: label noise adds noise^2 S / N to the second moment of the context",
            predicted=float(setting.risks[-1]),
            measured=measured,
            interval=interval,
            relative_tolerance=0.03,
            reason="As in the noise-free setting.",
        ),
    ]
