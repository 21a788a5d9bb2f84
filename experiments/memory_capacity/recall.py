"""Words of a code book, stored under random keys and found again: measured, and as the noise of a kernel predicts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import attend, linear, masks
from attnjax.linear import hebbian, memory_theory
from experiments.memory_capacity.storing import VALUES, each, unit

MECHANISMS = ("softmax", "taylor-2", "linear", "delta", "elu+1")
AGES = 16  # at which the delta rule's law is evaluated


def read(k: jax.Array, v: jax.Array, lengths: jax.Array) -> dict[str, Any]:
    """What each mechanism reads at every key of the first n pairs ``[n, T, 1, V]``; keys are of length sqrt(d), and
    scores are their products as they are."""
    every = lambda x: jnp.broadcast_to(x, (len(lengths), *x.shape))
    k, v = every(k), every(v)
    knobs: dict[str, Any] = {"causal": False, "lengths": lengths, "form": "parallel"}
    stored = jnp.arange(k.shape[1])[None, :, None] < lengths[:, None, None]
    own = k / k.shape[-1] ** 0.5
    return {
        "softmax": attend(k, k, v, scale=1.0, mask=masks.lengths(lengths), implementation="dense"),
        "taylor-2": linear.fastmax(k, k, v, scale=1.0, **knobs),
        "linear": linear.attend(own, own, v, **knobs),
        "delta": hebbian.read(hebbian.delta(own, v, stored.astype(k.dtype)), own),
        "elu+1": linear.linear_attention(k, k, v, **knobs),
    }


class Recall(NamedTuple):
    """Shares of pairs whose nearest word is the one that was stored.

    Attributes:
        all: of all pairs ``[draws, mechanisms, n]``.
        recent: of the last quarter of them, likewise.
    """

    all: np.ndarray
    recent: np.ndarray


def measured(key: jax.Array, features: int, counts: tuple[int, ...], words: int, draws: int) -> Recall:
    """By every mechanism."""
    lengths = jnp.array(counts)[:, None]
    places = jnp.arange(max(counts))
    quarter = (places < lengths) & (places >= lengths - jnp.maximum(lengths // 4, 1))

    def one(key):
        key_key, book_key = jax.random.split(key)
        k = unit(key_key, max(counts), 1, features) * features**0.5
        book = unit(book_key, words, VALUES)
        found = read(k, book[: max(counts), None], lengths[:, 0])
        right = jnp.stack([jnp.argmax(found[name][:, :, 0] @ book.T, -1) == places for name in MECHANISMS])
        share = lambda where: jnp.sum(right & where, -1) / jnp.sum(where, -1)
        return share(places < lengths), share(quarter)

    return Recall(*each(one, key, draws))


def predicted(key: jax.Array, features: int, counts: tuple[int, ...], words: int) -> np.ndarray:
    """The same from squared noise alone, taken as isotropic ``[mechanisms, n]``: ``(n - 1) E w(k, k')^2 / w(k, k)^2``
    of a kernel w over independent keys, and the delta rule's law."""
    sample_key, recall_key = jax.random.split(key)
    a, b = unit(sample_key, 2, 20_000, features) * features**0.5
    product = lambda x, y: jnp.sum(x * y, -1)
    kernels = {
        "softmax": lambda x, y: jnp.exp(product(x, y) - features),
        "taylor-2": lambda x, y: 1 + product(x, y) + product(x, y) ** 2 / 2,
        "linear": product,
        "elu+1": lambda x, y: product(linear.elu_plus_one(x), linear.elu_plus_one(y)),
    }
    others = np.array(counts) - 1.0
    noises = {name: [others * float(jnp.mean((w(a, b) / w(a, a)) ** 2))] for name, w in kernels.items()}
    signals = {name: [np.ones(len(counts))] for name in kernels}
    ages = [np.linspace(0, count - 1, AGES).round().astype(int) for count in counts]
    signals["delta"] = [memory_theory.delta_signal(at.astype(float), features) for at in ages]
    errors = [memory_theory.delta_noise(count, features)[at] for count, at in zip(counts, ages, strict=True)]
    noises["delta"] = [e - (1 - signal) ** 2 for e, signal in zip(errors, signals["delta"], strict=True)]
    flat = lambda rows: jnp.asarray(np.concatenate([part for name in MECHANISMS for part in rows[name]]), jnp.float32)
    found = np.asarray(
        memory_theory.recall(recall_key, jnp.maximum(flat(noises), 0), flat(signals), words=words, width=VALUES),
        np.float64,
    )
    rows, start = [], 0
    for name in MECHANISMS:
        size = sum(len(part) for part in noises[name])
        part, start = found[start : start + size], start + size
        rows.append(part.reshape(-1, AGES).mean(1) if name == "delta" else part)
    return np.stack(rows)
