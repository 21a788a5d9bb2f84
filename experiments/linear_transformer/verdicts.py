"""What the theory of linear Transformers says, beside what was measured."""

import numpy as np

from experiments.framework.claim import Claim
from experiments.framework.statistics import mean_over_seeds
from experiments.linear_transformer.study import Compared, Config, Result, Run

PRECONDITIONED = "Ahn et al., 2023, Transformers learn to implement preconditioned gradient descent, arXiv 2306.00297"
OPTIMIZERS = "Ahn et al., 2023, Linear attention is (maybe) all you need, arXiv 2310.01082"
SAMPLED = "Finitely many prompts, and Adam's last noise."
SIGN = "A sign."


def claims(result: Result) -> list[Claim]:
    """Depth, the preconditioner, the optimizers, heavy tails.

    Args:
        result: From `run`.

    Returns:
        The claims.
    """
    config = result.config
    found = [_depth(trained, result.least[layers][1], config) for layers, trained in result.deep.items()]
    found += [_identity(trained, config) for trained in result.deep.values()]
    found += [_order(result, fewer, more) for fewer, more in zip(config.layers[:-1], config.layers[1:], strict=True)]
    found += _unequal(result)
    for name, compared in result.compared.items():
        found += _optimizers(name, compared, config)
    return [*found, *(_tails(result) if config.heavy else [])]


def _where(layers: int, config: Config, inputs: str = "Gaussian inputs") -> str:
    return f"{layers} layer{'s' * (layers > 1)}, D = {config.dimension}, N = {config.length}, {inputs}"


def _depth(trained: Run, least: float, config: Config) -> Claim:
    measured, interval = mean_over_seeds(trained.final[:, None]).at(0)
    return Claim.equal(
        f"loss-{trained.layers}",
        f"{_where(trained.layers, config)}: loss after {config.steps} steps of Adam, beside the least of as many steps "
        f"of gradient descent that move the inputs too.",
        f"own derivation; the class of steps is that of {PRECONDITIONED}",
        predicted=least,
        measured=measured,
        interval=interval,
        relative_tolerance=0.02 if trained.layers == 1 else 0.1,
        reason=SAMPLED if trained.layers == 1 else f"{SAMPLED} Deep linear layers converge slowly.",
    )


def _identity(trained: Run, config: Config) -> Claim:
    d = config.dimension
    middle = np.trace(trained.q, axis1=-2, axis2=-1) / d
    away = np.abs(trained.q - middle[..., None, None] * np.eye(d)).mean(axis=(-2, -1)) / np.abs(middle)
    measured, interval = mean_over_seeds(away.max(axis=1)[:, None]).at(0)
    return Claim.at_most(
        f"q-is-identity-{trained.layers}",
        f"{_where(trained.layers, config)}: every W_KQ block is a multiple of the identity; mean entry of what is left "
        f"over the diagonal, the worst layer.",
        PRECONDITIONED,
        predicted=0.0,
        measured=measured,
        interval=interval,
        tolerance=0.05,
        reason=SAMPLED,
    )


def _order(result: Result, fewer: int, more: int) -> Claim:
    ratio = result.deep[fewer].final / result.deep[more].final
    measured, interval = mean_over_seeds(ratio[:, None]).at(0)
    predicted = result.least[fewer][0] / result.least[more][0]
    return Claim.at_least(
        f"{more}-layers-beat-{fewer}",
        f"{_where(more, result.config)}: loss of {fewer} over that of {more}, beside the ratio for plain gradient "
        f"descent.",
        f"{PRECONDITIONED}; the value is an own derivation",
        predicted=predicted,
        measured=measured,
        interval=interval,
        tolerance=0.1 * predicted,
        reason="Trained layers move the inputs too, which plain steps do not. 10%.",
    )


def _unequal(result: Result) -> list[Claim]:
    config, trained = result.config, result.unequal
    where = _where(1, config, f"Gaussian inputs of condition number {config.condition_number:g}")
    q, expected = trained.q[:, 0], result.preconditioner
    cosine = (q * expected).sum((1, 2)) / np.linalg.norm(q, axis=(1, 2)) / np.linalg.norm(expected)
    loss, losses = mean_over_seeds(trained.final[:, None]).at(0)
    away, aways = mean_over_seeds(1 - cosine[:, None]).at(0)
    return [
        Claim.equal(
            "unequal-loss",
            f"{where}: loss at the end, beside that of the best preconditioned step.",
            f"{PRECONDITIONED} [one layer]; Zhang et al., 2024, arXiv 2306.09927",
            predicted=result.unequal_least,
            measured=loss,
            interval=losses,
            relative_tolerance=0.02,
            reason=SAMPLED,
        ),
        Claim.at_most(
            "unequal-preconditioner",
            f"{where}: W_KQ's block points where Gamma^{{-1}} does; 1 - cosine.",
            f"{PRECONDITIONED} [one layer]",
            predicted=0.0,
            measured=away,
            interval=aways,
            tolerance=0.005,
            reason=f"{SAMPLED} An angle of 0.1.",
        ),
    ]


def _lead(compared: Compared) -> np.ndarray:
    """ln of SGD's loss over Adam's, averaged over the second half of training `[R]`."""
    half = compared.adam.losses.shape[1] // 2
    return np.log(compared.sgd.losses / compared.adam.losses)[:, half:].mean(axis=1)


def _optimizers(name: str, compared: Compared, config: Config) -> list[Claim]:
    where = _where(compared.adam.layers, config, f"{name} inputs")
    lead, leads = mean_over_seeds(_lead(compared)[:, None]).at(0)
    ratio, ratios = mean_over_seeds(np.log(compared.conditions[1] / compared.conditions[0])[:, None]).at(0)
    return [
        Claim.at_least(
            f"adam-leads-{name}",
            f"{where}: ln of SGD's loss over Adam's, mean over the second half of {config.compared_steps} steps.",
            OPTIMIZERS,
            predicted=0.0,
            measured=lead,
            interval=leads,
            tolerance=0.0,
            reason=SIGN,
        ),
        Claim.at_least(
            f"adam-is-better-conditioned-{name}",
            f"{where}: ln of SGD's robust condition number over Adam's half-way.",
            OPTIMIZERS,
            predicted=0.0,
            measured=ratio,
            interval=ratios,
            tolerance=0.0,
            reason=SIGN,
        ),
    ]


def _tails(result: Result) -> list[Claim]:
    gaussian, gamma = result.compared["gaussian"], result.compared["gamma"]
    config = result.config
    where = f"{_where(config.compared_layers, config, f'gamma inputs of shape {config.tail:g}')} and Gaussian ones"
    tails = [np.quantile(each.noise, 0.999) for each in (gamma, gaussian)]
    gap, gaps = mean_over_seeds((_lead(gamma) - _lead(gaussian))[:, None]).at(0)
    return [
        Claim.at_least(
            "heavy-inputs-make-heavy-noise",
            f"{where}: ratio of the gradient noise's 99.9% quantiles, each over its median, at the start.",
            OPTIMIZERS,
            predicted=1.0,
            measured=float(tails[0] / tails[1]),
            tolerance=0.0,
            reason=SIGN,
        ),
        Claim.at_least(
            "heavy-tails-widen-the-gap",
            f"{where}: how much larger Adam's lead over SGD is, ln of the ratio of losses.",
            OPTIMIZERS,
            predicted=0.0,
            measured=gap,
            interval=gaps,
            tolerance=0.0,
            reason=SIGN,
        ),
    ]
