"""How much noise an associative memory leaves where a pair is read, how many fit, and how it learns while it reads.

Keys are independent and uniform on the unit sphere of d dimensions, values independent with zero mean and unit length;
errors are squared, of one pair, in the mean. Derived here, from the moments ``E[x x^T] = I / d`` and ``E[x x^T A x x^T]
= (A + A^T + I tr A) / (d (d + 2))`` of a unit vector x; the setting is that of Qiao, 2025, Understanding Transformers
through the Lens of Pavlovian Conditioning, arXiv 2508.08289, whose capacity theorem gives the orders in d.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def sum_noise(pairs: float | int, features: float | int, heads: int = 1) -> float:
    """``(n - 1) / (d H)``: of Hebb's sum of n pairs, read in H heads with keys of their own and averaged.

    Args:
        pairs: n.
        features: d.
        heads: H.

    >>> from attnjax.linear import memory_theory
    >>> memory_theory.sum_noise(33, 64)
    0.5
    """
    return (pairs - 1) / (features * heads)


def capacity(features: float | int, noise: float = 0.25, heads: int = 1) -> float:
    """``1 + noise d H``: pairs of a Hebbian sum at that noise, in proportion to d.

    Args:
        features: d.
        noise: squared error of a read.
        heads: H.

    >>> from attnjax.linear import memory_theory
    >>> memory_theory.capacity(64)
    17.0
    """
    return 1 + noise * features * heads


def guaranteed_capacity(features: float | int) -> float:
    """The number n of random keys where the worst ``sum_j |k_i . k_j|`` reaches 1: in proportion to the root of d.

    Solves ``(n - 1) m + sqrt(2 (n - 1) s ln n) = 1`` with ``m = sqrt(2 / (pi d))`` and ``s = (1 - 2 / pi) / d``, mean
    and variance of the size of a normal product: the mean of a key's sum, and how far the greatest of n exceeds it.

    Args:
        features: d.

    >>> from attnjax.linear import memory_theory
    >>> [round(memory_theory.guaranteed_capacity(d)) for d in (16, 64, 256, 1024)]
    [4, 7, 15, 30]
    """
    mean, variance = math.sqrt(2 / (math.pi * features)), (1 - 2 / math.pi) / features
    worst = lambda n: (n - 1) * mean + math.sqrt(2 * (n - 1) * variance * math.log(n))
    low, high = 1.0, 2 + 1 / mean
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if worst(middle) < 1 else (low, middle)
    return low


def decay_noise(pairs: int, features: int, decay: float) -> Float[np.ndarray, " n"]:
    """``(1 - a^s)^2 + sum_{r != s} a^{2 r} / d``: of the pair written s before the last of n, where each write is
    preceded by a decay a.

    Args:
        pairs: n.
        features: d.
        decay: a.

    Returns:
        By age s, from 0.

    >>> from attnjax.linear import memory_theory
    >>> memory_theory.decay_noise(3, 4, 1.0).tolist()
    [0.5, 0.5, 0.5]
    """
    signal = decay ** np.arange(pairs)
    return (1 - signal) ** 2 + (np.sum(signal**2) - signal**2) / features


def delta_signal(ages: Float[np.ndarray, " n"], features: int, beta: float = 1.0) -> Float[np.ndarray, " n"]:
    """``beta (1 - beta / d)^s``: how much of its own value a pair is read with, s writes of the delta rule later.

    Args:
        ages: s.
        features: d.
        beta: strength of the corrections.

    >>> import numpy as np
    >>> from attnjax.linear import memory_theory
    >>> memory_theory.delta_signal(np.arange(3.0), 4).tolist()
    [1.0, 0.75, 0.5625]
    """
    return beta * (1 - beta / features) ** ages


def delta_noise(pairs: int, features: int, beta: float = 1.0) -> Float[np.ndarray, " n"]:
    """Of the delta rule, exactly: ``R_s - 2 beta (1 - beta / d)^s + 1`` for the pair written s before the last of n.

    With F the squared norm of the state, R that of what is read at the key, and ``b = beta``,

        F_j = (1 - (2 b - b^2) / d) F_{j-1} + b^2,
        R_0 = (1 - b)^2 F / d + b^2,    R_s = (1 - 2 b / d) R_{s-1} + b^2 / d + b^2 (F + 2 R_{s-1}) / (d (d + 2)),

    F that before the write. Where ``n << d`` and ``b = 1`` it is near ``1 - (1 - 1 / d)^s``.

    Args:
        pairs: n.
        features: d.
        beta: strength of the corrections, at most 2.

    Returns:
        By age s, from 0.

    >>> from attnjax.linear import memory_theory
    >>> found = memory_theory.delta_noise(16, 64)
    >>> float(found[0]), round(float(found.mean()), 3)
    (0.0, 0.135)
    """
    d, b = features, beta
    norms = [0.0]
    for _ in range(pairs):
        norms.append((1 - (2 * b - b * b) / d) * norms[-1] + b * b)
    read = np.zeros(0)
    for before in norms[:-1]:  # of every pair so far, from the first
        read = (1 - 2 * b / d) * read + b * b / d + b * b * (before + 2 * read) / (d * (d + 2))
        read = np.append(read, (1 - b) ** 2 * before / d + b * b)
    ages = np.arange(pairs)[::-1]
    return (read - 2 * delta_signal(ages.astype(float), features, beta) + 1)[::-1]


def common_noise(pairs: int, features: int, common: float) -> float:
    """``n c^4 + (4 c^2 + (n - 1) (2 c^2 + 1)) / d``: of Hebb's sum where one vector of length c is added to all unit
    keys.

    Args:
        pairs: n.
        features: d.
        common: c.

    >>> from attnjax.linear import memory_theory
    >>> memory_theory.common_noise(33, 64, 0.0), memory_theory.common_noise(16, 64, 1.0)
    (0.5, 16.765625)
    """
    c = common**2
    return pairs * c**2 + (4 * c + (pairs - 1) * (2 * c + 1)) / features


def covariance_noise(pairs: int, features: int) -> float:
    """``(n - 1) ((n - 1)^2 + 1) / (n^2 d)``: of the covariance rule, whatever vector is added to all keys.

    Args:
        pairs: n.
        features: d.

    >>> from attnjax.linear import memory_theory
    >>> round(memory_theory.covariance_noise(16, 64), 4)
    0.2069
    """
    others = pairs - 1
    return others * (others**2 + 1) / (pairs**2 * features)


def chain_noise(layers: int, pairs: int, features: int, heads: int = 1) -> float:
    """``(1 + (n - 1) / (d H))^L - 1``: after L Hebbian sums of which each is read with what the one before returned.

    Each layer has keys of its own for the same n items, and its values are the next one's keys; H heads are averaged.
    Depth multiplies where width and heads divide.

    Args:
        layers: L.
        pairs: n.
        features: d.
        heads: H.

    >>> from attnjax.linear import memory_theory
    >>> memory_theory.chain_noise(2, 33, 64)
    1.25
    """
    return (1 + sum_noise(pairs, features, heads)) ** layers - 1


def oja_angle(spectrum: Float[Array, " d"], rate: float) -> Float[Array, ""]:
    """``rate / 2 sum_j l_1 l_j / (l_1 - l_j)``: the squared sine between Oja's vector and the first principal component
    once it has settled, for normal inputs and a small rate.

    Args:
        spectrum: variances l, the greatest one first.
        rate: of Oja's rule.

    >>> import jax.numpy as jnp
    >>> from attnjax.linear import memory_theory
    >>> round(float(memory_theory.oja_angle(jnp.array([2.0, 1.0, 1.0]), 0.01)), 4)
    0.02
    """
    first, rest = spectrum[0], spectrum[1:]
    return rate / 2 * jnp.sum(first * rest / (first - rest))


def descent_noise(rate: float, variance: float) -> float:
    """``theta s / (2 - theta)``: squared error of each weight of a linear memory that has learned from unit keys and
    values with noise of variance s, by steps of size theta on half the squared error.

    Args:
        rate: theta, below 2.
        variance: s.

    >>> from attnjax.linear import memory_theory
    >>> memory_theory.descent_noise(1.0, 0.5)
    0.5
    """
    return rate * variance / (2 - rate)


def descent_curve(
    steps: int, features: int, rate: float, forget: float = 0.0, before: float = 0.0
) -> Float[np.ndarray, " L"]:
    """Relative squared error of a linear memory that learns a random matrix from unit keys without noise, after each of
    its steps of size theta and weight decay alpha:

        e <- s e - 2 alpha m c + alpha^2,    c <- m c - alpha,    e_0 = 1 + before,    c_0 = -1,
        m = 1 - alpha - theta / d,           s = (1 - alpha)^2 - 2 (1 - alpha) theta / d + theta^2 / d,

    with c the part of the error along the matrix itself. Without decay ``(1 - (2 theta - theta^2) / d)^t``.

    Args:
        steps: T.
        features: d.
        rate: theta, on half the squared error.
        forget: alpha.
        before: squared length of what the memory holds at first, over that of the matrix, with which it has nothing to
            do: 1 after another task was learned without decay.

    Returns:
        Errors before the first step and after each, L = T + 1.

    >>> from attnjax.linear import memory_theory
    >>> memory_theory.descent_curve(2, 4, 1.0).tolist()
    [1.0, 0.75, 0.5625]
    """
    keep = 1 - forget
    mean, square = keep - rate / features, keep**2 - 2 * keep * rate / features + rate**2 / features
    error, along = 1.0 + before, -1.0
    found = [error]
    for _ in range(steps):
        error, along = square * error - 2 * forget * mean * along + forget**2, mean * along - forget
        found.append(error)
    return np.array(found)


def recall(
    key: Array, noise: Float[Array, " n"], signal: Float[Array, " n"], *, words: int, width: int, draws: int = 2000
) -> Float[Array, " n"]:
    """How often the nearest of a book of random unit words is the one that was stored, if it is read times ``signal``
    with isotropic normal noise of that squared length: by sampling.

    Args:
        key: random key.
        noise: squared length of the noise.
        signal: factor of the word's own part.
        words: in the book.
        width: entries of a word.
        draws: of words and noise.

    >>> import jax, jax.numpy as jnp
    >>> from attnjax.linear import memory_theory
    >>> found = memory_theory.recall(jax.random.key(0), jnp.array([0.0, 99.0]), jnp.ones(2), words=64, width=16)
    >>> float(found[0]), bool(found[1] < 0.1)
    (1.0, True)
    """
    book_key, noise_key = jax.random.split(key)
    book = jax.random.normal(book_key, (draws, words, width))
    book = book / jnp.linalg.norm(book, axis=-1, keepdims=True)
    away = jax.random.normal(noise_key, (draws, width)) / width**0.5
    own = jnp.einsum("dwv,dv->dw", book, book[:, 0])
    noise_on = jnp.einsum("dwv,dv->dw", book, away)

    def share(noise, signal):
        return jnp.mean(jnp.argmax(signal * own + jnp.sqrt(noise) * noise_on, -1) == 0)

    return jax.lax.map(lambda both: share(*both), (noise, signal))
