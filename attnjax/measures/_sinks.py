"""The sink metric: in how many heads one key takes more than its share of the attention.

    alpha_k = mean over the queries t at or after k of A_tk,      Sink_k = mean over heads of 1[alpha_k > eps]

alpha can be had from the map or from streamed statistics; all three ways give the same number for weights that sum to
one. Weights that do not (sigmoid, ReLU, signed softmax) are turned into shares of their row first, as the authors' code
does: a head that attends little to everything is not a head without a preference.

Source: Gu et al., 2024, When Attention Sink Emerges in Language Models, section 3.2, arXiv 2410.10781.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from attnjax._typing import FloatScalar


def row_shares(weights: Float[Array, "*B N T S"]) -> Float[Array, "*B N T S"]:
    """Weights as shares of their row, ``p_ts = |w_ts| / sum_s |w_ts|``; a row without weight stays 0.

    Args:
        weights: an attention map, of any normalizer.

    Returns:
        Rows that sum to 1, or to 0.

    >>> import jax.numpy as jnp
    >>> print(row_shares(jnp.array([[[0.5, -1.5]]]))[0, 0])
    [0.25 0.75]
    """
    size = jnp.abs(weights)
    total = size.sum(axis=-1, keepdims=True)
    return size / jnp.where(total > 0, total, 1)


def _first_reader(key: int, offset: int, queries: int) -> int:
    """The first query that sees the key."""
    first = max(key - offset, 0)
    if key < 0 or first >= queries:
        raise ValueError(
            f"key={key}: no query at or after it among {queries} queries (offset={offset}); "
            f"want a key from 0 to {queries - 1 + offset}"
        )
    return first


def mean_received(weight_on_key: Float[Array, "*B T N"], key: int = 0, *, offset: int = 0) -> Float[Array, "*B N"]:
    """alpha of a key from each query's weight on it, ``alpha = mean_{t >= key - offset} w_t``.

    Args:
        weight_on_key: what each query gives to the key: column ``key`` of the map, or streamed,
            ``attend(..., stats=[statistics.mass_on(only_that_key)])`` (``masks.sinks(1)`` selects the first key). For
            weights that do not sum to one divide by the row's total first, ``mass_on`` of all keys.
        key: index of the key.
        offset: keys before the first query, as in ``masks.causal(offset)``.

    Returns:
        One number for each head.

    Raises:
        ValueError: no query is at or after the key.

    Source: Gu et al., 2024, section 3.2, arXiv 2410.10781.

    >>> import jax.numpy as jnp
    >>> from attnjax import attend, masks, statistics
    >>> x = jnp.zeros((4, 1, 2))
    >>> _, found = attend(x, x, x, mask=masks.causal(), stats=[statistics.mass_on(masks.sinks(1), name="first")])
    >>> print(mean_received(found["first"]).round(4))
    [0.5208]
    """
    first = _first_reader(key, offset, weight_on_key.shape[-2])
    return weight_on_key[..., first:, :].mean(axis=-2)


def received(key_mass: Float[Array, "*B S N"], queries: int, key: int = 0, *, offset: int = 0) -> Float[Array, "*B N"]:
    """alpha of a key from the streamed statistic ``key_mass`` of causal attention.

        alpha = key_mass / (number of queries that see the key)

    Args:
        key_mass: attention that each key receives, ``attend(..., mask=masks.causal(offset), stats=["key_mass"])``, with
            weights that sum to one.
        queries: T, the number of queries.
        key: index of the key.
        offset: as in ``masks.causal(offset)``.

    Returns:
        One number for each head.

    Raises:
        ValueError: no query sees the key, or there is no such key.

    Source: Gu et al., 2024, section 3.2, arXiv 2410.10781.

    >>> import jax.numpy as jnp
    >>> from attnjax import attend, masks
    >>> x = jnp.zeros((4, 1, 2))
    >>> _, found = attend(x, x, x, mask=masks.causal(), stats=["key_mass"])
    >>> print(received(found["key_mass"], queries=4).round(4))
    [0.5208]
    """
    if key >= key_mass.shape[-2]:
        raise ValueError(f"key={key}: got {key_mass.shape[-2]} keys, want one of them, counted from 0")
    return key_mass[..., key, :] / (queries - _first_reader(key, offset, queries))


def sink_rate(alpha: Float[Array, "..."], eps: FloatScalar = 0.3) -> Float[Array, ""]:
    """The share of heads whose key is a sink, ``mean(alpha > eps)``.

    Args:
        alpha: attention received by the key, any axes (sequences, layers, heads); the mean is over all of them.
        eps: threshold between 0 and 1; 0.3 in the paper, for sequences of 64 tokens.

    Returns:
        A number between 0 and 1.

    Source: Gu et al., 2024, section 3.2, arXiv 2410.10781.

    >>> import jax.numpy as jnp
    >>> print(sink_rate(jnp.array([0.9, 0.31, 0.3, 0.0])))
    0.5
    """
    return jnp.mean(alpha > eps, dtype=alpha.dtype)
