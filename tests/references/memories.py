"""Memories that are trained while they are read, token by token in NumPy: slow, and as they are written on paper."""

import math

import numpy as np


def perceptron(q, k, v, rate, momentum, forget, first, second, chunks, start=()):
    """One head's perceptron ``second gelu(first x)`` (matrices ``[E, H]`` and ``[V, E]``), trained on half the squared
    error with gradients at the memory before each of the tokens in ``chunks``, and anew from those in ``start``. Outputs
    ``[T, V]``, both matrices and both momenta."""
    initial = first, second
    speeds = np.zeros_like(first), np.zeros_like(second)
    out = np.zeros((len(q), v.shape[1]))
    for t in range(len(q)):
        if t in start:
            first, second = initial
            speeds = np.zeros_like(first), np.zeros_like(second)
        if t in chunks or t in start:
            at = first, second
        hidden = at[0] @ k[t]
        error = at[1] @ gelu(hidden) - v[t]
        gradients = np.outer((at[1].T @ error) * gelu_slope(hidden), k[t]), np.outer(error, gelu(hidden))
        speeds = tuple(momentum[t] * z - rate[t] * g for z, g in zip(speeds, gradients, strict=True))
        first, second = ((1 - forget[t]) * m + z for m, z in zip((first, second), speeds, strict=True))
        out[t] = second @ gelu(first @ q[t])
    return out, (first, second), speeds


def matrix(q, k, v, rate, keep, gradient, image=lambda a: a, after=lambda w, t: w, chunk=1):
    """One head's matrix ``W [V, H]``: ``A = keep A - rate gradient(W k - v) k^T``, ``W = image(A)``, with gradients at
    the W before each chunk, and ``after`` applied to A after each step. Outputs ``[T, V]`` and A."""
    a = np.zeros((v.shape[1], k.shape[1]))
    out = np.zeros((len(q), v.shape[1]))
    for t in range(len(q)):
        if t % chunk == 0:
            at = image(a)
        a = after(keep[t] * a - rate[t] * np.outer(gradient(at @ k[t] - v[t], t), k[t]), t)
        out[t] = image(a) @ q[t]
    return out, a


def gelu(x):
    return x * _normal(x)


def gelu_slope(x):
    return _normal(x) + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def _normal(x):
    return np.vectorize(lambda one: (1 + math.erf(one / math.sqrt(2))) / 2)(x)
