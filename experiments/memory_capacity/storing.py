"""Pairs of random unit keys and values, written and read: what one draw of each measures."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.linear import hebbian

VALUES = 16
"""Entries of a value; no law depends on it."""


def each(one: Callable[[jax.Array], Any], key: jax.Array, draws: int) -> Any:
    """Every draw's measurement, a few at a time, in one program."""
    keys = jax.random.split(key, draws)
    found = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=min(draws, 25)))(keys)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), found)


def unit(key: jax.Array, *shape: int) -> jax.Array:
    """Uniform on the sphere."""
    x = jax.random.normal(key, shape)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def pairs(key: jax.Array, count: int, features: int, heads: int = 1) -> tuple[jax.Array, jax.Array]:
    """Keys ``[n, heads, d]`` of their own for every head, and values ``[n, heads, VALUES]`` that they share."""
    keys, values = jax.random.split(key)
    v = unit(values, count, 1, VALUES)
    return unit(keys, count, heads, features), jnp.broadcast_to(v, (count, heads, VALUES))


def squared(read: jax.Array, v: jax.Array) -> jax.Array:
    """Squared error of each pair."""
    return jnp.sum((read - v) ** 2, -1)


def sums(key: jax.Array, features: int, counts: tuple[int, ...]) -> jax.Array:
    """Mean squared error of Hebb's sum of the first n pairs, for each n ``[n]``."""
    k, v = pairs(key, max(counts), features)
    error = lambda n: jnp.mean(squared(hebbian.read(hebbian.hebb(k[:n], v[:n]), k[:n]), v[:n]))
    return jnp.stack([error(n) for n in counts])


def safe(key: jax.Array, features: int, most: int) -> jax.Array:
    """The most keys, in the order in which they are drawn, whose worst sum of products stays below 1."""
    k = unit(key, most, features)
    others = jnp.abs(k @ k.T) * (1 - jnp.eye(most))
    sums = jnp.where(jnp.tri(most, dtype=bool).T, jnp.cumsum(others, 1), 0)  # of key i after keys up to j, i <= j
    return jnp.sum(jnp.max(sums, 0) < 1)


def heads(key: jax.Array, features: int, count: int, heads: tuple[int, ...]) -> jax.Array:
    """Mean squared error of the average of the first H heads, for each H ``[H]``."""
    k, v = pairs(key, count, features, max(heads))
    read = jnp.cumsum(hebbian.read(hebbian.hebb(k, v), k), 1)
    return jnp.stack([jnp.mean(squared(read[:, h - 1] / h, v[:, 0])) for h in heads])


def layers(key: jax.Array, features: int, count: int, layers: tuple[int, ...]) -> jax.Array:
    """Mean squared error after L sums, each read with what the one before returned, for each L ``[L]``."""
    words_key, *keys = jax.random.split(key, max(layers) + 1)
    own = [unit(key, count, 1, features) for key in keys]
    words = unit(words_key, count, 1, VALUES)
    read, found = own[0], {}
    for depth, (k, following) in enumerate(zip(own, [*own[1:], words], strict=True), start=1):
        if depth in layers:
            found[depth] = jnp.mean(squared(hebbian.read(hebbian.hebb(k, words), read), words))
        read = hebbian.read(hebbian.hebb(k, following), read)
    return jnp.stack([found[depth] for depth in layers])


def corrected(key: jax.Array, features: int, counts: tuple[int, ...]) -> dict[str, jax.Array]:
    """Squared errors by age of the last n of max(n) pairs ``[n, max(n)]``, by delta and by Hebb; NaN for the others."""
    k, v = pairs(key, max(counts), features)
    stored = jnp.arange(max(counts))[None] >= max(counts) - jnp.array(counts)[:, None]

    def errors(stored):
        by_delta = hebbian.delta(k, v, stored[:, None].astype(k.dtype))
        by_hebb = hebbian.hebb(k, jnp.where(stored[:, None, None], v, 0))
        kept = lambda state: jnp.flip(jnp.where(stored, squared(hebbian.read(state, k), v)[:, 0], jnp.nan))
        return {"delta": kept(by_delta), "hebb": kept(by_hebb)}

    return jax.vmap(errors)(stored)


def decayed(key: jax.Array, features: int, count: int, decay: float) -> dict[str, jax.Array]:
    """By age: how much of its own value a pair is read with, and its squared error ``[n]``."""
    k, v = pairs(key, count, features)
    read = hebbian.read(hebbian.hebb(k, v, jnp.full((count, 1), jnp.log(decay))), k)
    return {"signal": jnp.flip(jnp.sum(read * v, -1)[:, 0]), "error": jnp.flip(squared(read, v)[:, 0])}


def shared(key: jax.Array, features: int, count: int, common: float) -> dict[str, jax.Array]:
    """Mean squared error where all keys have one vector in common: Hebb's sum, and the covariance rule."""
    pairs_key, common_key = jax.random.split(key)
    k, v = pairs(pairs_key, count, features)
    k = k + common * unit(common_key, 1, 1, features)
    plain, centered = hebbian.read(hebbian.hebb(k, v), k), hebbian.read_centered(hebbian.covariance(k, v), k)
    return {"hebb": jnp.mean(squared(plain, v)), "covariance": jnp.mean(squared(centered, v))}


def component(key: jax.Array, spectrum: tuple[float, ...], rate: float, steps: int) -> jax.Array:
    """Squared sine between Oja's vector and the first principal component."""
    start_key, key = jax.random.split(key)
    x = jax.random.normal(key, (steps, len(spectrum))) * jnp.sqrt(jnp.array(spectrum))
    w = hebbian.oja(unit(start_key, len(spectrum))[:, None], x, rate)[:, 0]
    return 1 - w[0] ** 2 / jnp.sum(w**2)


def average_capacity(counts: tuple[int, ...], errors: np.ndarray, noise: float = 0.25) -> np.ndarray:
    """Of each draw, the number of pairs at that noise, between those measured `[R]`."""
    line = lambda error: np.interp(noise, np.maximum.accumulate(error), counts)
    return np.array([line(error) for error in errors])
