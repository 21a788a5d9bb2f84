"""What the theory of softmax attention on regression says, beside what was measured."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.dynamics import softmax_attention_theory as theory
from experiments.framework.claim import Claim
from experiments.framework.statistics import mean_over_seeds
from experiments.softmax_regression.several import Shared
from experiments.softmax_regression.study import Config, Result, Setting, task_of

PAPER = "He et al., 2025, In-Context Linear Regression Demystified, arXiv 2503.12734"
SAMPLED = "Adam's last noise, finitely many test prompts and inputs in the prediction's own average."
APPROACH = "Adam approaches it in finitely many steps."


def claims(result: Result) -> list[Claim]:
    """Every number of heads, then their order, then anisotropic inputs, then two tasks at once.

    Args:
        result: From `run`.

    Returns:
        The claims.
    """
    found = []
    for whole in result.isotropic.values():
        found.append(_share(whole, result))
        setting, enough = _off_saddles(whole, result)
        about = [_loss(setting, result), *_circuits(setting, result.config)]
        about += _single(setting, result) if setting.heads == 1 else _several(setting, result.config)
        about += _lengths(setting, result.config)
        found += _provided(enough, about)
    found += [*_order(result), *_anisotropic(result.anisotropic, result)]
    return found + [claim for shared in result.shared.values() for claim in _shared(shared, result.config)]


def _off_saddles(setting: Setting, result: Result) -> tuple[Setting, bool]:
    """The seeds that have left the saddles; all of them, and False, where fewer than two have."""
    reached = result.reached(setting)
    return (setting.select(reached), True) if reached.sum() >= 2 else (setting, False)


def _provided(met: bool, about: list[Claim]) -> list[Claim]:
    """The claims, or that their assumption is not met."""
    return about if met else [dataclasses.replace(claim, verdict="assumption-not-met") for claim in about]


def _share(setting: Setting, result: Result) -> Claim:
    return Claim.at_least(
        f"all-leave-the-saddles-{setting.heads}",
        f"{_where(setting, result.config)}: share of {len(setting.ov)} seeds that after {result.config.steps} steps do "
        f"better than {'no head' if setting.heads == 1 else 'one head'}; what follows is about these. The others rest "
        f"where {'the head is off' if setting.heads == 1 else 'all heads have one sign'}.",
        f"{PAPER} [emergence of the patterns]",
        predicted=1.0,
        measured=float(result.reached(setting).mean()),
        tolerance=0.0,
        reason="All should.",
    )


def _where(setting: Setting, config: Config) -> str:
    heads = "1 head" if setting.heads == 1 else f"{setting.heads} heads"
    return f"{heads}, D = {config.dimension}, L = {config.length}, noise variance {config.noise_variance:g}"


def _equal(id: str, statement: str, source: str, samples: np.ndarray, predicted: float, tolerance: float, reason: str):
    """A claim about the mean over seeds `[R]`, with a relative tolerance."""
    measured, interval = mean_over_seeds(samples[:, None]).at(0)
    numbers = {"predicted": predicted, "measured": measured, "interval": interval}
    return Claim.equal(id, statement, source, **numbers, relative_tolerance=tolerance, reason=reason)


def _small(id: str, statement: str, source: str, samples: np.ndarray, tolerance: float) -> Claim:
    """A claim that something positive is near zero, over seeds `[R]`."""
    measured, interval = mean_over_seeds(samples[:, None]).at(0)
    numbers = {"predicted": 0.0, "measured": measured, "interval": interval}
    return Claim.at_most(id, statement, source, **numbers, tolerance=tolerance, reason=APPROACH)


def _loss(setting: Setting, result: Result) -> Claim:
    noise = result.config.noise_variance
    best, name = (result.single, "one head") if setting.heads == 1 else (result.pair, "a pair of opposite heads")
    return _equal(
        f"loss-{setting.heads}",
        f"{_where(setting, result.config)}: loss with label noise at the end, beside the least that {name} can reach "
        f"at this dimension and length.",
        f"own derivation of the finite-size loss; its large-D form is in {PAPER}",
        setting.risks_by_length[:, 0] + noise,
        best.risk + noise,
        0.02,
        SAMPLED,
    )


def _circuits(setting: Setting, config: Config) -> list[Claim]:
    where, d = _where(setting, config), config.dimension
    inputs = setting.kq[..., :d, :d]
    scale = np.abs(setting.omega).max(axis=1)
    away = inputs - setting.omega[..., None, None] * np.eye(d)
    reading = np.abs(setting.ov[..., :-1]).max(axis=(1, 2)) / np.abs(setting.mu).max(axis=1)
    return [
        _small(
            f"kq-is-diagonal-{setting.heads}",
            f"{where}: the heads' KQ circuits are multiples of the identity on the inputs; RMS of what is left over "
            f"the largest of them.",
            PAPER,
            np.sqrt((away**2).mean(axis=(1, 2, 3))) / scale,
            0.05,
        ),
        _small(
            f"ov-reads-the-label-{setting.heads}",
            f"{where}: the heads' OV circuits read the label alone; largest entry for an input over the largest for "
            f"the label.",
            PAPER,
            reading,
            0.05,
        ),
    ]


def _single(setting: Setting, result: Result) -> list[Claim]:
    where, single = _where(setting, result.config), result.single
    reason = "The loss is flat around its minimum: 1% of loss is 10% of omega."
    sign = np.sign(setting.omega[:, 0])
    return [
        _equal(
            f"{name}-1",
            f"{where}: |{name}| at the end, beside the minimum of the finite-size loss.",
            f"own derivation; for large D {PAPER}",
            values,
            predicted,
            0.1,
            reason,
        )
        for name, values, predicted in (
            ("omega", sign * setting.omega[:, 0], single.omega),
            ("mu", sign * setting.mu[:, 0], single.mu),
        )
    ]


def _several(setting: Setting, config: Config) -> list[Claim]:
    where, heads = _where(setting, config), setting.heads
    with jax.enable_x64(True):
        step = float(theory.debiased_step(task_of(config, jnp.eye(config.dimension)))[0, 0])
    strengths = np.abs(setting.omega)
    return [
        _small(
            f"zero-sum-{heads}",
            f"{where}: what the heads' labels count sums to zero; |sum of mu| over the sum of |mu|.",
            PAPER,
            np.abs(setting.mu.sum(1)) / np.abs(setting.mu).sum(1),
            0.02,
        ),
        _small(
            f"signs-{heads}",
            f"{where}: omega and mu of a head have the same sign; share of heads, weighted by |omega mu|, where not.",
            PAPER,
            -np.minimum(setting.omega * setting.mu, 0).sum(1) / np.abs(setting.omega * setting.mu).sum(1),
            0.0,
        ),
        _equal(
            f"gradient-step-{heads}",
            f"{where}: sum of omega mu, the rate of the gradient step that the heads take together.",
            f"own derivation; for large D {PAPER}",
            (setting.omega * setting.mu).sum(1),
            step,
            0.03,
            "The step is exact only as omega goes to zero.",
        ),
        _small(
            f"equal-strengths-{heads}",
            f"{where}: |omega| is the same for all heads; its standard deviation over its mean.",
            f"{PAPER} [homogeneity]",
            strengths.std(1) / strengths.mean(1),
            0.1,
        ),
    ]


def _lengths(setting: Setting, config: Config) -> list[Claim]:
    found = []
    for index, length in enumerate(setting.lengths):
        predicted, measured = setting.predicted_by_length[:, index], setting.risks_by_length[:, index]
        found.append(
            _equal(
                f"length-{length}-heads-{setting.heads}",
                f"{_where(setting, config)}: loss with label noise on prompts of {length} examples, beside that of "
                f"heads with the measured omega and mu and nothing else.",
                "own derivation of the finite-size loss",
                measured + config.noise_variance,
                float(predicted.mean()) + config.noise_variance,
                0.03,
                SAMPLED,
            )
        )
    return found


def _order(result: Result) -> list[Claim]:
    trained = result.isotropic
    if 1 not in trained or len(trained) < 2:
        return []
    config, several = result.config, [heads for heads in trained if heads > 1]
    fewest = min(several)
    paired, enough = _off_saddles(trained[fewest], result)
    one, pairs = trained[1].risks_by_length[:, 0], paired.risks_by_length[:, 0]
    count = min(len(one), len(pairs))
    measured, interval = mean_over_seeds((one[:count] - pairs[:count])[:, None]).at(0)
    return [
        Claim.equal(
            "one-head-is-worse",
            f"D = {config.dimension}, L = {config.length}: loss of 1 head less that of {fewest}.",
            f"{PAPER}; the finite-size losses are an own derivation",
            predicted=result.single.risk - result.pair.risk,
            measured=measured,
            interval=interval,
            relative_tolerance=0.1,
            reason=SAMPLED,
            assumptions_hold=enough,
        )
    ]


def _anisotropic(whole: Setting | None, result: Result) -> list[Claim]:
    if whole is None:
        return []
    (setting, enough), config = _off_saddles(whole, result), result.config
    d, covariance = config.dimension, setting.task.covariance
    with jax.enable_x64(True):
        task = task_of(config, jnp.asarray(covariance, float))
        least, step = float(theory.debiased_risk(task)), np.asarray(theory.debiased_step(task))
    # What the heads do to first order: each adds mu_h times its KQ block.
    taken = np.einsum("rh,rhde->rde", setting.mu, setting.kq[..., :d, :d])
    cosine = (taken * step).sum((1, 2)) / np.linalg.norm(taken, axis=(1, 2)) / np.linalg.norm(step)
    where = f"{_where(setting, config)}, condition number {config.condition_number:g}"
    found = [
        _equal(
            "anisotropic-loss",
            f"{where}: loss with label noise at the end, beside the best preconditioned debiased step.",
            f"own derivation; {PAPER} [non-isotropic covariates]",
            setting.risks_by_length[:, 0] + config.noise_variance,
            least + config.noise_variance,
            0.02,
            SAMPLED,
        ),
        _small(
            "anisotropic-preconditioner",
            f"{where}: the heads' KQ blocks, weighted by mu, point where the best preconditioner does; 1 - cosine.",
            "own derivation",
            1 - cosine,
            1 - math.cos(0.1),
        ),
    ]
    return _provided(enough, found)


def _shared(whole: Shared, config: Config) -> list[Claim]:
    heads, signs = whole.heads, whole.both_signs
    enough = bool(signs.sum() >= 2)
    select = signs if enough else np.full(len(signs), True)
    risks, taken = whole.risks[select], whole.taken[select]
    noise, each = config.noise_variance, (1, 2)
    where = (
        f"{heads} heads, two tasks on {config.task_inputs} of {config.several_dimension} inputs each, "
        f"L = {config.several_length}, noise variance {noise:g}"
    )
    rank = f"own derivation (weak heads take any rates of rank {heads - 1}); {PAPER} [multi-task, superposition]"
    contributions = np.abs(whole.mu[select]) * np.linalg.norm(whole.omega[select], axis=-1)[..., None]
    serving_both = (contributions.min(-1) / contributions.max(-1)).max(1)
    about = [
        _equal(
            f"two-tasks-loss-{heads}",
            f"{where}: loss with label noise, mean of the tasks, beside the least of debiased steps that so many weak "
            f"heads can take.",
            rank,
            risks.mean(1) + noise,
            float(whole.least.mean()) + noise,
            0.03,
            "The steps are exact only as omega goes to zero; Adam's last noise.",
        ),
        _small(
            f"two-tasks-rates-{heads}",
            f"{where}: rates sum over heads of mu omega, for each task and input; distance from the best ones over "
            f"their norm.",
            rank,
            np.linalg.norm(taken - whole.best, axis=each) / np.linalg.norm(whole.best),
            0.1,
        ),
        _small(
            f"two-tasks-zero-sum-{heads}",
            f"{where}: what the heads' labels count sums to zero for each task; |sum of mu| over the sum of |mu|.",
            PAPER,
            (np.abs(whole.mu[select].sum(1)) / np.abs(whole.mu[select]).sum(1)).max(-1),
            0.02,
        ),
    ]
    if heads < 4:  # each task needs two heads whose readings cancel: with fewer than four, some head has both
        measured, interval = mean_over_seeds(serving_both[:, None]).at(0)
        about.append(
            Claim.at_least(
                f"two-tasks-superposition-{heads}",
                f"{where}: some head serves both tasks; its smaller contribution |mu| |omega| over its larger one.",
                f"{PAPER} [superposition]",
                predicted=0.5,
                measured=measured,
                interval=interval,
                tolerance=0.0,
                reason="A head for one task alone would have 0.",
            )
        )
    if heads == 2:
        about.append(
            _equal(
                "two-tasks-price-of-sharing-2",
                f"{where}: risk above that of each task with rates of its own, mean of the tasks.",
                rank,
                (risks - whole.alone).mean(1),
                float((whole.least - whole.alone).mean()),
                0.15,
                "A small difference of two risks; the steps are exact only as omega goes to zero.",
            )
        )
    return _provided(enough, about)
