"""Masks: which key positions a query sees.

A mask is a predicate of positions, composed with ``&``, ``|`` and ``~``::

    causal() & window(1024) | sinks(4)

Positions are plain indices, ``t`` for queries and ``s`` for keys, both counted from 0. Where T and S differ nothing is
guessed: ``causal(offset=S - T)`` aligns the last query with the last key, ``causal()`` the first with the first.
From its predicate alone every mask, a user's own too, gets its block map by interval evaluation; arrays that a mask
carries (segment ids, lengths, per-head windows) may be traced.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from attnjax.attention._component import Where, array, as_array, component, static
from attnjax.attention._neighborhood import Neighborhood

__all__ = [
    "Mask",
    "block_local",
    "causal",
    "dilated",
    "from_array",
    "from_function",
    "heads",
    "lengths",
    "neighborhood",
    "per_head",
    "prefix",
    "segments",
    "sinks",
    "window",
]


class Mask:
    """A predicate of query and key positions. Write your own with ``from_function``."""

    def visible(self, at: Where) -> Bool[Array, "bq bk"]:
        """Which entries of a tile are visible (of a shape that broadcasts to the tile's)."""
        raise NotImplementedError

    def __and__(self, other: "Mask") -> "Mask":
        return _And(self, _checked(other, "&"))

    def __or__(self, other: "Mask") -> "Mask":
        return _Or(self, _checked(other, "|"))

    def __invert__(self) -> "Mask":
        return _Not(self)


def _checked(other: Any, sign: str) -> Mask:
    if isinstance(other, Mask):
        return other
    raise TypeError(f"mask {sign} other: got {type(other).__name__}, want a mask; wrap a Boolean array in from_array()")


@component
class _And(Mask):
    left: Mask = array()
    right: Mask = array()

    def visible(self, at):
        return self.left.visible(at) & self.right.visible(at)


@component
class _Or(Mask):
    left: Mask = array()
    right: Mask = array()

    def visible(self, at):
        return self.left.visible(at) | self.right.visible(at)


@component
class _Not(Mask):
    inner: Mask = array()

    def visible(self, at):
        return ~self.inner.visible(at)


@component
class _Causal(Mask):
    offset: Any = array("B", "N", "T", "S")

    def visible(self, at):
        return at.s <= at.t + self.offset


@component
class _Window(Mask):
    left: Any = array("B", "N", "T", "S")
    right: Any = array("B", "N", "T", "S")

    def visible(self, at):
        distance = at.t - at.s
        return (distance <= self.left) & (distance >= -self.right)


@component
class _FirstKeys(Mask):
    count: Any = array("B", "N", "T", "S")

    def visible(self, at):
        return at.s < self.count


@component
class _FirstQueries(Mask):
    count: Any = array("B", "N", "T", "S")

    def visible(self, at):
        return at.t < self.count


@component
class _Segments(Mask):
    q_ids: Any = array("B", "T")
    kv_ids: Any = array("B", "S")

    def visible(self, at):
        return self.q_ids == self.kv_ids


@component
class _Dilated(Mask):
    step: Any = array("B", "N", "T", "S")
    left: Any = array("B", "N", "T", "S")
    right: Any = array("B", "N", "T", "S")

    def visible(self, at):
        distance = at.t - at.s
        near = (distance <= self.left * self.step) & (distance >= -self.right * self.step)
        return near & (distance % self.step == 0)


@component
class _BlockLocal(Mask):
    size: Any = array("B", "N", "T", "S")

    def visible(self, at):
        return at.t // self.size == at.s // self.size


@component
class _FromArray(Mask):
    visible_entries: Any = array("B", "N", "T", "S")

    def visible(self, at):
        return self.visible_entries


@component
class _FromFunction(Mask):
    function: Callable = static()

    def visible(self, at):
        return self.function(at.batch, at.head, at.t, at.s)


@component
class _Heads(Mask):
    ids: tuple[int, ...] = static()

    def visible(self, at):
        chosen = at.head == self.ids[0]
        for head in self.ids[1:]:
            chosen = chosen | (at.head == head)
        return jnp.reshape(chosen, (1, 1))


@component
class _Neighborhood(Mask):
    shape: Neighborhood = static()

    def visible(self, at):
        return self.shape.visible(at.t, at.s)


def _count(name: str, value: Any, *, least: int = 0) -> Any:
    """A count, or an array of counts for each head (or batch); Python and NumPy values are checked."""
    given, value = value, np.asarray(value) if isinstance(value, (bool, int, float, np.generic)) else value
    if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{name}: got {type(given).__name__} {given!r}, want an integer or an array of integers")
    if isinstance(value, np.ndarray) and np.min(value) < least:
        raise ValueError(f"{name}={value}: got a negative number or too small a one, want at least {least}")
    return _lead(as_array(value, np.int32))


def _lead(value):
    """A count per head, [N] or [*B, N], as an array that broadcasts to [*B, N, T, S]."""
    return value if value.ndim == 0 else value[..., None, None]


def causal(offset: int | Int[Array, "..."] = 0) -> Mask:
    """Queries see keys up to their own position: ``s <= t + offset``.

    Args:
        offset: keys that lie before the first query, a number or an array ``[N]`` or ``[*B, N]``. Where T queries are
            the last of S positions, as in decoding with a cache, ``offset = S - T``.

    Returns:
        A mask.

    >>> from attnjax import attention_weights, masks
    >>> import jax.numpy as jnp
    >>> x = jnp.zeros((2, 1, 4))
    >>> print(attention_weights(x, x, mask=masks.causal())[0])
    [[1.  0. ]
     [0.5 0.5]]
    """
    return _Causal(_count("causal(offset)", offset, least=-(2**31)))


def window(left: int | Int[Array, "..."], right: int | Int[Array, "..."] = 0) -> Mask:
    """A sliding window: ``-right <= t - s <= left``; a query sees itself, ``left`` keys before and ``right`` after.

    Args:
        left: keys seen before the query, at least 0; a number or an array ``[N]`` or ``[*B, N]`` (one per head).
        right: keys seen after the query, likewise. With 0 the window is causal.

    Returns:
        A mask.

    Raises:
        ValueError: a negative window.

    >>> from attnjax import masks
    >>> masks.window(1) & masks.causal()  # doctest: +ELLIPSIS
    _And(left=_Window(...
    """
    return _Window(_count("window(left)", left), _count("window(right)", right))


def prefix(n: int | Int[Array, "..."]) -> Mask:
    """Every query sees the first ``n`` keys: ``s < n``. ``causal() | prefix(n)`` is a prefix language model.

    Args:
        n: a number, or an array ``[N]`` or ``[*B, N]``.

    >>> from attnjax import masks
    >>> prefix_lm = masks.causal() | masks.prefix(16)
    """
    return _FirstKeys(_count("prefix(n)", n))


def sinks(n: int | Int[Array, "..."]) -> Mask:
    """Attention sinks: every query sees the first ``n`` keys, ``s < n``; the same predicate as ``prefix``.

    Source: Xiao et al., 2023, Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453.

    Args:
        n: a number, or an array ``[N]`` or ``[*B, N]``.

    >>> from attnjax import masks
    >>> streaming = masks.causal() & (masks.window(1024) | masks.sinks(4))
    """
    return _FirstKeys(_count("sinks(n)", n))


def segments(q_ids: Int[Array | np.ndarray, "..."], kv_ids: Int[Array | np.ndarray, "..."] | None = None) -> Mask:
    """Packed sequences: a query sees the keys of its own segment, ``q_ids[t] == kv_ids[s]``.

    Args:
        q_ids: segment of each query, ``[*B, T]``, integers in any order; may be traced.
        kv_ids: segment of each key, ``[*B, S]``; the queries' by default (then T = S).

    Returns:
        A mask. Where ids ascend, as in packing, tiles between different segments are never visited.

    >>> from attnjax import masks
    >>> import jax.numpy as jnp
    >>> packed = masks.causal() & masks.segments(jnp.array([0, 0, 1, 1, 1]))
    """
    pair = as_array(q_ids), as_array(q_ids if kv_ids is None else kv_ids)
    for name, ids in zip(("q_ids", "kv_ids"), pair, strict=True):
        if not jnp.issubdtype(ids.dtype, jnp.integer) or ids.ndim == 0:
            raise TypeError(f"segments({name}): got {ids.dtype}{list(ids.shape)}, want integers [*B, length]")
    return _Segments(*pair)


def dilated(step: int, left: int, right: int = 0) -> Mask:
    """Every ``step``-th key around the query: ``(t - s) % step == 0`` and ``-right*step <= t - s <= left*step``.

    Args:
        step: distance between visible keys, at least 1; with 1 this is ``window(left, right)``.
        left: visible keys before the query.
        right: visible keys after the query.

    >>> from attnjax import masks
    >>> every_fourth = masks.dilated(step=4, left=64)
    """
    return _Dilated(
        _count("dilated(step)", step, least=1), _count("dilated(left)", left), _count("dilated(right)", right)
    )


def block_local(size: int) -> Mask:
    """Queries see the keys of their own block: ``t // size == s // size``.

    Args:
        size: positions in a block, at least 1.

    >>> from attnjax import masks
    >>> local = masks.block_local(64)
    """
    return _BlockLocal(_count("block_local(size)", size, least=1))


def neighborhood(
    shape: int | Sequence[int],
    window: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    causal: bool | Sequence[bool] = False,
) -> Mask:
    """Neighborhood attention on a grid of 1 to 3 dimensions, flattened with the last dimension fastest.

    Along each dimension of length L, with its coordinate i taken modulo and divided by the dilation d, a query sees
    exactly ``window`` keys of its own residue class: those centered on it (on the middle of its stride group), the
    window being moved inwards at the edges instead of being cut. A causal dimension sees, of the ``window`` keys that
    end at the last query of its stride group, those up to the query itself.

    Args:
        shape: lengths of the grid; their product is T = S.
        window: keys seen along each dimension, at most L // dilation.
        stride: queries of a group of ``stride`` share one window (1: each its own; ``window``: blocked attention).
        dilation: distance between neighbors.
        causal: dimensions along which no key after the query is seen.

    Returns:
        A mask.

    Raises:
        ValueError: a window that does not fit, or a stride above the window.

    Source: Hassani et al., 2023, Neighborhood Attention Transformer, arXiv 2204.07143; Hassani and Shi, 2022, Dilated
    NAT, arXiv 2209.15001; Hassani et al., 2025, Generalized Neighborhood Attention, arXiv 2504.16922 (stride).

    >>> from attnjax import masks
    >>> image = masks.neighborhood(shape=(32, 32), window=(7, 7))
    """
    return _Neighborhood(Neighborhood.checked(shape, window, stride, dilation, causal))


def lengths(q_lengths: Int[Array, "*B"] | int | None = None, kv_lengths: Int[Array, "*B"] | int | None = None) -> Mask:
    """Padded sequences: positions at or beyond the length are invisible, ``t < q_lengths and s < kv_lengths``.

    Args:
        q_lengths: real queries of each sequence, ``[*B]``; None for all T. Rows beyond it come out as zeros.
        kv_lengths: real keys of each sequence, ``[*B]``; None for all S.

    >>> from attnjax import masks
    >>> import jax.numpy as jnp
    >>> padded = masks.lengths(kv_lengths=jnp.array([5, 9]))
    """
    parts = []
    for kind, name, value in ((_FirstQueries, "q_lengths", q_lengths), (_FirstKeys, "kv_lengths", kv_lengths)):
        if value is not None:
            count = _count(f"lengths({name})", value)
            parts.append(kind(count if jnp.ndim(value) == 0 else jnp.reshape(count, (*jnp.shape(value), 1, 1, 1))))
    if not parts:
        raise ValueError("lengths(): got neither q_lengths nor kv_lengths, want at least one of them")
    return parts[0] if len(parts) == 1 else parts[0] & parts[1]


def from_array(visible: Bool[Array, "*#BN #T #S"]) -> Mask:
    """A Boolean array, True where a key is visible (the convention of ``jax.nn``).

    Args:
        visible: ``[T, S]``, ``[N, T, S]`` or ``[*B, N, T, S]``, any axis may be 1. The caller has already made T x S
            entries; tiles are judged from them, so empty ones are still skipped.

    Raises:
        TypeError: not Boolean. (An additive bias of -inf is ``scores.bias``.)

    >>> from attnjax import masks
    >>> import jax.numpy as jnp
    >>> mask = masks.from_array(jnp.eye(8, dtype=bool))
    """
    visible = as_array(visible)
    if visible.dtype != jnp.bool_ or visible.ndim < 2:
        raise TypeError(
            f"from_array(visible): got {visible.dtype}{list(visible.shape)}, want bool [*B, N, T, S], True where "
            f"visible; for an additive bias use scores.bias"
        )
    return _FromArray(visible)


def from_function(function: Callable) -> Mask:
    """Any predicate ``function(batch, head, t, s) -> bool`` of broadcastable index arrays (FlexAttention's mask_mod).

    Args:
        function: gets ``batch`` and ``head`` as scalars, ``t`` as ``[bq, 1]`` and ``s`` as ``[1, bk]`` int32, and
            returns a Boolean that broadcasts to ``[bq, bk]``. It may look up arrays that it has captured, traced ones
            too. Comparisons, sums, products, minima, floor divisions, remainders and logic of positions give an exact
            or near exact block map; other operations make tiles partial, which costs time and never correctness.

    >>> from attnjax import masks
    >>> diagonal_stripes = masks.from_function(lambda b, n, t, s: (t // 8 + s // 8) % 2 == 0)
    """
    if not callable(function):
        raise TypeError(f"from_function(function): got {type(function).__name__}, want a callable (batch, head, t, s)")
    return _FromFunction(function)


def heads(*ids: int) -> Mask:
    """Everything is visible to these query heads, nothing to the others; combine it with ``&`` and ``|``.

    Args:
        ids: query heads, from 0 to N - 1.

    >>> from attnjax import masks
    >>> mixed = masks.heads(0, 1) & masks.window(64) | masks.heads(2, 3) & masks.causal()
    """
    if not ids or any(isinstance(i, bool) or not isinstance(i, (int, np.integer)) or i < 0 for i in ids):
        raise ValueError(f"heads{ids}: got no head, or one that is not a whole number from 0 up; want heads(0, 2, ...)")
    return _Heads(tuple(int(i) for i in ids))


def per_head(*each: Mask) -> Mask:
    """One mask for each query head, in order.

    Args:
        each: N masks.

    >>> from attnjax import masks
    >>> two_heads = masks.per_head(masks.causal(), masks.window(64))
    """
    if not each:
        raise ValueError("per_head(): got no mask, want one for each query head")
    chosen = [heads(i) & _checked(m, "per_head") for i, m in enumerate(each)]
    mask = chosen[0]
    for other in chosen[1:]:
        mask = mask | other
    return mask
