"""Linear attention by its recurrence, token by token in NumPy: slow, and as it is written on paper."""

import numpy as np


def attend(
    q, k, v, log_decay=None, log_write=None, beta=None, normalize=None, exclusive=False,
    segment_ids=None, lengths=None, state=None,
):  # fmt: skip
    """Outputs ``[B, T, N, V]``, and the state ``[B, K, H, V]`` after the last token (without scales or masses)."""
    batch, length, heads, _ = q.shape
    kv_heads, features, width = k.shape[2], k.shape[3], v.shape[3]
    group = heads // kv_heads
    out = np.zeros((batch, length, heads, width))
    last = np.zeros((batch, kv_heads, features, width))
    for b in range(batch):
        for h in range(kv_heads):
            matrix, mass = np.zeros((features, width)), np.zeros(features)
            if state is not None:
                matrix = np.array(state[b, h])
            for t in range(length if lengths is None else lengths[b]):
                if segment_ids is not None and t > 0 and segment_ids[b, t] != segment_ids[b, t - 1]:
                    matrix, mass = np.zeros_like(matrix), np.zeros_like(mass)
                before = matrix, mass
                decay = np.exp(0 if log_decay is None else log_decay[b, t, h]) * np.ones(features)
                write = np.exp(0 if log_write is None else log_write[b, t, h]) * k[b, t, h]
                matrix, mass = decay[:, None] * matrix, decay * mass
                u = v[b, t, h] if beta is None else beta[b, t, h] * (v[b, t, h] - matrix.T @ k[b, t, h])
                matrix, mass = matrix + np.outer(write, u), mass + write
                seen, weight = before if exclusive else (matrix, mass)
                for n in range(h * group, (h + 1) * group):
                    reader = q[b, t, n] / np.where(weight == 0, 1, weight) if normalize == "feature" else q[b, t, n]
                    total = q[b, t, n] @ weight if normalize == "row" else 1
                    out[b, t, n] = seen.T @ reader / (total if total != 0 else 1)
            last[b, h] = matrix
    return out, last


def titans(q, k, v, rate, momentum, forget):
    """Gradient descent with momentum and weight decay on half the squared error, token by token."""
    out = np.zeros((*q.shape[:3], v.shape[3]))
    for b in range(q.shape[0]):
        for h in range(k.shape[2]):
            memory = np.zeros((k.shape[3], v.shape[3]))
            speed = np.zeros_like(memory)
            for t in range(q.shape[1]):
                gradient = np.outer(k[b, t, h], memory.T @ k[b, t, h] - v[b, t, h])
                speed = momentum[b, t, h] * speed - rate[b, t, h] * gradient
                memory = (1 - forget[b, t, h]) * memory + speed
                group = q.shape[2] // k.shape[2]
                for n in range(h * group, (h + 1) * group):
                    out[b, t, n] = memory.T @ q[b, t, n]
    return out
