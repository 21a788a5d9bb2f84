"""Writes at their own log scales, as a monoid: what a stretch of tokens does to a state.

An element ``(a, m, B)`` stands for ``S -> exp(a) S + exp(m) B``, by features: two stretches, one after the other, are

    a = a_1 + a_2,    m = max(m_1 + a_2, m_2),    B = exp(m_1 + a_2 - m) B_1 + exp(m_2 - m) B_2,

which is associative, so that all prefixes are found by a scan of logarithmic depth. ``m`` keeps exponentials in range;
what is read does not depend on it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Element(NamedTuple):
    """What a stretch of tokens does.

    Attributes:
        decay: ``a``, ``[..., H]``.
        scale: ``m``, ``[..., H]``; -inf where nothing is written.
        value: ``B``, ``[..., H, V]``.
        start: whether a segment starts in it, so that nothing of the state before it is left, ``[...]``.
    """

    decay: jax.Array
    scale: jax.Array
    value: jax.Array
    start: jax.Array


def init(features: int, width: int, dtype: jnp.dtype) -> Element:
    """What does nothing."""
    zeros = jnp.zeros((features,), dtype)
    return Element(zeros, zeros - jnp.inf, jnp.zeros((features, width), dtype), jnp.zeros((), bool))


def lift(decay: jax.Array, scale: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array) -> Element:
    """Tokens: each decays the state and writes ``exp(scale) k v^T``."""
    fixed = lax.stop_gradient(scale)
    weight = jnp.where(jnp.isneginf(fixed), 0, jnp.exp(scale - finite(fixed)))
    return Element(decay, fixed, (weight * k)[..., None] * v[..., None, :], start)


def combine(first: Element, then: Element) -> Element:
    """One stretch after another."""
    moved = jnp.where(then.start[..., None], -jnp.inf, first.scale + then.decay)
    scale = lax.stop_gradient(jnp.maximum(moved, then.scale))
    weigh = lambda log, value: jnp.exp(log - finite(scale))[..., None] * value
    value = weigh(moved, first.value) + weigh(then.scale, then.value)
    return Element(first.decay + then.decay, scale, value, first.start | then.start)


def finalize(q: jax.Array, element: Element) -> jax.Array:
    """``q^T (exp(m) B)``."""
    return jnp.einsum("...h,...hv->...v", q * jnp.exp(element.scale), element.value)


def prefixes(elements: Element, before: Element) -> Element:
    """The stretches from the start to each token, after one that comes before all: a scan along the first axis."""
    found = lax.associative_scan(combine, elements)
    return jax.vmap(combine, in_axes=(None, 0))(before, found)


def finite(scale: jax.Array) -> jax.Array:
    """A log scale that may be subtracted from itself."""
    return jnp.where(jnp.isneginf(scale), 0, scale)
