"""Attention in float64 loops, one query and one key at a time, to be checked by eye; slow, and never imported by attnjax.

A row is computed as it is written in the papers: the visible keys, their scores, the normalizer's formula, the average
of the values. Masks are Python predicates, scores take one query and one key, normalizers take a row of scores.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Attention(NamedTuple):
    """What the loops found.

    Attributes:
        output: ``[B, T, N, V]``.
        weights: ``[B, N, T, S]``, 0 where a key is invisible.
        scores: ``[B, N, T, S]``, -inf where a key is invisible.
    """

    output: np.ndarray
    weights: np.ndarray
    scores: np.ndarray


def attend(q, k, v, *, visible: Callable, score: Callable, normalizer: Callable) -> Attention:
    """Attention by its definition.

    Args:
        q: ``[B, T, N, H]``.
        k: ``[B, S, K, H]``.
        v: ``[B, S, K, V]``.
        visible: ``visible(b, n, t, s) -> bool``.
        score: ``score(q_row, k_row, b, n, t, s) -> float``.
        normalizer: ``normalizer(scores of the visible keys, n, S) -> weights``.
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    (batch, queries, heads, _), (keys, kv_heads), width = q.shape, k.shape[1:3], v.shape[-1]
    output = np.zeros((batch, queries, heads, width))
    weights = np.zeros((batch, heads, queries, keys))
    scores = np.full((batch, heads, queries, keys), -np.inf)
    for b in range(batch):
        for n in range(heads):
            shared = n // (heads // kv_heads)
            for t in range(queries):
                seen = [s for s in range(keys) if visible(b, n, t, s)]
                if not seen:
                    continue
                row = [score(q[b, t, n], k[b, s, shared], b, n, t, s) for s in seen]
                scores[b, n, t, seen] = row
                weights[b, n, t, seen] = normalizer(np.array(row), n, keys)
                for s in seen:
                    output[b, t, n] += weights[b, n, t, s] * v[b, s, shared]
    return Attention(output, weights, scores)


# --- normalizers: a row of scores to a row of weights ---------------------------------------------------------------


def softmax(row: np.ndarray, extra: float = 0.0) -> np.ndarray:
    """exp(s_j) / (extra + sum exp(s))."""
    top = row.max()
    return np.exp(row - top) / (extra * math.exp(-top) + np.exp(row - top).sum())


def softmax_with_sink(row: np.ndarray, sink: float) -> np.ndarray:
    """Softmax over the scores and one logit more, whose weight is dropped."""
    return softmax(np.append(row, sink))[:-1]


def log_n_softmax(row: np.ndarray, coefficient: float, n: float | None = None) -> np.ndarray:
    """Softmax of c log(n) s, n the number of keys seen."""
    return softmax(coefficient * math.log(len(row) if n is None else n) * row)


def sigmoid(row: np.ndarray, bias: float) -> np.ndarray:
    return np.array([1 / (1 + math.exp(-(s + bias))) for s in row])


def relu(row: np.ndarray, power: int, over_keys: bool = True) -> np.ndarray:
    return np.array([max(s, 0.0) ** power for s in row]) / (len(row) if over_keys else 1)


def laplace(row: np.ndarray) -> np.ndarray:
    """The distribution function of a normal variable of mean sqrt(1/2) and variance 1 / (4 pi)."""
    mean, deviation = math.sqrt(1 / 2), math.sqrt(1 / (4 * math.pi))
    return np.array([(1 + math.erf((s - mean) / (deviation * math.sqrt(2)))) / 2 for s in row])


def signed_softmax(row: np.ndarray) -> np.ndarray:
    """sign(s) softmax(|s|)."""
    return np.array([1.0 if s >= 0 else -1.0 for s in row]) * softmax(np.abs(row))


def _by_bisection(weights_at: Callable[[float], np.ndarray], low: float, high: float) -> np.ndarray:
    """The weights at the threshold where they sum to one; the sum falls as the threshold rises."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if weights_at(middle).sum() > 1 else (low, middle)
    return weights_at((low + high) / 2)


def sparsemax(row: np.ndarray) -> np.ndarray:
    """max(s - tau, 0), summing to one."""
    return _by_bisection(lambda tau: np.maximum(row - tau, 0), row.max() - 1, row.max())


def entmax15(row: np.ndarray) -> np.ndarray:
    """max(s / 2 - tau, 0)^2, summing to one."""
    return _by_bisection(lambda tau: np.maximum(row / 2 - tau, 0) ** 2, row.max() / 2 - 1, row.max() / 2)


# --- scores -----------------------------------------------------------------------------------------------------------


def dot_product(q: np.ndarray, k: np.ndarray, scale: float) -> float:
    return scale * float(q @ k)


def cosine(q: np.ndarray, k: np.ndarray, scale: float) -> float:
    return scale * float(q @ k) / (math.sqrt(q @ q) * math.sqrt(k @ k))


def additive(q: np.ndarray, k: np.ndarray, w_q: np.ndarray, w_k: np.ndarray, v: np.ndarray) -> float:
    return float(v @ np.tanh(w_q.T @ q + w_k.T @ k))


def clipped_distance(t: int, s: int, reach: int, offset: int = 0) -> int:
    """Index into a table of 2 reach + 1 distances."""
    return min(max(s - t - offset, -reach), reach) + reach


# --- masks ------------------------------------------------------------------------------------------------------------


def coordinates(index: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Coordinates of a flat position on a grid, last dimension fastest."""
    return tuple(int(i) for i in np.unravel_index(index, shape))


def neighbors(i: int, length: int, window: int, stride: int, dilation: int, causal: bool) -> list[int]:
    """The coordinates that a query at ``i`` sees along one dimension of a grid."""
    line = list(range(i % dilation, length, dilation))
    place = line.index(i)
    group = [p for p in range(len(line)) if p // stride == place // stride]
    if causal:
        last = group[0] + stride - 1 if group[0] + stride - 1 < len(line) else len(line) - 1
        return [line[p] for p in range(len(line)) if last - window < p <= place]
    leader = min(group[0] + stride // 2, len(line) - 1)
    first = min(max(leader - window // 2, 0), len(line) - window)
    return line[first : first + window]


# --- statistics, from one row of weights and scores -------------------------------------------------------------------


def logsumexp(scores: np.ndarray) -> float:
    seen = scores[np.isfinite(scores)]
    return float(seen.max() + math.log(np.exp(seen - seen.max()).sum())) if len(seen) else -math.inf


def entropy(weights: np.ndarray) -> float:
    """Of |w| / sum |w|, in nats."""
    total = np.abs(weights).sum()
    return -sum(abs(w) / total * math.log(abs(w) / total) for w in weights if w != 0) if total else 0.0


def participation_ratio(weights: np.ndarray) -> float:
    """1 / sum p^2 with p = |w| / sum |w|."""
    total = np.abs(weights).sum()
    return 1 / sum((abs(w) / total) ** 2 for w in weights) if total else 0.0
