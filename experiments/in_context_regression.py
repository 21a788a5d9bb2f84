"""Linear self-attention learns regression in context: gradient flow and SGD against the closed forms.

One linear self-attention layer with all its parameters is trained on prompts (x_1, y_1, ..., x_N, y_N, x_q) whose task
changes from prompt to prompt. Theory (Zhang, Frei, Bartlett, 2024, arXiv 2306.09927) says where it ends, how long it
takes, and how it predicts from prompts of another length. Three settings train side by side, each over many seeds:

    isotropic     identity covariance: the whole time course has a closed form
    anisotropic   the covariance of the flags, randomly rotated
    noisy         the same with label noise, which the theorem does not have
"""

import dataclasses
import math
from typing import Literal

import jax
import numpy as np

from attnjax.dynamics import linear_attention_theory as theory
from experiments._claim import Claim
from experiments._context import Context, UsageError
from experiments._regression_figures import plot as plot
from experiments._regression_measures import (
    descent_half_time,
    excess_of,
    half_time,
    half_times,
    product_errors,
    scale_is_small,
    single,
    spectrum_of,
)
from experiments._regression_settings import (
    ANISOTROPIC,
    ISOTROPIC,
    NOISY,
    SETTINGS,
    Result,
    batch_size,
    closed_form,
    problem,
    schedule,
    solve,
)
from experiments._sgd_ensemble import Ensemble, train
from experiments._statistics import mean_over_seeds

PAPER = (
    "Zhang, Frei, Bartlett, 2024, Trained Transformers Learn Linear Models In-Context, JMLR 25(49), arXiv 2306.09927"
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the claims hold at others than the defaults too."""

    dimension: int = 5
    """Dimension of the inputs, D."""
    length: int = 20
    """Labeled examples in a training prompt, N."""
    condition_number: float = 4.0
    """Largest over smallest eigenvalue of the anisotropic covariance, whose spectrum is geometric with mean one."""
    spectrum: tuple[float, ...] | None = None
    """Eigenvalues of the anisotropic covariance, D of them; replaces the geometric spectrum."""
    noise: float = 1.0
    """Standard deviation of the label noise in the noisy setting."""
    init_scale: float = 0.15
    """Norm of each of the two blocks at the start."""
    theta: Literal["random", "identity"] = "random"
    """Shape of the start in the rotated settings; a random one does not commute with the covariance."""
    learning_rate: float | None = None
    """Of SGD's first step; it falls linearly to zero. Default: what gets the flow to within 0.5% of the least risk."""
    stiffness: float = 0.1
    """Largest default learning rate times the largest curvature; small is close to gradient flow."""
    steps: int | None = None
    """Steps of SGD, rounded up to a multiple of `checkpoints`. Default: as many as the default learning rate needs."""
    max_steps: int = 4000
    """Bound on the default number of steps; ill-conditioned settings then end before they reach the least risk."""
    batch: int | None = None
    """Fresh prompts per step and seed. Default: enough to keep a step's noise near a hundredth of its drift."""
    seeds: int = 16
    """Independent SGD runs of each setting; at least 2, and all of them in one vmap."""
    test_lengths: tuple[int, ...] = (5, 10, 40, 100)
    """Prompt lengths at which the trained layer is tested, besides its own."""
    checkpoints: int = 24
    """Points in time at which the test risk is measured."""
    test_prompts: int = 65536
    """Fresh prompts per seed and final risk, rounded up to a multiple of 1024; the curve over time uses an eighth."""
    seed: int = 0
    """Root of all randomness."""

    @classmethod
    def quick(cls) -> "Config":
        """Small sizes for continuous integration: the same claims in under a minute on two cores."""
        return cls(
            condition_number=2.0,
            stiffness=0.07,
            max_steps=1000,
            seeds=8,
            checkpoints=12,
            test_prompts=32768,
            test_lengths=(5, 40),
        )

    def check(self) -> None:
        """Refuse impossible settings.

        Raises:
            UsageError: Naming the flag, what it was and what it must be.
        """
        least = {
            "dimension": 1,
            "length": 1,
            "seeds": 2,
            "batch": 1,
            "checkpoints": 2,
            "test_prompts": 1,
            "steps": 1,
            "max_steps": 1,
        }
        for name, bound in least.items():
            if getattr(self, name) is not None and getattr(self, name) < bound:
                raise UsageError(f"--{name.replace('_', '-')} must be at least {bound}, got {getattr(self, name)}.")
        for name in ("init_scale", "learning_rate", "stiffness", "noise"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}.")
        if not 1 <= self.condition_number < math.inf:
            raise UsageError(f"--condition-number must be at least 1 (the identity), got {self.condition_number}.")
        if not self.test_lengths or min(self.test_lengths) < 1:
            raise UsageError(f"--test-lengths must be one or more positive lengths, got {self.test_lengths}.")
        if self.spectrum is not None and (len(self.spectrum) != self.dimension or not min(self.spectrum) > 0):
            raise UsageError(
                f"--spectrum must be {self.dimension} (--dimension) positive numbers, got {self.spectrum}."
            )


def run(config: Config, context: Context) -> Result:
    """Integrate the flows in float64, then train all settings and seeds in one vmap.

    Args:
        config: Settings.
        context: Surroundings.

    Returns:
        The result.

    Raises:
        UsageError: An impossible setting.
    """
    config.check()
    config = dataclasses.replace(config, batch=config.batch or batch_size(config))
    setting_key, train_key = jax.random.split(context.key)
    with jax.enable_x64(True):
        problems = [problem(name, config, setting_key) for name in SETTINGS]
        steps, rates = schedule(config, problems)
        pairs = list(zip(problems, rates, strict=True))
        settings = tuple(solve(*pair, config, steps) for pair in context.track(pairs, "gradient flow"))
    ensemble = Ensemble(
        covariances=np.stack([setting.task.covariance for setting in settings]),
        noises=np.stack([setting.task.noise for setting in settings]),
        thetas=np.stack([setting.theta for setting in settings]),
        learning_rates=np.asarray(rates),
    )
    return Result(config, settings, train(ensemble, config, steps, train_key, context))


def claims(result: Result) -> list[Claim]:
    """Closed forms beside gradient flow, then beside SGD.

    Args:
        result: From `run`.

    Returns:
        The claims.
    """
    with jax.enable_x64(True):
        return [*flow_claims(result), *sgd_claims(result), *length_claims(result), *noise_claims(result)]


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
