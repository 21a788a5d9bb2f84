"""Where the loss of sums over a moving window stands still, and how often right sums repeat; both exact.

Source: own derivation; the task is that of Gopalani and Hu, 2025, "What Happens During the Loss Plateau? Understanding
Abrupt Learning in Transformers", NeurIPS 2025, arXiv 2506.13688.
"""

import math


def plateau_loss(*, length: int, window: int = 2, largest: int = 16, modulus: int = 17) -> float:
    """Loss over the sums when the copied ones are known, and of the others their distribution alone.

        (L - window + 1) / L * H(y)

    Args:
        length: L.
        window: Terms in a sum.
        largest: Of the numbers.
        modulus: Of the sums.

    Returns:
        Nats per sum.

    Example:
        >>> print(round(plateau_loss(length=16), 3))  # near 15 / 16 ln 17
        2.656

    Source: own derivation; the plateau is that of Gopalani and Hu, 2025, arXiv 2506.13688.
    """
    law = _sum_law(window, largest, modulus)
    entropy = -sum(p * math.log(p) for p in law if p > 0)
    return (length - window + 1) / length * entropy


def repetition(*, length: int, window: int = 2, largest: int = 16, modulus: int = 17) -> float:
    """How often a right sum equals the one before it.

    Args:
        length: L, above `window`.
        window: Terms in a sum.
        largest: Of the numbers.
        modulus: Of the sums.

    Returns:
        The mean over i of P(y_i = y_{i+1}).

    Example:
        >>> print(round(repetition(length=16), 4))
        0.0583

    Source: own derivation.
    """
    # Two full sums in a row are equal when the number that leaves equals the one that enters. A copied number is
    # followed by an equal copied one as often; by its own sum when the window's other terms sum to zero.
    same = 1 / largest
    pairs = length - 1
    copied, full = max(window - 2, 0), length - window
    first = _sum_law(window - 1, largest, modulus)[0] if window > 1 else 0.0
    return (copied * same + full * same + (window > 1) * first) / pairs


def _sum_law(terms: int, largest: int, modulus: int) -> list[float]:
    """Distribution of a sum of so many numbers, by residue."""
    law = [1.0] + [0.0] * (modulus - 1)
    for _ in range(terms):
        law = [sum(law[(residue - x) % modulus] for x in range(1, largest + 1)) / largest for residue in range(modulus)]
    return law
