"""Mega: a moving average says where a token is, attention of one head what it looks for."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from attnjax import linear
from attnjax.attention import attend, masks, normalizers
from attnjax.attention._attend import Implementation
from attnjax.attention.normalizers import Normalizer
from attnjax.attention.scores import Score
from attnjax.linear._moving_average import AverageForm
from attnjax.mechanisms._gated_attention import GatedAttention, gated_attention


class Mega(NamedTuple):
    """Parameters of ``mega``.

    Attributes:
        weight, damping: logits of ``alpha`` and ``delta`` of ``linear.moving_average``, ``[D, E]``.
        expand, read: ``beta`` and ``eta`` of it, ``[D, E]``.
        skip: ``omega [D]``.
        gates: the rest.
    """

    weight: Float[Array, "D E"]
    damping: Float[Array, "D E"]
    expand: Float[Array, "D E"]
    read: Float[Array, "D E"]
    skip: Float[Array, " D"]
    gates: GatedAttention

    @classmethod
    def init(cls, key: Key[Array, ""], channels: int, features: int, width: int, averages: int = 2) -> "Mega":
        """Drawn as the authors draw them.

        Args:
            key: random key.
            channels: D.
            features: H, of queries and keys.
            width: V, of values.
            averages: E, moving averages of each channel.
        """
        keys = jax.random.split(key, 6)
        draw = lambda i, *shape: jax.random.normal(keys[i], shape)
        signs = jnp.where(jnp.arange(averages) % 2 == 0, 1.0, -1.0)[None]
        each = (channels, averages)
        return cls(
            0.2 * draw(0, *each), 0.2 * draw(1, *each), signs + 0.02 * draw(2, *each), draw(3, *each),
            draw(4, channels), GatedAttention.init(keys[5], channels, features, width),
        )  # fmt: skip


def mega(
    x: Float[Array, "*B T D"],
    parameters: Mega,
    *,
    chunk_size: int | None = None,
    normalizer: Normalizer | None = None,
    score: Score | None = None,
    form: AverageForm = "fourier",
    segment_ids: Int[Array | np.ndarray, "*#B T"] | None = None,
    residual: Float[Array, "*B T D"] | None = None,
    implementation: Implementation = "auto",
) -> Float[Array, "*B T D"]:
    """Moving average equipped gated attention, causal: ``gated_attention`` with

        x' = silu(moving_average(x) + omega x),    o = softmax(q k^T / sqrt(H)) v,

    over all keys so far, or in chunks over those of the same chunk, in O(T C) time: what is further back comes through
    the moving average. Normalizers that do not divide, such as ``laplace()``, take ``q k^T`` over the number of keys
    that the query sees, as the authors' do.

    Source: Ma et al., 2022, Mega: Moving Average Equipped Gated Attention, arXiv 2209.10655, and the authors' code.
    Deviation: causal only; the last chunk may be shorter than the others.

    Args:
        x: inputs ``[*B, T, D]``.
        parameters: see ``Mega``.
        chunk_size: C; None attends over all keys so far.
        normalizer: softmax by default.
        score: what modifies the scores, such as ``scores.relative_bias(...)``, as the authors have it, by distance.
        form: of the moving average; "fourier" has no segments.
        segment_ids: ``[*B, T]``: where they change, nothing of the tokens before is seen.
        residual: as for ``gated_attention``.
        implementation: of ``attend``.

    Returns:
        ``[*B, T, D]``.

    Raises:
        ValueError: a shape or size does not fit, or the form has no segments.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from attnjax import mechanisms, normalizers
        >>> parameters = mechanisms.Mega.init(jax.random.key(0), channels=8, features=4, width=16)
        >>> x = jnp.ones((10, 8))
        >>> mechanisms.mega(x, parameters, chunk_size=4, normalizer=normalizers.laplace()).shape
        (10, 8)
    """
    p, normalizer = parameters, normalizers.softmax() if normalizer is None else normalizer
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size: got {chunk_size}, want at least 1, or None for all keys so far")
    alpha, delta = jax.nn.sigmoid(p.weight), jax.nn.sigmoid(p.damping)
    average = linear.moving_average(x, alpha, delta, p.expand, p.read, form=form, segment_ids=segment_ids)
    assert isinstance(average, jax.Array)
    mixed = jax.nn.silu(average + x * jnp.expand_dims(p.skip, tuple(range(x.ndim - 1))))
    first = _first_key(x, chunk_size, segment_ids)
    at = lax.broadcasted_iota(jnp.int32, first.shape, first.ndim - 1)
    seen = (at - first + 1)[..., None, None]
    mask = masks.causal() if chunk_size is None else masks.causal() & masks.block_local(chunk_size)
    mask = mask if segment_ids is None else mask & masks.segments(first)

    def attention(q, k, v):
        q, scale = (q, None) if normalizer.scaled else (q / seen.astype(q.dtype), 1.0)
        knobs = {"mask": mask, "score": score, "normalizer": normalizer}
        return attend(q, k, v, **knobs, scale=scale, implementation=implementation)

    return gated_attention(x, mixed, p.gates, attention, residual=residual)


def _first_key(x: Array, chunk_size: int | None, segment_ids: Array | np.ndarray | None) -> Array:
    """The first key that each query sees, ``[*B, T]``."""
    shape = x.shape[:-1]
    at = lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
    start = at == 0 if chunk_size is None else at % chunk_size == 0
    if segment_ids is not None:
        ids = jnp.broadcast_to(jnp.asarray(segment_ids), shape)
        start = start.at[..., 1:].set(start[..., 1:] | (ids[..., 1:] != ids[..., :-1]))
    return lax.cummax(jnp.where(start, at, 0), len(shape) - 1)
