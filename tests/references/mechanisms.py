"""Named mechanisms in NumPy, one sequence at a time, as they are written on paper."""

import math

import numpy as np

from tests.references.attention import laplace, softmax


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def gated_attention(x, mixed, p, weights):
    """``[T, D]``, of ``weights(q [T, H], k [T, H]) -> [T, T]``."""
    z = silu(mixed @ p.shared + p.shared_bias)
    q, k = (p.gains[i] * z + p.offsets[i] for i in range(2))
    o = weights(q, k) @ silu(x @ p.value + p.value_bias)
    reset = silu(mixed @ p.reset + p.reset_bias)
    update = sigmoid(mixed @ p.update + p.update_bias)
    candidate = silu(mixed @ p.candidate + p.candidate_bias + (reset * o) @ p.hidden)
    return update * candidate + (1 - update) * x


def chunk_weights(q, k, chunk, segments, divided, bias):
    """Attention of one head by chunks and segments: softmax, or the Laplace function of products over the keys seen."""
    length = len(q)
    weights = np.zeros((length, length))
    for t in range(length):
        seen = [s for s in range(t + 1) if s // chunk == t // chunk and len(set(segments[s : t + 1])) == 1]
        row = q[t] @ k[seen].T
        offsets = np.array([bias[t - s] for s in seen])
        weights[t, seen] = (
            softmax(row / math.sqrt(q.shape[1]) + offsets) if divided else laplace(row / len(seen) + offsets)
        )
    return weights


def folded_context(x, p, segment, memory, pool, remember):
    """``[T, D]``."""
    kept, out = [], []
    for start in range(0, len(x), segment):
        part = x[start : start + segment]
        y = np.array(part)
        for t in range(len(part)):
            context = np.array([*kept, *part[: t + 1]])
            for n in range(p.query.shape[1]):
                scores = (context @ p.key[:, n]) @ (part[t] @ p.query[:, n]) / math.sqrt(p.query.shape[2])
                y[t] += softmax(scores) @ (context @ p.value[:, n]) @ p.out[n]
        states = y if remember == "outputs" else part
        kept += [states[i : i + pool].mean(0) for i in range(0, len(part), pool)]
        kept = kept[len(kept) - min(memory, len(kept)) :]
        out.append(y)
    return np.concatenate(out)
