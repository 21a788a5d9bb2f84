"""Keys and values kept for decoding, and masks and scores at the positions that queries then have."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from attnjax import _compat, masks
from attnjax.attention._component import Where, array, component, leaves
from attnjax.attention.masks import Mask
from attnjax.attention.scores import Score


class Cache(NamedTuple):
    """Keys and values of the tokens so far, in a fixed number of places; a pytree.

    Attributes:
        key: ``[*B, S, K, H]``; places from ``seen`` on are empty.
        value: ``[*B, S, K, V]``.
        seen: the number of tokens so far. More than S are not noticed under ``jit``: the last places are overwritten.
    """

    key: Float[Array, "*B S K H"]
    value: Float[Array, "*B S K V"]
    seen: Int[Array, ""]


def appended(cache: Cache, key: Array, value: Array) -> Cache:
    """The cache with more tokens.

    Raises:
        ValueError: they are known not to fit.
    """
    places, added = cache.key.shape[-3], key.shape[-3]
    seen = 0 if _compat.is_traced(cache.seen) else int(cache.seen)
    if seen + added > places:
        raise ValueError(f"state: got {added} tokens for a cache that holds {seen} of {places}, wanted room for them.")
    put = lambda held, new: jax.lax.dynamic_update_slice_in_dim(held, new.astype(held.dtype), cache.seen, held.ndim - 3)
    return Cache(put(cache.key, key), put(cache.value, value), cache.seen + key.shape[-3])


def visible(mask: Mask | None, seen: Array) -> Mask:
    """The mask, and causality, for queries of which the first has position ``seen``."""
    causal = masks.causal(offset=seen)
    return causal if mask is None else causal & _LaterMask(_positional("mask", mask), seen)


def later(score: Score | None, seen: Array) -> Score | None:
    """The score for queries of which the first has position ``seen``."""
    return None if score is None else _LaterScore(_positional("score", score), seen)


def _positional(name: str, part: Any) -> Any:
    """Refuse arrays with an axis of queries: where in them the next query is, they do not say."""
    for leaf in leaves(part):
        axis = leaf.axes.index("T") - len(leaf.axes) if "T" in leaf.axes else 0
        shape = jnp.shape(leaf.value)
        if axis and -axis <= len(shape) and shape[axis] != 1:
            raise NotImplementedError(
                f"{name}: got {leaf.name} of shape {tuple(shape)}, with an axis of queries; with a cache want a {name} "
                f"that follows from positions, such as masks.window or scores.alibi"
            )
    return part


def _moved(at: Where, by: Any) -> Where:
    return dataclasses.replace(at, t=at.t + by)


@component
class _LaterMask(Mask):
    inner: Mask = array()
    seen: Any = array()

    def visible(self, at):
        return self.inner.visible(_moved(at, self.seen))


@component
class _LaterScore(Score):
    inner: Score = array()
    seen: Any = array()

    @property
    def starts(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.starts

    @property
    def uses_scale(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.uses_scale

    def start(self, q, k, scale, at):
        return self.inner.start(q, k, scale, _moved(at, self.seen))

    def modify(self, score, at):
        return self.inner.modify(score, _moved(at, self.seen))
