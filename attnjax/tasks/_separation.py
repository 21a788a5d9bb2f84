"""Two groups of tokens with the same total score, one of them peaked: what softmax tells apart and linear scores do
not."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


class Separation(NamedTuple):
    """Sequences of tokens, each with a score and a value, and their classes.

    Attributes:
        scores: ``[B, T]``.
        values: ``[B, T]``, 1 or -1.
        labels: ``[B]``, 1 or -1: the value of the token with the greatest score.
    """

    scores: Float[Array, "B T"]
    values: Float[Array, "B T"]
    labels: Float[Array, " B"]


def separation(key: Key[Array, ""], *, batch: int, peak: int = 8) -> Separation:
    """One token of score ``s`` whose value is the label, and s tokens of score 1 whose value is the other, in random
    order: both groups have the total score s.

    Attention with weights in proportion to the scores reads exactly 0 in either class. Softmax reads
    ``separation_readout(s)`` times the label.

    Args:
        key: Random key.
        batch: B.
        peak: s, at least 2.

    Returns:
        Scores, values and labels, T = s + 1.

    Raises:
        ValueError: A size is too small.

    Example:
        >>> task = separation(jax.random.key(0), batch=3, peak=4)
        >>> print((task.scores * task.values).sum(-1))
        [0. 0. 0.]

    Source: The construction is ours, for the claim of Deng et al., 2023, Superiority of Softmax: Unveiling the
    Performance Edge Over Linear Attention, arXiv 2310.11685; the paper's own data set was not at hand. Scores that are
    linear in the token, plus a constant (as elu + 1 of positive scores), do tell the classes apart.
    """
    if batch < 1 or peak < 2:
        raise ValueError(f"batch={batch}, peak={peak}: want at least 1 and 2")
    of_labels, of_places = jax.random.split(key)
    labels = jax.random.rademacher(of_labels, (batch,), float)
    places = jax.random.randint(of_places, (batch, 1), 0, peak + 1)
    peaked = jnp.arange(peak + 1)[None] == places
    return Separation(jnp.where(peaked, float(peak), 1.0), jnp.where(peaked, 1, -1) * labels[:, None], labels)


def separation_readout(peak: int) -> float:
    """What softmax reads of a sequence of ``separation`` whose label is 1, ``tanh((s - 1 - ln s) / 2)``.

    Args:
        peak: s.

    Example:
        >>> round(separation_readout(8), 5)
        0.98552
    """
    return math.tanh((peak - 1 - math.log(peak)) / 2)
