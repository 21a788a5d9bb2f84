"""What the laws say, beside what was measured: writes of an associative memory, and all claims together."""

import jax.numpy as jnp
import numpy as np

from attnjax.linear import memory_theory as theory
from experiments.framework.claim import Claim
from experiments.memory_capacity import reading_verdicts
from experiments.memory_capacity.statements import DELTA, DRAWS, HEBB, OWN, law_over, mean, worst
from experiments.memory_capacity.storing import average_capacity
from experiments.memory_capacity.study import Result


def claims(result: Result) -> list[Claim]:
    """Noise and capacity, other writes, recall, and learning while reading.

    Args:
        result: From `run`.

    Returns:
        The claims.
    """
    return [
        *_capacity(result),
        *_averages(result),
        *_corrections(result),
        *_other_writes(result),
        *reading_verdicts.recall(result),
        *reading_verdicts.learning(result),
    ]


def _capacity(result: Result) -> list[Claim]:
    config, found = result.config, []
    for width, errors in zip(config.widths, result.noise, strict=True):
        counts = config.counts(width)
        law = np.array([theory.sum_noise(n, width) for n in counts])
        say = lambda cell, width=width, counts=counts: (
            f"d = {width}, n = {counts[cell]}: squared error of reading one of n pairs with random unit keys, (n - "
            "1) / d"
        )
        found.append(law_over(f"read-noise-{width}", say, f"{OWN}; {HEBB}", errors, law, 0.12))
    for width, safe in zip(config.widths, result.safe, strict=True):
        found.append(
            Claim.equal(
                f"safe-pairs-{width}",
                f"d = {width}: keys that can be drawn before the worst sum of |k_i . k_j| reaches 1, up to which every "
                f"read is right whatever the values.",
                f"{OWN}; {HEBB}, capacity theorem",
                predicted=theory.guaranteed_capacity(width),
                **mean(safe),
                relative_tolerance=0.15,
                reason="The law keeps the mean and spread of a sum of few terms, and takes them as independent.",
            )
        )
    log_widths = np.log(config.widths)
    slope = lambda logs: np.polyfit(log_widths, logs.T, 1)[0]  # of each draw
    safe = np.log(np.stack(result.safe, 1))
    where = f"d = {', '.join(map(str, config.widths))}"
    average = [average_capacity(config.counts(w), x) for w, x in zip(config.widths, result.noise, strict=True)]
    average = np.log(np.stack(average, 1) - 1)
    return [
        *found,
        Claim.equal(
            "safe-pairs-slope",
            f"{where}: slope of the logarithm of that number over that of d: 1/2, and not 1.",
            f"{HEBB}, capacity theorem",
            predicted=0.5,
            **mean(slope(safe)),
            tolerance=0.08,
            reason="Logarithms of d add a few hundredths at these widths.",
        ),
        Claim.equal(
            "average-capacity-slope",
            f"{where}: slope of ln(n - 1) over ln d, n the pairs at which the mean squared error is 1/4: n = 1 + d / "
            "4.",
            f"{OWN}; {HEBB}, average fidelity",
            predicted=1.0,
            **mean(slope(average)),
            tolerance=0.05,
            reason="n is found between loads, draw by draw.",
        ),
    ]


def _averages(result: Result) -> list[Claim]:
    config, d = result.config, result.config.width
    half, quarter = 1 + d // 2, 1 + d // 4
    by_heads = np.array([theory.sum_noise(half, d, heads) for heads in config.heads])
    by_layers = np.array([theory.chain_noise(layers, quarter, d) for layers in config.layers])
    found = [
        law_over(
            "heads",
            lambda cell: f"d = {d}, n = {half}: squared error of the average of {config.heads[cell]} heads, (n - 1) "
            "/ (d H)",
            f"{OWN}; {HEBB}, head redundancy", result.heads, by_heads, 0.05,
        ),
        law_over(
            "layers",
            lambda cell: f"d = {d}, n = {quarter}: squared error after {config.layers[cell]} layers, each read with "
            "what "
            f"the one before returned, (1 + (n - 1) / d)^L - 1",
            f"{OWN}; {HEBB}, error propagation", result.layers, by_layers, 0.08,
        ),
    ]  # fmt: skip
    if len(config.heads) > 1:
        rms = np.log(result.heads) / 2
        found.append(
            Claim.equal(
                "heads-slope",
                f"d = {d}, n = {half}: slope of the logarithm of the root mean square error over that of the number of "
                f"heads.",
                f"{HEBB}, head redundancy",
                predicted=-0.5,
                **mean(np.polyfit(np.log(config.heads), rms.T, 1)[0]),
                tolerance=0.01,
                reason=DRAWS,
            )
        )
    return found


def _corrections(result: Result) -> list[Claim]:
    config, d = result.config, result.config.width
    by_delta, by_hebb = (np.nanmean(result.corrected[name], 2) for name in ("delta", "hebb"))
    exact = np.array([theory.delta_noise(n, d).mean() for n in config.delta_pairs])
    linear = [float(np.mean(1 - (1 - 1 / d) ** np.arange(n))) for n in config.delta_pairs]
    ratio = by_delta / by_hebb
    least = int(ratio.mean(0).argmax())
    found = [
        law_over(
            "delta-noise",
            lambda cell: f"d = {d}, n = {config.delta_pairs[cell]}: mean squared error of pairs written by the delta "
            "rule",
            OWN, by_delta, exact, 0.08,
        ),
        Claim.at_most(
            "delta-last-write", f"d = {d}: squared error of the pair that the delta rule wrote last.", DELTA,
            predicted=0.0, **mean(result.corrected["delta"][:, -1, 0]), tolerance=1e-8, reason="Rounding in float32.",
        ),
        Claim.at_most(
            "delta-below-hebb",
            f"d = {d}, n = {config.delta_pairs[least]}: squared error of the delta rule over that of Hebb's sum; the "
            "worst "
            f"of {len(config.delta_pairs)}.",
            HEBB, predicted=1.0, **mean(ratio[:, least]), tolerance=0.0, reason="An order.",
        ),
    ]  # fmt: skip
    for cell in sorted({0, len(config.delta_pairs) - 1}):
        n = config.delta_pairs[cell]
        found.append(
            Claim.equal(
                f"delta-first-order-{n}",
                f"d = {d}, n = {n}: mean squared error of the delta rule beside the mean of 1 - (1 - 1/d)^j, which "
                "counts "
                f"what later writes take away and not what they add. Meant for n << d.",
                "own derivation, to first order in n / d",
                predicted=linear[cell],
                **mean(by_delta[:, cell]),
                relative_tolerance=0.25,
                reason="n / d, and the interval.",
                assumptions_hold=8 * n <= d,
            )
        )
    return found


def _other_writes(result: Result) -> list[Claim]:
    config, d = result.config, result.config.width
    half, quarter = 1 + d // 2, 1 + d // 4
    ages = np.arange(half)
    kept = result.decayed["signal"]
    cell = worst(kept, config.decay**ages, relative=False)
    sine = result.component
    return [
        Claim.equal(
            "decay-signal",
            f"d = {d}, n = {half}, a = {config.decay:g}: how much of its value a pair of age {cell} is read with, "
            f"a^{cell}; "
            f"the worst age.",
            HEBB,
            predicted=config.decay**cell,
            **mean(kept[:, cell]),
            tolerance=0.03,
            reason=DRAWS,
        ),
        Claim.equal(
            "decay-noise",
            f"d = {d}, n = {half}, a = {config.decay:g}: squared error, mean over ages.",
            OWN,
            predicted=float(theory.decay_noise(half, d, config.decay).mean()),
            **mean(result.decayed["error"].mean(1)),
            relative_tolerance=0.05,
            reason=DRAWS,
        ),
        Claim.equal(
            "common-mode",
            f"d = {d}, n = {quarter}, a vector of length {config.common:g} added to all unit keys: squared error of "
            "Hebb's "
            f"sum.",
            OWN,
            predicted=theory.common_noise(quarter, d, config.common),
            **mean(result.shared["hebb"]),
            relative_tolerance=0.12,
            reason=DRAWS,
        ),
        Claim.equal(
            "covariance-rule",
            "The same keys: squared error of the covariance rule, (n - 1) ((n - 1)^2 + 1) / (n^2 d), whatever is "
            "added.",
            f"{OWN}; {HEBB}",
            predicted=theory.covariance_noise(quarter, d),
            **mean(result.shared["covariance"]),
            relative_tolerance=0.05,
            reason=DRAWS,
        ),
        Claim.at_least(
            "oja-direction",
            f"Variances {', '.join(f'{x:g}' for x in config.spectrum)}, rate {config.oja_rate:g}, {config.oja_steps} "
            "inputs: "
            f"|cosine| between Oja's vector and the first component.",
            HEBB,
            predicted=0.99,
            **mean(np.sqrt(1 - sine)),
            tolerance=0.0,
            reason="It turns about the component, by as much as its rate.",
        ),
        Claim.equal(
            "oja-angle",
            "The same: squared sine, beside rate / 2 times the sum of l_1 l_j / (l_1 - l_j).",
            OWN,
            predicted=float(theory.oja_angle(jnp.array(config.spectrum), config.oja_rate)),
            **mean(sine),
            relative_tolerance=0.25,
            reason="To first order in the rate.",
        ),
    ]  # fmt: skip
