"""Sequences of tokens whose class decides both what stands in the context and what comes next."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key


class TokenClasses(NamedTuple):
    """The distribution of sequences: a class is drawn uniformly, then its context token by token.

    Attributes:
        contextual: P(l | class), the law of a context token.
        last: The last token of a class, which queries the context.
        next: The token that follows, to be predicted.
    """

    contextual: Float[Array, "C M"]
    last: Int[Array, " C"]
    next: Int[Array, " C"]


class Sequences(NamedTuple):
    """A batch of sequences.

    Attributes:
        context: The tokens before the last one.
        last: The last token.
        next: The token that follows.
    """

    context: Int[Array, "B L"]
    last: Int[Array, " B"]
    next: Int[Array, " B"]


def token_classes(
    *,
    last: int = 2,
    next_per_last: int = 1,
    common: int = 10,
    common_per_last: int = 0,
    distinct: int = 10,
    common_weight: float = 1.0,
    distinct_weights: tuple[float, float] = (0.1, 1.0),
) -> TokenClasses:
    """Classes with tokens of their own (distinct) and tokens that they share (common).

    Each of `last` last tokens has `next_per_last` next tokens, each of which is a class. Within a class

        P(l) is proportional to  common_weight                        for tokens that all classes share
                                 common_weight                        for tokens shared under the same last token
                                 from distinct_weights[0] to [1]      for its own tokens, evenly spaced

    Tokens are numbered in this order: common, common per last token, distinct, last, next.

    Args:
        last: Number of last tokens.
        next_per_last: Classes of each last token.
        common: Tokens shared by all classes.
        common_per_last: Tokens shared by the classes of one last token.
        distinct: Tokens of each class alone.
        common_weight: Not normalized, positive.
        distinct_weights: Of the rarest and the most frequent distinct token, not normalized, positive.

    Returns:
        C = last * next_per_last classes over M tokens. The defaults are the paper's Syn-Small, with M = 34.

    Raises:
        ValueError: A count that is too small, or a weight that is not positive.

    Example:
        >>> classes = token_classes()
        >>> classes.contextual.shape, classes.last.tolist(), classes.next.tolist()
        ((2, 34), [30, 31], [32, 33])

    Source: Tian, Wang, Chen, Du, 2023, "Scan and Snap", arXiv 2305.16380, Section 6; sizes and weights as in the
    authors' code (facebookresearch/luckmatters, ssl/real-dataset/decoder_only.py, Dataset2).
    """
    least = {"last": 1, "next_per_last": 1, "common": 0, "common_per_last": 0, "distinct": 1}
    counts = dict(
        last=last, next_per_last=next_per_last, common=common, common_per_last=common_per_last, distinct=distinct
    )
    for name, bound in least.items():
        if counts[name] < bound:
            raise ValueError(f"{name} must be at least {bound}, got {counts[name]}")
    if not min(common_weight, *distinct_weights) > 0:
        raise ValueError(f"weights must be positive, got common_weight={common_weight}, {distinct_weights=}")
    c = last * next_per_last
    first_distinct = common + common_per_last * last
    first_last = first_distinct + distinct * c
    own = np.arange(c)[:, None]
    last_of = own // next_per_last
    token = np.arange(first_last + last + c)[None]
    slot = token - first_distinct  # of a distinct token: class * distinct + rank
    weights = np.linspace(*distinct_weights, distinct)
    shared = token < common
    per_last = ~shared & (slot < 0) & ((token - common) // max(common_per_last, 1) == last_of)
    mine = (slot >= 0) & (token < first_last) & (slot // distinct == own)
    law = np.where(shared | per_last, common_weight, np.where(mine, weights[slot % distinct], 0.0))
    tokens = [jnp.asarray(at[:, 0], int) for at in (first_last + last_of, first_last + last + own)]
    return TokenClasses(jnp.asarray(law / law.sum(1, keepdims=True), float), *tokens)


def sequences(key: Key[Array, ""], classes: TokenClasses, *, batch: int, length: int) -> Sequences:
    """Draw sequences: a class, then its context tokens independently.

    Args:
        key: Random key; the sequences are a function of it.
        classes: Their distribution.
        batch: Number of sequences B.
        length: Tokens of a sequence with the last one and without the next; L = length - 1.

    Returns:
        The sequences.

    Raises:
        ValueError: `batch` below 1, or `length` below 2.

    Example:
        >>> drawn = sequences(jax.random.key(0), token_classes(), batch=3, length=128)
        >>> drawn.context.shape, drawn.last.shape
        ((3, 127), (3,))

    Source: Tian, Wang, Chen, Du, 2023, Section 3, arXiv 2305.16380.
    """
    for name, value, bound in (("batch", batch, 1), ("length", length, 2)):
        if value < bound:
            raise ValueError(f"{name} must be at least {bound}, got {value}")
    class_key, token_key = jax.random.split(key)
    drawn = jax.random.randint(class_key, (batch,), 0, classes.last.size)
    uniform = jax.random.uniform(token_key, (batch, length - 1), classes.contextual.dtype)
    context = _quantiles(jnp.cumsum(classes.contextual, axis=1), drawn, uniform)
    return Sequences(context, classes.last[drawn], classes.next[drawn])


def _quantiles(cumulative: Float[Array, "C M"], of: Int[Array, " B"], levels: Float[Array, "B L"]) -> Int[Array, "B L"]:
    """The first index whose cumulative weight exceeds a fraction of the total, for several laws, by bisection.

    `jnp.searchsorted` takes one sorted array per call; under vmap it copies the law of every row.
    """
    total, m = cumulative[of, -1:], cumulative.shape[1]
    flat, start, sought = cumulative.reshape(-1), of[:, None] * m, levels * total
    index = jnp.zeros(levels.shape, jnp.int32)
    for stride in (1 << bit for bit in reversed(range(m.bit_length()))):
        probed = jnp.minimum(index + stride, m) - 1  # all below `index` are passed; are those up to here?
        passed = (index + stride <= m) & (flat[start + probed] <= sought)
        index = jnp.where(passed, index + stride, index)
    return jnp.minimum(index, m - 1)  # rounding must not go beyond the last token
