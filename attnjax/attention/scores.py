"""Scores: how well a key answers a query, before normalization.

A score starts from queries and keys (``dot_product`` unless another start is named) and passes through modifications,
chained with ``>>`` in the order in which they apply::

    dot_product() >> softcap(30.0) >> alibi(slopes)

Arrays that a score carries are differentiable; their gradients are summed over tiles, never through a T x S array.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from attnjax._typing import PerHead
from attnjax.attention._component import Where, array, as_array, component, static

__all__ = [
    "Score",
    "additive",
    "alibi",
    "bias",
    "cosine",
    "dot_product",
    "from_function",
    "from_query_key",
    "relative_bias",
    "softcap",
]


class Score:
    """A score, or one step of it."""

    starts = False
    """Whether it makes scores of queries and keys, rather than changing scores that it is given."""
    uses_scale = False
    """Whether it multiplies by ``scale``."""

    def start(self, q: Float[Array, "bq H"], k: Float[Array, "bk H"], scale: Any, at: Where) -> Float[Array, "bq bk"]:
        """Scores of a tile from its queries and keys."""
        raise NotImplementedError

    def modify(self, score: Float[Array, "bq bk"], at: Where) -> Float[Array, "bq bk"]:
        """Scores of a tile, changed."""
        raise NotImplementedError

    def __rshift__(self, then: "Score") -> "Score":
        if not isinstance(then, Score):
            raise TypeError(
                f"score >> other: got {type(then).__name__}, want a score; wrap a function: from_function()"
            )
        if then.starts:
            raise ValueError(
                f"score >> {type(then).__name__.lstrip('_').lower()}: it starts from queries and keys, so it can only "
                f"come first in a chain"
            )
        return _Chain((*_steps(self), *_steps(then)))


def _steps(score: Score) -> tuple[Score, ...]:
    return score.steps if isinstance(score, _Chain) else (score,)


@component
class _Chain(Score):
    steps: tuple[Score, ...] = array()

    @property
    def starts(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.steps[0].starts

    @property
    def uses_scale(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.steps[0].uses_scale

    def start(self, q, k, scale, at):
        first, *rest = self.steps
        score = first.start(q, k, scale, at)
        for step in rest:
            score = step.modify(score, at)
        return score

    def modify(self, score, at):
        for step in self.steps:
            score = step.modify(score, at)
        return score


def _product(q: jax.Array, k: jax.Array) -> jax.Array:
    return lax.dot_general(q, k, (((1,), (1,)), ((), ())), preferred_element_type=_accumulator(q.dtype))


def _accumulator(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


@component
class _DotProduct(Score):
    starts = True
    uses_scale = True

    def start(self, q, k, scale, at):
        return _product(q, k) * scale


@component
class _Cosine(Score):
    eps: float = static()

    starts = True
    uses_scale = True

    def start(self, q, k, scale, at):
        return _product(self._unit(q), self._unit(k)) * scale

    def _unit(self, x):
        x = x.astype(_accumulator(x.dtype))
        return x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + self.eps)


@component
class _Additive(Score):
    w_q: Any = array("N", None, None)
    w_k: Any = array("N", None, None)
    v: Any = array("N", None)

    starts = True

    def start(self, q, k, scale, at):
        q, k = _product(q, self.w_q.T.astype(q.dtype)), _product(k, self.w_k.T.astype(k.dtype))

        return jnp.sum(self.v.astype(q.dtype)[None, None, :] * jnp.tanh(q[:, None, :] + k[None, :, :]), axis=-1)


@component
class _FromQueryKey(Score):
    function: Callable = static()

    starts = True

    def start(self, q, k, scale, at):
        score = self.function(q, k)
        if score.shape != (q.shape[0], k.shape[0]):
            raise ValueError(
                f"from_query_key(function): got scores of shape {tuple(score.shape)}, want {(q.shape[0], k.shape[0])}, "
                f"one for each pair of rows of q and k"
            )
        return score.astype(_accumulator(q.dtype))


@component
class _Softcap(Score):
    cap: Any = array("B", "N", "T", "S")

    def modify(self, score, at):
        cap = self.cap.astype(score.dtype)
        return cap * jnp.tanh(score / cap)


@component
class _Alibi(Score):
    slopes: Any = array("N")

    def modify(self, score, at):
        distance = jnp.abs(at.t - at.s).astype(score.dtype)
        return score - self.slopes.astype(score.dtype) * distance


@component
class _RelativeBias(Score):
    table: Any = array("N", None)
    offset: int = static()

    def modify(self, score, at):
        reach = (self.table.shape[0] - 1) // 2
        distance = jnp.clip(at.s - at.t - self.offset, -reach, reach)
        return score + self.table.astype(score.dtype)[distance + reach]


@component
class _Bias(Score):
    values: Any = array("B", "N", "T", "S")

    def modify(self, score, at):
        return score + self.values.astype(score.dtype)


@component
class _FromFunction(Score):
    function: Callable = static()

    def modify(self, score, at):
        changed = self.function(score, at.batch, at.head, at.t, at.s)
        if jnp.shape(changed) != score.shape:
            raise ValueError(
                f"from_function(function): got scores of shape {jnp.shape(changed)} for a tile of shape {score.shape}, "
                f"want the tile's shape; add terms that broadcast to the score instead of replacing it"
            )
        return changed.astype(score.dtype)


def dot_product() -> Score:
    """The scaled dot product, ``s_ts = scale * <q_t, k_s>``.

    Source: Vaswani et al., 2017, Attention Is All You Need, Eq. (1), arXiv 1706.03762.

    >>> from attnjax import scores
    >>> capped = scores.dot_product() >> scores.softcap(50.0)
    """
    return _DotProduct()


def cosine(eps: float | int = 1e-12) -> Score:
    """Cosine similarity, ``s_ts = scale * <q_t, k_s> / (|q_t| |k_s|)``; give a ``scale`` (an inverse temperature).

    Source: Henry et al., 2020, Query-Key Normalization for Transformers, arXiv 2010.04245.

    Args:
        eps: added to the squared norms.

    >>> from attnjax import attend, scores
    >>> import jax.numpy as jnp
    >>> x = jnp.ones((4, 1, 8))
    >>> attend(x, x, x, score=scores.cosine(), scale=10.0).shape
    (4, 1, 8)
    """
    if not eps >= 0:
        raise ValueError(f"cosine(eps={eps}): want at least 0")
    return _Cosine(float(eps))


def additive(w_q: Float[Array, "*#N H A"], w_k: Float[Array, "*#N H A"], v: Float[Array, "*#N A"]) -> Score:
    """Additive attention, ``s_ts = <v, tanh(W_q^T q_t + W_k^T k_s)>``.

    Source: Bahdanau et al., 2015, Neural Machine Translation by Jointly Learning to Align and Translate, appendix
    A.1.2, arXiv 1409.0473. Deviation: there is no ``scale`` (giving one is an error); biases belong into q and k.

    Args:
        w_q: ``[N, H, A]`` or ``[H, A]``, A hidden features.
        w_k: likewise.
        v: ``[N, A]`` or ``[A]``.

    >>> from attnjax import scores
    >>> import jax.numpy as jnp
    >>> score = scores.additive(jnp.ones((8, 4)), jnp.ones((8, 4)), jnp.ones(4))
    """
    return _Additive(as_array(w_q), as_array(w_k), as_array(v))


def from_query_key(function: Callable) -> Score:
    """Any score ``function(q, k) -> s`` of blocks of queries ``[bq, H]`` and keys ``[bk, H]``; returns ``[bq, bk]``.

    Args:
        function: it may capture arrays, which are differentiable. ``scale`` is not applied.

    >>> from attnjax import scores
    >>> import jax.numpy as jnp
    >>> negative_distance = scores.from_query_key(
    ...     lambda q, k: -jnp.sum((q[:, None, :] - k[None, :, :]) ** 2, axis=-1))
    """
    if not callable(function):
        raise TypeError(f"from_query_key(function): got {type(function).__name__}, want a callable (q, k)")
    return _FromQueryKey(function)


def softcap(cap: float | int | Float[Array, "..."]) -> Score:
    """Logit soft-capping, ``s <- cap * tanh(s / cap)``; as ``cap`` grows, the identity.

    Source: Gemma Team, 2024, Gemma 2, section 2, arXiv 2408.00118.

    Args:
        cap: positive; a number or an array ``[N]``.

    >>> from attnjax import scores
    >>> capped = scores.softcap(30.0)
    """
    if isinstance(cap, (int, float)) and not cap > 0:
        raise ValueError(f"softcap(cap={cap}): want a positive number")
    values = as_array(cap)
    return _Softcap(values if values.ndim == 0 else values[..., None, None])


def alibi(slopes: PerHead) -> Score:
    """Attention with linear biases, ``s_ts <- s_ts - slope_n * |t - s|``.

    Source: Press et al., 2022, Train Short, Test Long, arXiv 2108.12409 (their slopes are ``2^(-8 n / N)``).

    Args:
        slopes: one for each query head (or a number); differentiable.

    >>> from attnjax import scores
    >>> import jax.numpy as jnp
    >>> score = scores.alibi(2.0 ** -jnp.arange(1.0, 9.0))
    """
    return _Alibi(as_array(slopes))


def relative_bias(table: Float[Array, "*#N R"], offset: int = 0) -> Score:
    """A learned bias of the distance, ``s_ts <- s_ts + table[n, clip(s - t - offset, -r, r) + r]``, ``R = 2 r + 1``.

    Source: Shaw et al., 2018, arXiv 1803.02155 (clipped distance); Raffel et al., 2020, T5, arXiv 1910.10683 (a scalar
    for each head and distance). Deviation: every distance has its own entry, T5's logarithmic buckets are not applied.

    Args:
        table: ``[N, R]`` or ``[R]``, R odd; differentiable.
        offset: keys before the first query, as in ``masks.causal(offset)``.

    Raises:
        ValueError: R is even.

    >>> from attnjax import scores
    >>> import jax.numpy as jnp
    >>> score = scores.relative_bias(jnp.zeros((8, 2 * 128 + 1)))
    """
    table = as_array(table)
    if table.ndim == 0 or table.shape[-1] % 2 == 0:
        raise ValueError(f"relative_bias(table): got shape {tuple(table.shape)}, want [N, R] with R = 2 * reach + 1")
    return _RelativeBias(table, int(offset))


def bias(values: Float[Array, "*#BN #T #S"]) -> Score:
    """An additive bias, ``s_ts <- s_ts + b_ts``.

    Args:
        values: ``[T, S]``, ``[N, T, S]`` or ``[*B, N, T, S]``, any axis may be 1; differentiable. The gradient has
            the shape of ``values`` and is summed over the axes along which it is shared, tile by tile.

    >>> from attnjax import scores
    >>> import jax.numpy as jnp
    >>> score = scores.bias(jnp.zeros((1, 16, 16)))
    """
    values = as_array(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"bias(values): got {values.dtype}, want floating point; a Boolean mask is masks.from_array()")
    return _Bias(values)


def from_function(function: Callable) -> Score:
    """Any modification ``function(score, batch, head, t, s) -> score`` (FlexAttention's score_mod).

    Args:
        function: gets the tile's scores ``[bq, bk]``, ``batch`` and ``head`` as scalars, ``t`` as ``[bq, 1]`` and ``s``
            as ``[1, bk]`` int32. It may look up arrays that it has captured; these are differentiable, traced or not.

    >>> from attnjax import scores
    >>> import jax.numpy as jnp
    >>> temperature = jnp.ones(8)
    >>> score = scores.from_function(lambda score, b, n, t, s: score * temperature[n])
    """
    if not callable(function):
        raise TypeError(f"from_function(function): got {type(function).__name__}, want a callable (score, b, n, t, s)")
    return _FromFunction(function)
