"""Flow-Attention, InLine attention and state spaces as they are written on paper: loops and whole matrices in NumPy."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def flow_attention(q, k, v, clip=1.0):
    """All queries see all keys, one head: the matrix of weights, and the four flows, with the paper's sums."""
    phi_q, phi_k = sigmoid(q), sigmoid(k)
    n, m = len(q), len(k)
    capacity = phi_q @ phi_k.T
    incoming, outgoing = capacity.sum(1), capacity.sum(0)
    sinks, sources = (capacity / outgoing[None]).sum(1), (capacity / incoming[:, None]).sum(0)
    competition = np.exp(np.minimum(sources, clip))
    competition = m * competition / competition.sum()
    weights = sigmoid(sinks * n / m)[:, None] * capacity / incoming[:, None] * competition[None]
    return weights, (incoming, outgoing, sinks, sources)


def causal_flow_attention(q, k, v, clip=1.0):
    """Token by token with running sums and a counter, one head: outputs."""
    phi_q, phi_k = sigmoid(q), sigmoid(k)
    width = q.shape[1]
    keys, queries, by_outgoing, by_incoming = np.zeros((4, width))
    memory, total, out = np.zeros((width, v.shape[1])), 0.0, np.zeros_like(v)
    for t in range(len(q)):
        count = t + 1
        keys, queries = keys + phi_k[t], queries + phi_q[t]
        incoming, outgoing = phi_q[t] @ keys / count, phi_k[t] @ queries / count
        by_outgoing, by_incoming = by_outgoing + phi_k[t] / outgoing, by_incoming + phi_q[t] / incoming
        sink, source = phi_q[t] @ by_outgoing / count, phi_k[t] @ by_incoming / count
        weight = np.exp(min(source, clip))
        total += weight
        memory = memory + np.outer(phi_k[t], weight / total * count * v[t])
        out[t] = sigmoid(sink) * phi_q[t] / incoming @ memory / count
    return out


def injective_weights(q, k):
    """One head, all queries and all keys: scores less their mean, and one in n."""
    n, width = k.shape
    scores = q @ k.T / np.sqrt(width) / n
    return scores - scores.mean(1, keepdims=True) + 1 / n


def depthwise(x, kernel):
    """By channel, zero outside: ``[R, C, D]`` and ``[r, c, D]``."""
    high, wide = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = np.pad(x, ((high, high), (wide, wide), (0, 0)))
    out = np.zeros_like(x)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = (padded[i : i + kernel.shape[0], j : j + kernel.shape[1]] * kernel).sum((0, 1))
    return out


def system(transition, write, read, u):
    """One channel, token by token: ``[T, H]`` three times and ``[T, V]``."""
    state, out = np.zeros((transition.shape[1], u.shape[1])), np.zeros_like(u)
    for t in range(len(u)):
        state = transition[t][:, None] * state + np.outer(write[t], u[t])
        out[t] = read[t] @ state
    return out


def selective_state_space(c, b, x, step, rate, skip):
    """Channel by channel: ``[T, H]`` twice, ``[T, D]`` twice, ``[D, H]`` and ``[D]``."""
    columns = [
        system(np.exp(step[:, d, None] * rate[d]), step[:, d, None] * b, c, x[:, d : d + 1]) + skip[d] * x[:, d : d + 1]
        for d in range(x.shape[1])
    ]
    return np.concatenate(columns, 1)
