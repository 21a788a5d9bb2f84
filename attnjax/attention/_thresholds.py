"""Weights that are zero below a threshold of the row: sparsemax and 1.5-entmax."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def _sorted(score: Float[Array, "bq S"], visible: Bool[Array, "bq S"], fill: float):
    """Scores of the visible keys minus the row's greatest, also in descending order; 0 in rows without a key."""
    some = visible.any(-1, keepdims=True)
    top = jnp.max(jnp.where(visible, score, -jnp.inf), axis=-1, keepdims=True)
    shifted = jnp.where(visible, score - jnp.where(some, top, 0), fill)
    shifted = jnp.where(some, shifted, 0)
    return shifted, -jnp.sort(-shifted, axis=-1)


def sparsemax_weights(score: Float[Array, "bq S"], visible: Bool[Array, "bq S"]) -> Float[Array, "bq S"]:
    """``max(s - tau, 0)`` with ``tau = (sum of the k greatest - 1) / k``, k the size of the support."""
    # Below the row's greatest score by 1 or more, a weight is 0 whatever the others are; so is this filler's.
    shifted, descending = _sorted(score, visible, -2.0)
    k = jnp.arange(1, score.shape[-1] + 1, dtype=score.dtype)[None, :]
    tau = (jnp.cumsum(descending, axis=-1) - 1) / k
    support = jnp.sum(descending > tau, axis=-1, keepdims=True)
    tau = jnp.take_along_axis(tau, support - 1, axis=-1)
    above = shifted > tau
    return jnp.where(visible & above, shifted - tau, 0)


def entmax15_weights(score: Float[Array, "bq S"], visible: Bool[Array, "bq S"]) -> Float[Array, "bq S"]:
    """``max(s / 2 - tau, 0)^2`` with ``tau = mean - sqrt((1 - k var) / k)`` over the k greatest ``s / 2``."""
    shifted, descending = _sorted(score / 2, visible, -2.0)
    k = jnp.arange(1, score.shape[-1] + 1, dtype=score.dtype)[None, :]
    mean = jnp.cumsum(descending, axis=-1) / k
    spread = jnp.cumsum(descending**2, axis=-1) - k * mean**2
    inside = (1 - spread) / k
    positive = inside > 0
    tau = mean - jnp.where(positive, jnp.sqrt(jnp.where(positive, inside, 1)), 0)
    support = jnp.sum(descending >= tau, axis=-1, keepdims=True)
    tau = jnp.take_along_axis(tau, support - 1, axis=-1)
    above = shifted > tau
    return jnp.where(visible & above, shifted - tau, 0) ** 2
