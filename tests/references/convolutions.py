"""Convolutions and moving averages in NumPy loops, token by token, as they are written on paper."""

import numpy as np


def convolve(x, kernel, segment_ids=None, before=None):
    """``[B, T, D]``; a kernel ``[L, D]`` of all tokens, or ``[B, T, L, D]`` of each. ``before`` is ``[B, L - 1, D]``."""
    batch, length, width = x.shape
    kernel = np.broadcast_to(kernel, (batch, length, *kernel.shape[-2:]))
    taps = kernel.shape[-2]
    before = np.zeros((batch, taps - 1, width)) if before is None else before
    out = np.zeros_like(x)
    for b in range(batch):
        first = 1 - taps  # the first segment sees what came before
        for t in range(length):
            if segment_ids is not None and t > 0 and segment_ids[b, t] != segment_ids[b, t - 1]:
                first = t
            for j in range(min(taps, t - first + 1)):
                out[b, t] += kernel[b, t, j] * (x[b, t - j] if t >= j else before[b, taps - 1 + t - j])
    return out


def banded(kernel, length):
    """The matrix of a convolution of one channel: ``W[t, s] = kernel[t - s]``."""
    matrix = np.zeros((length, length))
    for t in range(length):
        for s in range(max(0, t - len(kernel) + 1), t + 1):
            matrix[t, s] = kernel[t - s]
    return matrix


def moving_average(x, weight, damping, expand, read, segment_ids=None, state=None):
    """Outputs ``[B, T, D]`` and the last h ``[B, D, H]``."""
    out = np.zeros_like(x)
    last = np.zeros((len(x), *weight.shape)) if state is None else np.array(state)
    for b in range(len(x)):
        for t in range(x.shape[1]):
            if segment_ids is not None and t > 0 and segment_ids[b, t] != segment_ids[b, t - 1]:
                last[b] = 0
            last[b] = weight * expand * x[b, t][:, None] + (1 - weight * damping) * last[b]
            out[b, t] = (read * last[b]).sum(-1) / np.sqrt(weight.shape[1])
    return out, last
